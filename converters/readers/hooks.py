"""Where in the model an SAE was trained, from the names that its publisher uses.

TransformerLens: ``blocks.N.hook_resid_post`` is the output of block N, ``blocks.N.hook_resid_pre``
its input, that is the output of block N - 1; ``hook_embed`` is the input of block 0. Transformers:
``model.layers.N`` is the output of block N. Everything else (attention, MLP, the residual stream
between the two) is not a place that the runtime measures.
"""

from __future__ import annotations

import re

from converters.probe import Configuration
from scope_runtime.policy.model import EMBEDDING

MAX_LAYER = 1023
_RESIDUAL = re.compile(r"blocks\.(0|[1-9]\d{0,3})\.hook_resid_(pre|post)")
_MODULE = re.compile(
    r"(?:model\.|transformer\.|gpt_neox\.)?(?:layers|h)\.(0|[1-9]\d{0,3})(?:\.output)?"
)
_RMS_MODELS = re.compile(
    r"llama|gemma|qwen|mistral|mixtral|olmo|deepseek|smollm|phi-?3|tinyllama", re.I
)


def place_of(hook: str, configuration: Configuration) -> int:
    """The layer (0-based block whose output it is, or `EMBEDDING`) of a hook point.

    Raises:
        PackError: it is not on the residual stream between two blocks.
    """
    if hook in ("hook_embed", "embed_tokens", "model.embed_tokens"):
        return EMBEDDING
    if match := _RESIDUAL.fullmatch(hook):
        layer = int(match[1]) - (match[2] == "pre")
    elif match := _MODULE.fullmatch(hook):
        layer = int(match[1])
    else:
        configuration.fail(
            f"trained on {_in_words(hook)}, which is not the residual stream after a block",
            found=repr(hook)[:120],
            expected="blocks.N.hook_resid_post or blocks.N.hook_resid_pre",
        )
    if layer > MAX_LAYER:
        configuration.fail("no model has such a layer", found=repr(hook)[:80])
    return layer


def _in_words(hook: str) -> str:
    for part, words in (
        ("resid_mid", "the residual stream between attention and MLP"),
        ("mlp", "an MLP"),
        ("ln", "the output of a norm"),
        ("attn", "attention"),
        ("hook_z", "attention"),
        ("hook_q", "attention"),
        ("attention", "attention"),
    ):
        if part in hook:
            return words
    return "an unknown hook point"


def is_centred(kwargs: Configuration, model: str | None) -> bool:
    """Whether TransformerLens had centred the weights of the model that the SAE was trained on.

    It does so only where it is told to (SAELens tells it not to, unless the configuration says
    otherwise) and only for models with LayerNorm: with RMSNorm centring would change the model, so
    it is skipped there.
    """
    if not kwargs.flag("center_writing_weights", False):
        return False
    return model is None or not _RMS_MODELS.search(model)
