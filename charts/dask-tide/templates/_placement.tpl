{{- /* Where pods go. Takes the component's values. */ -}}
{{- define "dask-tide.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Labels of nodes that may be taken away at short notice, as JSON: Karpenter's, EKS's, the user's by custom. */ -}}
{{- define "dask-tide.spotLabels" -}}
{"karpenter.sh/capacity-type": "spot", "eks.amazonaws.com/capacityType": "SPOT", "node.kubernetes.io/lifecycle": "spot"}
{{- end }}

{{- /* "true" if a pool's nodes may be: what it says, or what it selects or requires. Takes the pool. */ -}}
{{- define "dask-tide.isSpot" -}}
{{- if hasKey . "spot" }}
{{- if .spot }}true{{ end }}
{{- else }}
{{- $pool := . }}
{{- $selected := false }}
{{- $nodes := ($pool.affinity | default dict).nodeAffinity | default dict }}
{{- $required := $nodes.requiredDuringSchedulingIgnoredDuringExecution | default dict }}
{{- range $label, $value := include "dask-tide.spotLabels" . | fromJson }}
{{- if eq (get $pool.nodeSelector $label | toString) $value }}{{ $selected = true }}{{ end }}
{{- range $term := $required.nodeSelectorTerms | default list }}
{{- range $term.matchExpressions | default list }}
{{- if and (eq .key $label) (eq .operator "In") (has $value (.values | default list)) }}{{ $selected = true }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- if $selected }}true{{ end }}
{{- end }}
{{- end }}

{{- /*
  The component's values with an affinity that also keeps off such nodes, unless they say `spot`; as JSON. Nodes that
  do not say what they are will do.
*/ -}}
{{- define "dask-tide.offSpot" -}}
{{- $values := deepCopy . }}
{{- if not $values.spot }}
{{- $ours := list }}
{{- range $label, $value := include "dask-tide.spotLabels" . | fromJson }}
  {{- $ours = append $ours (dict "key" $label "operator" "NotIn" "values" (list $value)) }}
{{- end }}
{{- $affinity := $values.affinity | default dict }}
{{- $nodes := $affinity.nodeAffinity | default dict }}
{{- $required := $nodes.requiredDuringSchedulingIgnoredDuringExecution | default dict }}
{{- /* One of the terms must hold, and all of what it says. */ -}}
{{- $terms := list }}
{{- range $term := $required.nodeSelectorTerms | default (list dict) }}
  {{- $_ := set $term "matchExpressions" (concat ($term.matchExpressions | default list) $ours) }}
  {{- $terms = append $terms $term }}
{{- end }}
{{- $_ := set $nodes "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) }}
{{- $_ := set $affinity "nodeAffinity" $nodes }}
{{- $_ := set $values "affinity" $affinity }}
{{- end }}
{{- toRawJson $values }}
{{- end }}

{{- /*
  The pool with an affinity that also draws its pods to nodes with workers, if it says `packing`; as JSON. The
  constraint counts no pods: where a pod has none at all kube-scheduler has some of its own, which spread it.
*/ -}}
{{- define "dask-tide.packed" -}}
{{- $pool := deepCopy .pool }}
{{- if $pool.packing }}
{{- $labels := include "dask-tide.labels" (dict "root" .root "component" "worker") | fromYaml }}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $labels) }}
{{- $pods := $pool.affinity.podAffinity | default dict }}
{{- $preferred := $pods.preferredDuringSchedulingIgnoredDuringExecution | default list }}
{{- $preferred = append $preferred (dict "weight" 100 "podAffinityTerm" $term) }}
{{- $_ := set $pods "preferredDuringSchedulingIgnoredDuringExecution" $preferred }}
{{- $_ := set $pool.affinity "podAffinity" $pods }}
{{- if not $pool.topologySpreadConstraints }}
  {{- $none := dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway" }}
  {{- $_ := set $pool "topologySpreadConstraints" (list $none) }}
{{- end }}
{{- end }}
{{- toRawJson $pool }}
{{- end }}
