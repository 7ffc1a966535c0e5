"""Looking inside: what texts light up, what differs, which features a behaviour hangs on, how strong to act on them."""

from scope_runtime.inspect.compare import Comparison, Difference, Gathered, compare, gathered
from scope_runtime.inspect.drawing import write_png
from scope_runtime.inspect.features import FeatureRef
from scope_runtime.inspect.find import find
from scope_runtime.inspect.found import Found, FoundFeature, TokenInContext
from scope_runtime.inspect.heat import Picture, comparison_picture, trace_picture
from scope_runtime.inspect.intervention import Intervention
from scope_runtime.inspect.kinds import Answers, encode_kinds
from scope_runtime.inspect.page import write_page
from scope_runtime.inspect.prepare import Collateral, Contrast
from scope_runtime.inspect.propose import Limits, Proposal, propose
from scope_runtime.inspect.rank import Criteria, RankedFeature, Ranking, rank
from scope_runtime.inspect.reader import Reader
from scope_runtime.inspect.reading import Reading, recorded
from scope_runtime.inspect.sample import Pool, Pooled, Sample
from scope_runtime.inspect.snippet import RuleKind, Snippet, snippet, taken
from scope_runtime.inspect.sweep import Measured, Sweep, sweep
from scope_runtime.inspect.trace import Lit, Trace, trace
from scope_runtime.inspect.vocabulary import OutputHead, Push

__all__ = [
    "Answers",
    "Collateral",
    "Comparison",
    "Contrast",
    "Criteria",
    "Difference",
    "FeatureRef",
    "Found",
    "FoundFeature",
    "Gathered",
    "Intervention",
    "Limits",
    "Lit",
    "Measured",
    "OutputHead",
    "Picture",
    "Pool",
    "Pooled",
    "Proposal",
    "Push",
    "RankedFeature",
    "Ranking",
    "Reader",
    "Reading",
    "RuleKind",
    "Sample",
    "Snippet",
    "Sweep",
    "TokenInContext",
    "Trace",
    "compare",
    "comparison_picture",
    "encode_kinds",
    "find",
    "gathered",
    "propose",
    "rank",
    "recorded",
    "snippet",
    "sweep",
    "taken",
    "trace",
    "trace_picture",
    "write_page",
    "write_png",
]
