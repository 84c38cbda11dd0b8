{{- /* Buffers by their pools' names, as JSON; those that are null do not exist. */ -}}
{{- define "dask-tide.buffers" -}}
{{- $buffers := dict }}
{{- range $name, $buffer := .Values.buffer.pools }}
  {{- if not (kindIs "invalid" $buffer) }}{{ $_ := set $buffers $name $buffer }}{{ end }}
{{- end }}
{{- toRawJson $buffers }}
{{- end }}

{{- /* With its value, which Kubernetes does not let one change: another value makes another class. */ -}}
{{- define "dask-tide.placeholderClass" -}}
{{ .Release.Namespace }}.{{ .Release.Name }}.buffer{{ int .Values.buffer.priority }}
{{- end }}

{{- /*
  Spec of a placeholder's pod: it has the room of a pool's unit, where that may run, and does nothing. Takes root,
  pool (with its defaults) and buffer.
*/ -}}
{{- define "dask-tide.placeholder" -}}
{{- $root := .root }}
{{- $pool := .pool -}}
automountServiceAccountToken: false
enableServiceLinks: false
# It ends at once. With 0, kube-scheduler may miss that and leave the worker waiting for 5 minutes
# (kubernetes/kubernetes#141694).
terminationGracePeriodSeconds: 1
priorityClassName: {{ $root.Values.buffer.priorityClassName | default (include "dask-tide.placeholderClass" $root) | quote }}
{{- with $pool.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with (hasKey $pool "imagePullSecrets" | ternary $pool.imagePullSecrets $root.Values.image.pullSecrets) }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "dask-tide.placement" $pool | trim }}
{{- . | nindent 0 }}
{{- end }}
{{- with $pool.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- include "dask-tide.podSecurity" $root | nindent 2 }}
containers:
  - name: placeholder
    image: {{ $root.Values.buffer.image | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    {{- if kindIs "invalid" .buffer.resources }}
    resources: {{- include "dask-tide.workerResources" $pool | nindent 6 }}
    {{- else }}
    resources: {{- toYaml .buffer.resources | nindent 6 }}
    {{- end }}
    securityContext: {{- include "dask-tide.containerSecurity" $root | nindent 6 }}
{{- end }}
