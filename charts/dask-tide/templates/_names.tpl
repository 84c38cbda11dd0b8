{{- /* Names, labels, images: what several components say alike. */ -}}

{{- define "dask-tide.labels" -}}
app.kubernetes.io/name: dask-tide
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .pool }}
dask-tide/pool: {{ . | quote }}
{{- end }}
{{- end }}

{{- /* Text that may be given as a number. Helm keeps those as floats: 20261123 would become 2.0261123e+07. */ -}}
{{- define "dask-tide.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ toRawJson . }}{{ end }}
{{- end }}

{{- define "dask-tide.image" -}}
{{ .Values.image.repository }}:{{ include "dask-tide.text" (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}

{{- define "dask-tide.address" -}}
{{ ternary "tls" "tcp" .Values.security.tls.enabled }}://{{ .Release.Name }}-scheduler:8786
{{- end }}

{{- /* Path below which the dashboard serves: "" or "/dask". */ -}}
{{- define "dask-tide.prefix" -}}
{{- if .Values.ingress.enabled }}{{ trimSuffix "/" .Values.ingress.path }}{{ end }}
{{- end }}

{{- /* Full name of a priority class that may be said by its short name. Takes root and name. */ -}}
{{- define "dask-tide.priorityClass" -}}
{{- if hasKey .root.Values.priorityClasses .name -}}
{{ .root.Release.Namespace }}.{{ .root.Release.Name }}.{{ .name }}
{{- else -}}
{{ .name }}
{{- end }}
{{- end }}

{{- /*
  Pools by name, each with the defaults for what it does not say, as JSON. Not by `merge`, to which false and 0
  are nothing.
*/ -}}
{{- define "dask-tide.pools" -}}
{{- $pools := dict }}
{{- range $name, $given := .Values.pools }}
  {{- if not (kindIs "invalid" $given) }}
    {{- $pool := dict }}
    {{- range $layer := list $.Values.poolDefaults $given }}
      {{- range $key, $value := $layer }}
        {{- if not (kindIs "invalid" $value) }}{{ $_ := set $pool $key $value }}{{ end }}
      {{- end }}
    {{- end }}
    {{- $_ := set $pools $name $pool }}
  {{- end }}
{{- end }}
{{- if not $pools }}
  {{- $pool := dict }}
  {{- range $key, $value := .Values.poolDefaults }}
    {{- if not (kindIs "invalid" $value) }}{{ $_ := set $pool $key $value }}{{ end }}
  {{- end }}
  {{- $_ := set $pools "default" $pool }}
{{- end }}
{{- toRawJson $pools }}
{{- end }}
