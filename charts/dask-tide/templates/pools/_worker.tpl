{{- /* Spec of a worker's pod. Takes root and pool (with its defaults). */ -}}
{{- define "dask-tide.worker" -}}
{{- $root := .root }}
{{- $pool := include "dask-tide.packed" . | fromJson -}}
serviceAccountName: {{ $root.Release.Name }}-worker
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ int $pool.terminationGracePeriodSeconds }}
{{- with $pool.priorityClassName }}
priorityClassName: {{ include "dask-tide.priorityClass" (dict "root" $root "name" .) | quote }}
{{- end }}
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
  - name: worker
    image: {{ $pool.image | default (include "dask-tide.image" $root) | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args:
      - dask
      - worker
      - {{ include "dask-tide.address" $root }}
      - --name
      - $(POD_NAME)
      - --nthreads
      - {{ int $pool.threads | quote }}
      - --memory-limit
      - {{ $pool.memory | quote }}
      {{- with $pool.daskResources }}
      {{- $amounts := list }}
      {{- range $name, $amount := . }}{{ $amounts = append $amounts (printf "%s=%s" $name (toRawJson $amount)) }}{{ end }}
      - --resources
      - {{ join " " $amounts | quote }}
      {{- end }}
      - --local-directory
      - /tmp
      - --no-dashboard
      {{- if $root.Values.serviceMesh.enabled }}
      - --worker-port
      - "8788"
      - --nanny-port
      - "8789"
      {{- end }}
      - --preload-nanny
      - dask_tide.preload
      - --death-timeout
      - "60"
      {{- with $pool.extraArgs }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    env: {{- include "dask-tide.allEnv" (dict "ours" (include "dask-tide.workerEnv" .) "theirs" $pool.env) | nindent 6 }}
    {{- with $pool.envFrom }}
    envFrom: {{- toYaml . | nindent 6 }}
    {{- end }}
    ports:
      - {name: readiness, containerPort: 8790, protocol: TCP}
      {{- if $root.Values.serviceMesh.enabled }}
      {{- $protocol := ternary "tls" "tcp" $root.Values.security.tls.enabled }}
      - {name: {{ $protocol }}-worker, containerPort: 8788, protocol: TCP}
      - {name: {{ $protocol }}-nanny, containerPort: 8789, protocol: TCP}
      {{- end }}
    # The nanny listens there while its worker takes part. No liveness probe: a task in C that keeps the interpreter's
    # lock would fail it.
    readinessProbe:
      tcpSocket: {port: readiness}
      periodSeconds: 1
      failureThreshold: 1
    resources: {{- include "dask-tide.workerResources" $pool | nindent 6 }}
    securityContext: {{- include "dask-tide.containerSecurity" $root | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- with include "dask-tide.tlsMount" $root }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with $pool.volumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    {{- include "dask-tide.volumeSource" $pool.scratch | nindent 4 }}
  {{- with include "dask-tide.tlsVolume" $root }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $pool.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "dask-tide.workerEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}
- {name: DASK_TIDE__READINESS__PORT, value: "8790"}
{{- /* Leaves a quarter of the grace period for closing. */}}
- {name: DASK_TIDE__DEPARTURE__TIMEOUT, value: {{ div (mul .pool.terminationGracePeriodSeconds 3) 4 }}s}
{{- range $key, $value := (.root.Values.tide | default dict).interruption }}
{{- if not (kindIs "invalid" $value) }}
- {name: DASK_TIDE__INTERRUPTION__{{ upper $key }}, value: {{ kindIs "string" $value | ternary $value (toRawJson $value) | quote }}}
{{- end }}
{{- end }}
{{ include "dask-tide.env" .root }}
{{- end }}

{{- /* The pool's own resources on top of what threads and memory say; null takes one away. */ -}}
{{- define "dask-tide.workerResources" -}}
{{- $resources := deepCopy .resources }}
{{- $ours := dict "requests" (dict "cpu" (int .threads | toString) "memory" .memory) "limits" (dict "memory" .memory) }}
{{- range $kind, $amounts := $ours }}
  {{- range $name, $amount := get $resources $kind | default dict }}
    {{- if kindIs "invalid" $amount }}{{ $_ := unset $amounts $name }}{{ else }}{{ $_ := set $amounts $name $amount }}{{ end }}
  {{- end }}
  {{- $_ := set $resources $kind $amounts }}
{{- end }}
{{- toYaml $resources }}
{{- end }}
