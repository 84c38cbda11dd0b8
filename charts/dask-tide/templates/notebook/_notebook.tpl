{{- /*
  The notebook server's token, in the encoding of a Secret: the one that is given, that exists, or a random one, which is
  made once per rendering and kept in .Values, as certificates are.
*/ -}}
{{- define "dask-tide.token" -}}
{{- if not (hasKey .Values "token_") }}
  {{- $existing := lookup "v1" "Secret" .Release.Namespace (printf "%s-notebook" .Release.Name) | default dict }}
  {{- $token := dig "data" "token" "" $existing | default (randAlphaNum 48 | b64enc) }}
  {{- with .Values.notebook.token }}{{ $token = b64enc . }}{{ end }}
  {{- $_ := set .Values "token_" $token }}
{{- end }}
{{- .Values.token_ }}
{{- end }}

{{- define "dask-tide.notebookEnv" -}}
- {name: DASK_SCHEDULER_ADDRESS, value: {{ include "dask-tide.address" . }}}
- name: JUPYTER_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .Values.notebook.existingSecret | default (printf "%s-notebook" .Release.Name) | quote }}, key: token}}
{{ include "dask-tide.env" . }}
{{- end }}
