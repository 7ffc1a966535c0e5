"""Every metric that we export, in one table: name, kind, labels, meaning, buckets.

What counts it takes it from here, and docs/observability.md prints it. Label values are names out of policies and
fixed words: never request ids, never a request's labels, so that the number of series is bounded by the policies.
"""

from __future__ import annotations

from dataclasses import dataclass

from scope_runtime.types import StrEnum


class Type(StrEnum):
    """Prometheus' own words."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric; ``group`` is its heading in the docs, ``buckets`` are a histogram's upper bounds."""

    group: str
    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# A dose is the length of a change over the length of the residual: 1 pushes as hard as the model itself. Policies
# that work lie between 0.05 and 0.7 and are capped there, so that is where the bounds are close.
DOSE_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.5, 2.0)
# Activations have no common scale: from model to model they differ by orders of magnitude. Three bounds per decade,
# and 0 by itself: a request in which the feature never was active.
ACTIVATION_BUCKETS = (
    0.0,
    *(step * 10.0**decade for decade in range(-1, 4) for step in (1.0, 2.5, 5.0)),
    10_000.0,
)
# The bounds that the GenAI conventions of OpenTelemetry advise for the same quantities; for the time per token there
# are some below them, where small models are.
FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
PER_TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.75, 1.0, 2.5),
)
DURATION_BUCKETS = tuple(0.01 * 2.0**n for n in range(14))

_RULE = ("policy", "rule", "op", "mode")
_STEERING, _POLICIES, _ALERTS = "Steering", "Policies", "Alerts"
_SERVING, _HOOK, _AUDIT, _DRIFT = "Serving", "Hook", "Audit log", "Drift"

INTERVENTIONS = Family(
    _STEERING,
    "scope_interventions_total",
    Type.COUNTER,
    "Tokens at which a rule acted; in mode audit, at which it would have.",
    _RULE,
)
LIMITED = Family(
    _STEERING,
    "scope_interventions_limited_total",
    Type.COUNTER,
    "Those of them at which the dose limit made it act less.",
    _RULE,
)
RULE_TOKENS = Family(
    _STEERING,
    "scope_rule_tokens_total",
    Type.COUNTER,
    "Tokens at which a rule was in scope, whether it acted or not.",
    _RULE,
)
ACTIVATION = Family(
    _STEERING,
    "scope_rule_activation",
    Type.HISTOGRAM,
    "A rule's highest activation in a request; a mean would be mostly of zeros.",
    ("policy", "rule"),
    ACTIVATION_BUCKETS,
)
DOSE = Family(
    _STEERING,
    "scope_rule_dose",
    Type.HISTOGRAM,
    "A rule's highest dose in a request in which it acted: what limits.dose caps.",
    ("policy", "rule", "mode"),
    DOSE_BUCKETS,
)
DOSE_EXCESS = Family(
    _STEERING,
    "scope_dose_excess_requests_total",
    Type.COUNTER,
    "Requests in which the dose limit acted, whatever it does then.",
)
LEFT_OUT = Family(
    _STEERING,
    "scope_rules_left_out_total",
    Type.COUNTER,
    "Requests that did not get a rule, by why: selector, rollout or exception.",
    ("policy", "rule", "why"),
)
EXCEPTIONS = Family(
    _STEERING,
    "scope_exceptions_used_total",
    Type.COUNTER,
    "Requests that an exception took a rule from.",
    ("policy", "rule"),
)

OFF = Family(
    _POLICIES, "scope_steering_off", Type.GAUGE, "Whether all steering is switched off (1 or 0)."
)
RELOAD_SUCCESS = Family(
    _POLICIES,
    "scope_policy_reload_success",
    Type.GAUGE,
    "Whether the latest attempt to load the policies went well (1 or 0).",
)
RELOADS = Family(
    _POLICIES,
    "scope_policy_reloads_total",
    Type.COUNTER,
    "Attempts to load the policies, by result: ok or refused.",
    ("result",),
)
LAST_RELOAD = Family(
    _POLICIES,
    "scope_policy_last_reload_timestamp_seconds",
    Type.GAUGE,
    "When the policies were last tried to load; 0 before the first attempt.",
)
HELD = Family(
    _POLICIES,
    "scope_policy_held",
    Type.GAUGE,
    "Whether an older revision was chosen over what lies at the source (1 or 0).",
)
FETCH_SUCCESS = Family(
    _POLICIES,
    "scope_bundle_fetch_success",
    Type.GAUGE,
    "Where policies come as bundles: whether the place could be asked, the last time (1 or 0).",
)
FETCHES = Family(
    _POLICIES,
    "scope_bundle_fetches_total",
    Type.COUNTER,
    "Where policies come as bundles: how often the place was asked, by result: ok or failed.",
    ("result",),
)
LAST_FETCH = Family(
    _POLICIES,
    "scope_bundle_last_fetch_timestamp_seconds",
    Type.GAUGE,
    "Where policies come as bundles: when the place last answered; 0 before the first time.",
)
POLICY_INFO = Family(
    _POLICIES,
    "scope_policy_info",
    Type.GAUGE,
    "The policies that are loaded; always 1.",
    ("policy", "revision"),
)
REVISION_INFO = Family(
    _POLICIES,
    "scope_revision_info",
    Type.GAUGE,
    "The revision that new tokens are computed under, none while there is none; always 1.",
    ("revision",),
)
REVISION_SINCE = Family(
    _POLICIES,
    "scope_revision_timestamp_seconds",
    Type.GAUGE,
    "Since when this process computes under it; its age is time() minus this.",
)
ACKNOWLEDGED = Family(
    _POLICIES,
    "scope_revision_acknowledged",
    Type.GAUGE,
    "Whether the latest token was computed under it (1 or 0); 0 until the first token after a swap.",
)
POLICY_EVENTS = Family(
    _POLICIES,
    "scope_policy_events_total",
    Type.COUNTER,
    "What happened to the policies: swapped, refused, rolled-back, off, on, …",
    ("what",),
)

ALERT_FIRING = Family(
    _ALERTS,
    "scope_alert_firing",
    Type.GAUGE,
    "Requests being answered in which an alert is firing now.",
    ("policy", "rule", "severity"),
)
ALERT_TRANSITIONS = Family(
    _ALERTS,
    "scope_alert_transitions_total",
    Type.COUNTER,
    "Times that an alert began to fire in a request (to=firing) or ceased to before its end (to=resolved).",
    ("policy", "rule", "severity", "to"),
)
ALERTS = Family(
    _ALERTS,
    "scope_alerts",
    Type.GAUGE,
    "Alerts over all requests that are pending or firing now.",
    ("state",),
)
NOTIFICATIONS = Family(
    _ALERTS,
    "scope_alert_notifications_total",
    Type.COUNTER,
    "Notifications that ended: delivered, or dead letters (result=dead).",
    ("receiver", "result"),
)
NOTIFY_FAILED = Family(
    _ALERTS,
    "scope_alert_notify_failures_total",
    Type.COUNTER,
    "Attempts to tell a receiver that came to nothing; most are tried again.",
    ("receiver",),
)
NOTIFY_LIMITED = Family(
    _ALERTS,
    "scope_alert_notify_limited_total",
    Type.COUNTER,
    "Notifications that had to wait for the receiver's rate limit.",
    ("receiver",),
)
NOTIFY_WAITING = Family(
    _ALERTS,
    "scope_alert_notifications_waiting",
    Type.GAUGE,
    "Notifications that are not delivered yet.",
    ("receiver",),
)

REQUESTS = Family(
    _SERVING,
    "scope_requests_total",
    Type.COUNTER,
    "Requests answered, by finish reason: stop, length, abort, cancelled or error.",
    ("finish_reason",),
)
PROCESSING = Family(
    _SERVING, "scope_requests_processing", Type.GAUGE, "Requests being answered now."
)
DEFERRED = Family(
    _SERVING, "scope_requests_deferred", Type.GAUGE, "Requests that wait for their turn."
)
PROMPT_TOKENS = Family(
    _SERVING,
    "scope_prompt_tokens_total",
    Type.COUNTER,
    "Prompt tokens that were computed; those reused from an earlier request are not among them.",
)
REUSED_TOKENS = Family(
    _SERVING,
    "scope_prompt_tokens_reused_total",
    Type.COUNTER,
    "Prompt tokens whose state came from an earlier request.",
)
PROMPT_SECONDS = Family(
    _SERVING,
    "scope_prompt_seconds_total",
    Type.COUNTER,
    "Time spent on prompts, first answer token included.",
)
PREDICTED_TOKENS = Family(
    _SERVING, "scope_tokens_predicted_total", Type.COUNTER, "Answer tokens generated."
)
PREDICTED_SECONDS = Family(
    _SERVING,
    "scope_tokens_predicted_seconds_total",
    Type.COUNTER,
    "Time spent on answer tokens after the first.",
)
FIRST_TOKEN = Family(
    _SERVING,
    "scope_time_to_first_token_seconds",
    Type.HISTOGRAM,
    "From the request to its first answer token, waiting for its turn included.",
    buckets=FIRST_TOKEN_BUCKETS,
)
PER_TOKEN = Family(
    _SERVING,
    "scope_time_per_output_token_seconds",
    Type.HISTOGRAM,
    "Mean time per answer token after the first, of a request.",
    buckets=PER_TOKEN_BUCKETS,
)
DURATION = Family(
    _SERVING,
    "scope_request_duration_seconds",
    Type.HISTOGRAM,
    "From the request to its end; a reader of a stream who is slow makes it longer.",
    buckets=DURATION_BUCKETS,
)

HOOK_SECONDS = Family(
    _HOOK,
    "scope_hook_seconds_total",
    Type.COUNTER,
    "Time inside the native hook: what steering costs.",
)
HOOK_TOKENS = Family(
    _HOOK,
    "scope_hook_tokens_total",
    Type.COUNTER,
    "Tokens that llama.cpp computed with the hook in place.",
)
HOOK_UBATCHES = Family(
    _HOOK, "scope_hook_ubatches_total", Type.COUNTER, "Ubatches that they came in."
)
UNMATCHED = Family(
    _HOOK,
    "scope_hook_unmatched_total",
    Type.COUNTER,
    "Residuals that were not where the program expects them, so that they were not steered.",
)
UNSTEERED = Family(
    _HOOK,
    "scope_hook_unsteered_tokens_total",
    Type.COUNTER,
    "Columns that cannot be steered: images, audio, drafts.",
)
EVENTS_DROPPED = Family(
    _HOOK,
    "scope_events_dropped_total",
    Type.COUNTER,
    "Events that found the hook's ring full: what happened is not on record.",
)

AUDIT_RECORDS = Family(
    _AUDIT, "scope_audit_records_total", Type.COUNTER, "Events that are on the disk."
)
AUDIT_DROPPED = Family(
    _AUDIT, "scope_audit_dropped_total", Type.COUNTER, "Events that the log lost."
)
AUDIT_QUEUED = Family(
    _AUDIT, "scope_audit_queued", Type.GAUGE, "Events that wait to be on the disk."
)
AUDIT_LAG = Family(
    _AUDIT, "scope_audit_lag_seconds", Type.GAUGE, "For how long the oldest of them has waited."
)
AUDIT_FAILING = Family(
    _AUDIT,
    "scope_audit_failing",
    Type.GAUGE,
    "Whether the log cannot be written now (1 or 0): the disk is full, or it failed for good.",
)
AUDIT_FAILING_SINCE = Family(
    _AUDIT,
    "scope_audit_failing_since_timestamp_seconds",
    Type.GAUGE,
    "Since when it cannot; 0 while it can.",
)
AUDIT_FAILED = Family(
    _AUDIT,
    "scope_audit_failed",
    Type.GAUGE,
    "Whether the log takes nothing any more (1 or 0): a failure that only a restart ends.",
)

_DRIFTING = ("policy", "rule")
DRIFT_PSI = Family(
    _DRIFT,
    "scope_drift_psi",
    Type.GAUGE,
    "Population stability index of a rule's measurements against the baseline, at the latest look.",
    _DRIFTING,
)
DRIFT_P = Family(
    _DRIFT,
    "scope_drift_p_value",
    Type.GAUGE,
    "Chance that any rule would differ as much while nothing changed; what lies far above the alarm's level is rough.",
    _DRIFTING,
)
DRIFT_FIRING = Family(
    _DRIFT,
    "scope_drift_firing",
    Type.GAUGE,
    "Whether a rule's features drift (1 or 0).",
    _DRIFTING,
)
DRIFT_REQUESTS = Family(
    _DRIFT,
    "scope_drift_window_requests",
    Type.GAUGE,
    "Requests with the rule in the window, at the latest look; below drift.min_requests it is not judged.",
    _DRIFTING,
)
DRIFT_LOOKS = Family(
    _DRIFT,
    "scope_drift_looks_total",
    Type.COUNTER,
    "Times that the window was held against the baseline.",
)
DRIFT_REFUSED = Family(
    _DRIFT,
    "scope_drift_refused",
    Type.GAUGE,
    "Whether traffic and baseline measure different things, so that nothing is compared (1 or 0).",
)

FAMILIES: tuple[Family, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Family)
)
