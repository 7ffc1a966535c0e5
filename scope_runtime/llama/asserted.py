"""What llama.cpp asserts of a model's keys while it loads: where one fails, the process aborts.

From ``llama_model_base::load_hparams`` (``llama-model.cpp``) and ``llama_vocab::impl::load``
(``llama-vocab.cpp``). What it merely refuses is left to it.
"""

from __future__ import annotations

from collections import Counter

from scope_runtime.gguf_values import Keys

MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
TOKENS = "tokenizer.ggml.tokens"
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_EXPERTS_USED = "expert_used_count"


def is_asserted(key: str) -> bool:
    """Whether the array of this key is looked at here, and so must be kept."""
    return key == TOKENS or key.endswith(f".{_EXPERTS_USED}")


def check_asserted(keys: Keys, architecture: str) -> None:
    """Raise the keys' own error where llama.cpp would abort."""
    _check_blocks(keys, architecture)
    _check_experts(keys, architecture)
    _check_vocabulary(keys)
    _check_rope(keys, architecture)


def _check_rope(keys: Keys, architecture: str) -> None:
    scaling = keys.optional_text(f"{architecture}.rope.scaling.type")
    if scaling is not None and scaling not in ROPE_SCALINGS:
        keys.fail(
            "unknown type of RoPE scaling",
            found=repr(scaling)[:80],
            expected=", ".join(ROPE_SCALINGS),
        )
    n_rot = keys.optional_integer(f"{architecture}.rope.dimension_count") or 0
    # A head is rarely wider than the model, and never when its width is not given.
    widest = max(
        keys.integer(f"{architecture}.embedding_length"),
        keys.optional_integer(f"{architecture}.attention.key_length") or 0,
    )
    if not 0 <= n_rot <= widest:
        keys.fail("RoPE is wider than a head", found=str(n_rot), expected=f"at most {widest}")


def _check_blocks(keys: Keys, architecture: str) -> None:
    n_block = keys.integer(f"{architecture}.block_count")
    n_mtp = keys.optional_integer(f"{architecture}.nextn_predict_layers") or 0
    if not 1 <= n_block <= MAX_BLOCKS:
        keys.fail(
            "the number of blocks is absurd", found=str(n_block), expected=f"1 to {MAX_BLOCKS}"
        )
    if not 0 <= n_mtp < n_block:
        keys.fail(
            "no block is left beside those for multi-token prediction",
            found=f"{n_mtp} of {n_block}",
            expected=f"at most {n_block - 1}",
        )


def _check_experts(keys: Keys, architecture: str) -> None:
    n_experts = keys.optional_integer(f"{architecture}.expert_count") or 0
    n_groups = keys.optional_integer(f"{architecture}.expert_group_count") or 0
    n_groups_used = keys.optional_integer(f"{architecture}.expert_group_used_count") or 0
    used_key = f"{architecture}.{_EXPERTS_USED}"
    per_layer = isinstance(keys.header.values.get(used_key), tuple)
    n_used = (
        max(keys.integers(used_key), default=0)
        if per_layer
        else keys.optional_integer(used_key) or 0
    )
    if n_experts <= 1 and architecture in ("hunyuan_vl", "hunyuan-dense"):
        return  # dense models that say they have one expert; llama.cpp makes it none
    sound = 0 <= n_used <= n_experts <= MAX_EXPERTS and (n_used > 0) == (n_experts > 0)
    if n_groups > 1:
        sound = sound and n_experts % n_groups == 0 and 0 < n_groups_used < n_groups
    if not sound or (n_groups and n_groups >= n_experts):
        keys.fail(
            "the numbers of experts do not go together",
            found=f"{n_used} of {n_experts} used, {n_groups_used} of {n_groups} groups",
        )


def _check_vocabulary(keys: Keys) -> None:
    tokens = keys.texts(TOKENS)
    if tokens is None:
        return
    texts = [token for token in tokens if token]  # llama.cpp gives each empty one a name
    if len(set(texts)) != len(texts):
        twice = Counter(texts).most_common(1)[0][0]
        keys.fail("the vocabulary has a token twice", found=ascii(twice)[:80])
    for name in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        length = keys.header.array_lengths.get(name, len(tokens))
        if length < len(tokens):
            keys.fail(
                f"{name} is shorter than the vocabulary",
                found=f"{length} elements",
                expected=f"at least {len(tokens)}",
            )
