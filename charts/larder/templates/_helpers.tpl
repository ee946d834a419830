{{- define "larder.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Labels of every object. Not managed-by "larder": that is on what the operator makes. */}}
{{- define "larder.labels" -}}
app.kubernetes.io/name: larder
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Labels that the pods of one daemon are selected by; (list $ "operator"). */}}
{{- define "larder.selector" -}}
app.kubernetes.io/name: larder
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "larder.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Tolerations of a daemon that must come before the startup taint goes; (list $ .Values.node.tolerations). */}}
{{- define "larder.tolerations" -}}
{{- $all := index . 1 | default list }}
{{- if (index . 0).Values.startupTaint.enabled }}
{{- $tolerated := false }}
{{- range $all }}{{ if and (not .key) (eq (.operator | default "") "Exists") }}{{ $tolerated = true }}{{ end }}{{ end }}
{{- if not $tolerated }}{{ $all = append $all (dict "key" "larder.dev/not-ready" "operator" "Exists") }}{{ end }}
{{- end }}
{{- with $all -}}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "larder.env" -}}
- name: NODE_NAME
  valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: POD_NAMESPACE
  valueFrom: { fieldRef: { fieldPath: metadata.namespace } }
- name: LARDER_LOG
  value: {{ .Values.logLevel | quote }}
{{- end }}

{{/* Where a daemon gets its certificate, or that it needs none. */}}
{{- define "larder.authority" -}}
{{- if .Values.security.tls -}}
--authority=larder-operator.{{ .Release.Namespace }}.svc:7480
{{- else -}}
--plain
{{- end }}
{{- end }}

{{/* The token by which a pod proves to the operator what it is. */}}
{{- define "larder.authorityToken" -}}
- name: authority
  projected:
    sources:
      - serviceAccountToken: { audience: larder-operator, expirationSeconds: 3600, path: token }
{{- end }}

{{- define "larder.probes" -}}
readinessProbe:
  httpGet: { path: /readyz, port: admin }
  periodSeconds: 2
  timeoutSeconds: 2
livenessProbe:
  httpGet: { path: /healthz, port: admin }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{/* Pod Security "restricted" for a container. */}}
{{- define "larder.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* Pod Security "restricted" for a pod, with the uid that is given. */}}
{{- define "larder.restrictedPod" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
seccompProfile: { type: RuntimeDefault }
{{- end }}
