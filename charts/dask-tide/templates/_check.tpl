{{- /* What the schema cannot say. Python's twin is dask_tide.providers.kubernetes.manifests.values. */ -}}
{{- define "dask-tide.check" -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]{0,34}[a-z0-9])?$" .Release.Name) }}
  {{- fail (printf "release name %q: expected lower-case letters, digits and '-', beginning with a letter, 36 characters at the most (Kubernetes cuts names of pods: <release>-<pool> may have 57)" .Release.Name) }}
{{- end }}
{{- if not .Values.image.repository }}
  {{- fail "image.repository: expected the image that you have built (docs/image.md), as none is published" }}
{{- end }}
{{- range $name, $pool := include "dask-tide.pools" . | fromJson }}
  {{- if not (regexMatch "^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$" $name) }}
    {{- fail (printf "pools.%s: expected as a name lower-case letters, digits and '-', not '-' at an end, 20 characters at the most (Kubernetes cuts names of pods: <release>-<pool> may have 57)" $name) }}
  {{- end }}
  {{- if gt (int $pool.minimum) (int $pool.maximum) }}
    {{- fail (printf "pools.%s.minimum: got %d, expected at most maximum, which is %d" $name (int $pool.minimum) (int $pool.maximum)) }}
  {{- end }}
  {{- $unit := regexFind "[MGT]i?$" $pool.memory }}
  {{- $sizes := dict "M" 1e6 "G" 1e9 "T" 1e12 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
  {{- $memory := mulf (trimSuffix $unit $pool.memory) (get $sizes $unit) }}
  {{- if and (gt $memory 0.0) (lt $memory 1048576.0) }}
    {{- fail (printf "pools.%s.memory: got %s, expected at least 1Mi" $name $pool.memory) }}
  {{- end }}
{{- end }}
{{- $pools := include "dask-tide.pools" . | fromJson }}
{{- range $name, $buffer := include "dask-tide.buffers" . | fromJson }}
  {{- if not (hasKey $pools $name) }}
    {{- fail (printf "buffer.pools.%s: expected the name of a pool: %s" $name (keys $pools | sortAlpha | join ", ")) }}
  {{- end }}
  {{- if eq (kindIs "invalid" $buffer.units) (empty $buffer.schedule) }}
    {{- fail (printf "buffer.pools.%s: expected either units or a schedule" $name) }}
  {{- end }}
  {{- $times := dict }}
  {{- range $entry := $buffer.schedule }}
    {{- $zone := $entry.timeZone | default "Etc/UTC" }}
    {{- if eq (include "dask-tide.isNoZone" $zone) "true" }}
      {{- fail (printf "buffer.pools.%s.schedule: got %q as timeZone, expected the name of one, such as Europe/Berlin" $name $zone) }}
    {{- end }}
    {{- range regexFindAll "[0-9a-z]+-[0-9a-z]+" (lower $entry.at) -1 }}
      {{- $ends := splitList "-" . }}
      {{- if gt (include "dask-tide.cronNumber" (first $ends) | int) (include "dask-tide.cronNumber" (last $ends) | int) }}
        {{- fail (printf "buffer.pools.%s.schedule: got %q in %q, expected ranges that end after they begin" $name . $entry.at) }}
      {{- end }}
    {{- end }}
    {{- $time := printf "%s %s" (regexReplaceAll " +" (trim $entry.at) " ") $zone }}
    {{- if hasKey $times $time }}
      {{- fail (printf "buffer.pools.%s.schedule: got %q twice, expected times that differ" $name $time) }}
    {{- end }}
    {{- $_ := set $times $time true }}
  {{- end }}
  {{- $chosen := (get $pools $name).priorityClassName | default "" }}
  {{- $own := get ($.Values.priorityClasses | default dict) $chosen | default dict }}
  {{- if and (not $.Values.buffer.priorityClassName) (hasKey $own "value") }}
    {{- if le (int $own.value) (int $.Values.buffer.priority) }}
      {{- fail (printf "pools.%s.priorityClassName: got %s, expected a class with a value above buffer.priority, which is %d; it has %d" $name $chosen (int $.Values.buffer.priority) (int $own.value)) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- $tide := .Values.tide | default dict }}
{{- /* Defaults as in src/dask_tide/tide.yaml. */ -}}
{{- $backoffs := merge (dict) ($tide.start | default dict) (dict "backoff" "500ms" "backoff-maximum" "1m") }}
{{- if gt (include "dask-tide.seconds" $backoffs.backoff | float64) (include "dask-tide.seconds" (get $backoffs "backoff-maximum") | float64) }}
  {{- fail (printf "tide.start.backoff-maximum: got %v, expected at least tide.start.backoff, which is %v" (get $backoffs "backoff-maximum") $backoffs.backoff) }}
{{- end }}
{{- $maximum := ($tide.limits | default dict).maximum }}
{{- $minimum := 0 }}
{{- range $pool := $pools }}{{ $minimum = add $minimum (int $pool.minimum) }}{{ end }}
{{- if and (not (kindIs "invalid" $maximum)) (lt (int $maximum) (int $minimum)) }}
  {{- fail (printf "tide.limits.maximum: got %d, expected at least %d, the sum of the pools' minimums" (int $maximum) (int $minimum)) }}
{{- end }}
{{- if and $tide.options (not .Values.nodes.read) }}
  {{- if $tide.options.prices }}
    {{- fail "tide.options.prices: expected nothing without nodes.read=true, as nodes say of which type they are" }}
  {{- end }}
{{- end }}
{{- if $tide | dig "idle-shutdown" "" }}
  {{- fail "tide.idle-shutdown: expected nothing, since Kubernetes would start the scheduler again" }}
{{- end }}
{{- if and (hasPrefix "system-" .Release.Namespace) (or .Values.priorityClasses .Values.buffer.pools) }}
  {{- fail (printf "namespace %q: expected another one, or no priorityClasses and no buffer: Kubernetes keeps names of priority classes that begin with system-" .Release.Namespace) }}
{{- end }}
{{- with .Values.networkPolicy }}
  {{- if and .enabled (not (kindIs "invalid" .egress)) (kindIs "invalid" .apiServer) }}
    {{- fail "networkPolicy.apiServer: expected rules by which the scheduler reaches the API server, since networkPolicy.egress shuts it in: addresses and ports are what `kubectl --namespace default get service,endpoints kubernetes` shows (docs/chart.md, \"Networks\")" }}
  {{- end }}
{{- end }}
{{- with .Values.notebook.existingSecret }}
  {{- $annotations := lookup "v1" "Secret" $.Release.Namespace . | dig "metadata" "annotations" dict }}
  {{- if and (eq . (printf "%s-notebook" $.Release.Name)) (eq (get $annotations "meta.helm.sh/release-name") $.Release.Name) }}
    {{- fail (printf "notebook.existingSecret: got %s, expected a Secret that is not this release's own: Helm would delete it now. Copy it under another name" .) }}
  {{- end }}
{{- end }}
{{- with .Values.security.tls }}
  {{- if and .enabled (eq .source "secret") .secretName }}
    {{- $annotations := lookup "v1" "Secret" $.Release.Namespace .secretName | dig "metadata" "annotations" dict }}
    {{- if and (eq (get $annotations "meta.helm.sh/release-name") $.Release.Name) (hasKey $annotations "dask-tide/rotate") }}
      {{- fail (printf "security.tls.secretName: got %s, expected a Secret that is not this release's own: Helm would delete it now. Copy it under another name" .secretName) }}
    {{- end }}
  {{- end }}
  {{- if and .enabled (eq .source "secret") (not .secretName) }}
    {{- fail "security.tls.secretName: expected the name of a Secret, since security.tls.source is secret" }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* Seconds of a duration as Dask has them; of one that the schema has passed. */ -}}
{{- define "dask-tide.seconds" -}}
{{- if kindIs "string" . -}}
  {{- $sizes := dict "ns" 1e-9 "us" 1e-6 "ms" 1e-3 "" 1 "s" 1 "m" 60 "h" 3600 "d" 86400 "w" 604800 }}
  {{- $long := dict "nanosecond" "ns" "microsecond" "us" "millisecond" "ms" "second" "s" "minute" "m" "hour" "h" "day" "d" "week" "w" }}
  {{- $unit := regexFind "[a-z]*$" (lower . | trim) }}
  {{- mulf (regexFind "[0-9.]+" .) (get $sizes (get $long (trimSuffix "s" $unit) | default $unit)) }}
{{- else -}}
  {{- . }}
{{- end }}
{{- end }}

{{- /* What a number, a month or a weekday of a CronJob's time comes to. */ -}}
{{- define "dask-tide.cronNumber" -}}
{{- $names := dict "mon" 1 "tue" 2 "wed" 3 "thu" 4 "fri" 5 "sat" 6 }}
{{- range $index, $name := splitList " " "jan feb mar apr may jun jul aug sep oct nov dec" }}{{ $_ := set $names $name (add1 $index) }}{{ end }}
{{- get $names . | default (atoi .) }}
{{- end }}

{{- /*
  Whether there is no such time zone. `dateInZone` takes UTC for what it does not know; on a machine without a database of
  time zones, that is all of them, and the API server will tell.
*/ -}}
{{- define "dask-tide.isNoZone" -}}
{{- $known := ne (dateInZone "MST" now "Europe/Berlin") "UTC" }}
{{- and $known (eq (dateInZone "MST" now .) "UTC") (not (regexMatch "^(.+/)?(UTC|UCT|Universal|Zulu)$" .)) }}
{{- end }}
