"""Looking inside: which features a behaviour hangs on."""

from scope_runtime.inspect.find import Found, FoundFeature, TokenInContext, encode_kinds, find
from scope_runtime.inspect.rank import Criteria, RankedFeature, Ranking, rank
from scope_runtime.inspect.sample import Pool, Pooled, Sample
from scope_runtime.inspect.snippet import RuleKind, Snippet, snippet, taken
from scope_runtime.inspect.vocabulary import OutputHead, Push

__all__ = [
    "Criteria",
    "Found",
    "FoundFeature",
    "OutputHead",
    "Pool",
    "Pooled",
    "Push",
    "RankedFeature",
    "Ranking",
    "RuleKind",
    "Sample",
    "Snippet",
    "TokenInContext",
    "encode_kinds",
    "find",
    "rank",
    "snippet",
    "taken",
]
