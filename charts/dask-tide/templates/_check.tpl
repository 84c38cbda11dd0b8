{{- /* What the schema cannot say. Python's twin is dask_tide.providers.kubernetes.manifests.values. */ -}}
{{- define "dask-tide.check" -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]{0,34}[a-z0-9])?$" .Release.Name) }}
  {{- fail (printf "release name %q: expected lower-case letters, digits and '-', beginning with a letter, 36 characters at the most (Kubernetes cuts names of pods: <release>-<pool> may have 57)" .Release.Name) }}
{{- end }}
{{- range $name, $pool := include "dask-tide.pools" . | fromJson }}
  {{- if not (regexMatch "^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$" $name) }}
    {{- fail (printf "pools.%s: expected as a name lower-case letters, digits and '-', not '-' at an end, 20 characters at the most (Kubernetes cuts names of pods: <release>-<pool> may have 57)" $name) }}
  {{- end }}
  {{- if gt (int $pool.minimum) (int $pool.maximum) }}
    {{- fail (printf "pools.%s.minimum: got %d, expected at most maximum, which is %d" $name (int $pool.minimum) (int $pool.maximum)) }}
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
    {{- $time := printf "%s %s" $entry.at ($entry.timeZone | default "Etc/UTC") }}
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
{{- if and (.Values.tide | default dict).options (not .Values.nodes.read) }}
  {{- if .Values.tide.options.prices }}
    {{- fail "tide.options.prices: expected nothing without nodes.read=true, as nodes say of which type they are" }}
  {{- end }}
{{- end }}
{{- with .Values.security.tls }}
  {{- if and .enabled (eq .source "secret") (not .secretName) }}
    {{- fail "security.tls.secretName: expected the name of a Secret, since security.tls.source is secret" }}
  {{- end }}
{{- end }}
{{- end }}
