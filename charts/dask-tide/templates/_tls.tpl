{{- define "dask-tide.tlsSecret" -}}
{{- if eq .Values.security.tls.source "secret" -}}
{{ .Values.security.tls.secretName }}
{{- else -}}
{{ .Release.Name }}-tls
{{- end }}
{{- end }}

{{- define "dask-tide.rotate" -}}
{{ include "dask-tide.text" .Values.security.tls.rotate }}
{{- end }}

{{- /*
  Certificates as JSON, with the keys and the encoding of a Secret. Those that exist are kept, unless
  security.tls.rotate has changed. They are random, so they are made once per rendering and kept in .Values.
*/ -}}
{{- define "dask-tide.certificates" -}}
{{- if not (hasKey .Values "certificates_") }}
  {{- $tls := .Values.security.tls }}
  {{- $existing := lookup "v1" "Secret" .Release.Namespace (printf "%s-tls" .Release.Name) | default dict }}
  {{- $made := dict }}
  {{- range $key := list "ca.crt" "tls.crt" "tls.key" }}
    {{- with dig "data" $key "" $existing }}{{ $_ := set $made $key . }}{{ end }}
  {{- end }}
  {{- if or (lt (len $made) 3) (ne (include "dask-tide.rotate" .) (dig "metadata" "annotations" "dask-tide/rotate" "" $existing)) }}
    {{- $service := printf "%s-scheduler" .Release.Name }}
    {{- $inside := printf "%s.%s" $service .Release.Namespace }}
    {{- $names := list $service $inside (printf "%s.svc" $inside) (printf "%s.svc.cluster.local" $inside) "localhost" }}
    {{- $days := int $tls.validityDays }}
    {{- $ca := genCAWithKey (printf "%s-ca" .Release.Name) $days (genPrivateKey "ecdsa") }}
    {{- $leaf := genSignedCertWithKey $service (list "127.0.0.1") $names $days $ca (genPrivateKey "ecdsa") }}
    {{- $made = dict "ca.crt" (b64enc $ca.Cert) "tls.crt" (b64enc $leaf.Cert) "tls.key" (b64enc $leaf.Key) }}
  {{- end }}
  {{- $_ := set .Values "certificates_" $made }}
{{- end }}
{{- toRawJson .Values.certificates_ }}
{{- end }}

{{- /* Changes when certificates do. What a Secret of somebody else's holds is not known here. */ -}}
{{- define "dask-tide.tlsChecksum" -}}
{{- if eq .Values.security.tls.source "generated" -}}
{{ get (include "dask-tide.certificates" . | fromJson) "tls.crt" | b64dec | sha256sum | trunc 10 }}
{{- else -}}
{{ include "dask-tide.rotate" . | sha256sum | trunc 10 }}
{{- end }}
{{- end }}
