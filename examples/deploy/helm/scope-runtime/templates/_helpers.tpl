{{- define "scope.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "scope.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "scope.labels" -}}
{{ include "scope.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "scope.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "scope.policies" -}}
{{ .Values.existingPolicies | default (printf "%s-policies" (include "scope.name" .)) }}
{{- end -}}

{{- define "scope.keys" -}}
{{ .Values.keys.existingSecret | default (printf "%s-keys" (include "scope.name" .)) }}
{{- end -}}

{{/* scope.yaml, as a dictionary in YAML. */}}
{{- define "scope.config" -}}
{{- $serve := dict "listen" "0.0.0.0:8080" "keys" "/etc/scope/keys/keys.yaml" "drain_s" .Values.serve.drainSeconds "unready_when_stale" .Values.serve.unreadyWhenStale -}}
{{- with .Values.serve.alias }}{{ $_ := set $serve "alias" . }}{{ end -}}
{{- with .Values.serve.labels }}{{ $_ := set $serve "labels" . }}{{ end -}}
{{- $audit := dict "path" "/var/lib/scope/audit/events.jsonl" "retention_days" .Values.audit.retentionDays -}}
{{- if .Values.audit.signingSecret }}{{ $_ := set $audit "key" "/etc/scope/signing/audit.key" }}{{ end -}}
{{- $model := dict "path" (printf "/models/%s" .Values.model.path) -}}
{{- with .Values.model.ctx }}{{ $_ := set $model "ctx" (int .) }}{{ end -}}
{{- $spec := dict
  "model" $model
  "policy" (dict "path" "/srv/scope/policies" "root" "/srv/scope" "state" "/var/lib/scope/policies" "fail" .Values.fail)
  "control" (dict "socket" "/run/scope/control.sock")
  "serve" (merge $serve .Values.serve.extra)
  "metrics" (dict "listen" "0.0.0.0:9464")
  "audit" $audit -}}
{{- dict "apiVersion" "scope/v1" "kind" "Runtime" "spec" (merge $spec .Values.extraSpec) | toYaml -}}
{{- end -}}

{{/* What no schema can say. */}}
{{- define "scope.check" -}}
{{- if not (or .Values.model.existingClaim .Values.model.hostPath) }}{{ fail "model: give existingClaim or hostPath" }}{{ end -}}
{{- if and .Values.model.existingClaim .Values.model.hostPath }}{{ fail "model: give existingClaim or hostPath, not both" }}{{ end -}}
{{- if not (or .Values.keys.existingSecret .Values.keys.entries) }}{{ fail "keys: give existingSecret, or entries made by `scope api-key`" }}{{ end -}}
{{- if and .Values.keys.existingSecret .Values.keys.entries }}{{ fail "keys: give existingSecret or entries, not both" }}{{ end -}}
{{- if and (eq .Values.fail "closed") (not (or .Values.policies .Values.existingPolicies)) }}{{ fail "policies: none are given, and fail: closed would not start without" }}{{ end -}}
{{- if and .Values.policies .Values.existingPolicies }}{{ fail "policies: give policies or existingPolicies, not both" }}{{ end -}}
{{- end -}}
