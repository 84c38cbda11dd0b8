{{- /* Parts of pods that scheduler, workers and notebook share. */ -}}

{{- define "dask-tide.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "dask-tide.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /*
  A container's environment: of ours what theirs does not say. A name that is there twice no patch can change.
  Takes ours (as text) and theirs.
*/ -}}
{{- define "dask-tide.allEnv" -}}
{{- $theirs := .theirs | default list }}
{{- $names := list }}
{{- range $theirs }}{{ $names = append $names .name }}{{ end }}
{{- $all := list }}
{{- range fromYamlArray .ours }}
  {{- if not (has .name $names) }}{{ $all = append $all . }}{{ end }}
{{- end }}
{{- toYaml (concat $all $theirs) }}
{{- end }}

{{- /* Environment of all containers. */ -}}
{{- define "dask-tide.env" -}}
- {name: HOME, value: /tmp}
{{- if .Values.security.tls.enabled }}
- {name: DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION, value: "true"}
- {name: DASK_DISTRIBUTED__COMM__TLS__CA_FILE, value: /etc/dask-tide-tls/ca.crt}
{{- range $role := list "SCHEDULER" "WORKER" "CLIENT" }}
- {name: DASK_DISTRIBUTED__COMM__TLS__{{ $role }}__CERT, value: /etc/dask-tide-tls/tls.crt}
- {name: DASK_DISTRIBUTED__COMM__TLS__{{ $role }}__KEY, value: /etc/dask-tide-tls/tls.key}
{{- end }}
# Dask reads certificates at its start: new ones make a new pod.
- {name: TLS_CHECKSUM, value: {{ include "dask-tide.tlsChecksum" . | quote }}}
{{- end }}
{{- end }}

{{- /* Where a volume comes from. Helm puts another kind beside the default one. */ -}}
{{- define "dask-tide.volumeSource" -}}
{{- toYaml (gt (len .) 1 | ternary (omit . "emptyDir") .) }}
{{- end }}

{{- define "dask-tide.tlsMount" -}}
{{- if .Values.security.tls.enabled -}}
- {name: tls, mountPath: /etc/dask-tide-tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "dask-tide.tlsVolume" -}}
{{- if .Values.security.tls.enabled -}}
- name: tls
  secret:
    secretName: {{ include "dask-tide.tlsSecret" . | quote }}
    defaultMode: 0440
    {{- /* Somebody's own may hold more, such as the authority's key. */ -}}
    {{- if eq .Values.security.tls.source "secret" }}
    items: [{key: ca.crt, path: ca.crt}, {key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
    {{- end }}
{{- end }}
{{- end }}
