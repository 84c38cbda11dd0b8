{{- /* The scheduler's Dask configuration. JSON is YAML, and looks the same whoever writes it. */ -}}
{{- define "dask-tide.config" -}}
{{- $tide := deepCopy (.Values.tide | default dict) }}
{{- /* The next scheduler, which the Deployment starts, takes over the workers. */ -}}
{{- $options := dict "on-close" "keep" }}
{{- range $key, $value := $tide.options }}{{ $_ := set $options $key $value }}{{ end }}
{{- $_ := set $options "namespace" .Release.Namespace }}
{{- $_ := set $options "annotate" .Values.admission.enabled }}
{{- $_ := set $options "nodes" .Values.nodes.read }}
{{- $_ := set $tide "options" $options }}
{{- $_ := set $tide "provider" "kubernetes" }}
{{- $_ := set $tide "name" .Release.Name }}
{{- $pools := dict }}
{{- range $name, $pool := include "dask-tide.pools" . | fromJson }}
  {{- $entry := pick $pool "threads" "memory" "minimum" "maximum" "price" }}
  {{- $_ := set $entry "resources" $pool.daskResources }}
  {{- if include "dask-tide.isSpot" $pool }}{{ $_ := set $entry "spot" true }}{{ end }}
  {{- with $pool.bootTime }}{{ $_ := set $entry "boot-time" . }}{{ end }}
  {{- $_ := set $pools $name $entry }}
{{- end }}
{{- $_ := set $tide "pools" $pools }}
{{- dict "tide" $tide | toPrettyJson }}
{{- end }}
