"""Every name that we give to OpenTelemetry, in one table.

``gen_ai.*`` and ``error.*`` are those of the semantic conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/), ``scope.*`` are ours. What a request says and what it is answered
have no name here: contents never leave the process this way.
"""

from __future__ import annotations

from typing import NamedTuple

PROVIDER = "llama.cpp"
OPERATION = "text_completion"
EMBEDDING_OPERATION = "embeddings"
TOKEN_BUCKETS = tuple(float(4**n) for n in range(14))


class Name(NamedTuple):
    """A row of the table: a name, what bears it, what it says."""

    name: str
    on: str
    what: str


_rows: list[Name] = []


def _name(name: str, on: str, what: str) -> str:
    """Puts a name into the table."""
    _rows.append(Name(name, on, what))
    return name


_BOTH, _SPAN, _EVENT, _METRIC, _COUNT = (
    "spans, metrics",
    "spans",
    "events of a span",
    "histogram",
    "counter",
)

OPERATION_NAME = _name(
    "gen_ai.operation.name",
    _BOTH,
    f"`{OPERATION}`: the engine continues tokens; `{EMBEDDING_OPERATION}`",
)
PROVIDER_NAME = _name("gen_ai.provider.name", _BOTH, f"`{PROVIDER}`")
REQUEST_MODEL = _name("gen_ai.request.model", _BOTH, "the model file's name, without its ending")
ERROR_TYPE = _name("error.type", _BOTH, "`_OTHER`, on requests that ended in an error")
RESPONSE_ID = _name("gen_ai.response.id", _SPAN, "the request's id, as in the audit log")
FINISH_REASONS = _name("gen_ai.response.finish_reasons", _SPAN, "one: `stop`, `length`, `abort`, …")
INPUT_TOKENS = _name("gen_ai.usage.input_tokens", _SPAN, "tokens of the prompt")
CACHED_TOKENS = _name(
    "gen_ai.usage.cache_read.input_tokens", _SPAN, "those that came from an earlier request"
)
OUTPUT_TOKENS = _name("gen_ai.usage.output_tokens", _SPAN, "tokens of the answer")
MAX_TOKENS = _name("gen_ai.request.max_tokens", _SPAN, "most tokens of the answer")
TEMPERATURE = _name("gen_ai.request.temperature", _SPAN, "0 is greedy")
TOP_K = _name("gen_ai.request.top_k", _SPAN, "how many tokens are drawn from")
TOP_P = _name("gen_ai.request.top_p", _SPAN, "which share of the probability is drawn from")
SEED = _name("gen_ai.request.seed", _SPAN, "the one that was used")
MODEL_DIGEST = _name("scope.model.digest", _SPAN, "of the model file")
REVISIONS = _name("scope.revisions", _SPAN, "policy revisions that it was computed under, in order")
RULES = _name("scope.rules", _SPAN, "rules that acted, as `policy/rule`")
EXEMPTED = _name("scope.rules.exempted", _SPAN, "rules that an exception took from it")
DOSE = _name("scope.dose.max", _SPAN, "the highest dose of any rule")
ALERT_EVENT = _name(
    "scope.alert", _EVENT, "its name: an alert began or ceased to fire, the dose limit acted"
)
STATE = _name("scope.alert.state", f"{_EVENT}, metrics", "`firing`, `resolved` or `dose-excess`")
SEVERITY = _name("scope.alert.severity", f"{_EVENT}, metrics", "the policy's")
POSITION = _name("scope.position", _EVENT, "of the token")
POLICY = _name("scope.policy", f"{_EVENT}, metrics", "the policy's name")
RULE = _name("scope.rule", f"{_EVENT}, metrics", "the rule's name")
OP = _name("scope.op", "metrics", "what the rule does: `mute`, `amplify`, …")
MODE = _name("scope.mode", "metrics", "`enforce` or `audit`")
TOKEN_TYPE = _name("gen_ai.token.type", "metrics", "`input` or `output`")
TOKEN_USAGE = _name("gen_ai.client.token.usage", _METRIC, "tokens of prompts and answers")
DURATION = _name("gen_ai.server.request.duration", _METRIC, "seconds, waiting included")
FIRST_TOKEN = _name("gen_ai.server.time_to_first_token", _METRIC, "seconds, waiting included")
PER_TOKEN = _name("gen_ai.server.time_per_output_token", _METRIC, "seconds, after the first")
INTERVENTIONS = _name("scope.interventions", _COUNT, "tokens at which a rule acted")
ALERTS = _name("scope.alerts", _COUNT, "times that an alert began or ceased to fire")

REQUEST_PARAMETERS = {
    "max_tokens": MAX_TOKENS,
    "temperature": TEMPERATURE,
    "top_k": TOP_K,
    "top_p": TOP_P,
    "seed": SEED,
}
"""By their names in ``sampling`` of a request's record."""

TABLE = tuple(_rows)
