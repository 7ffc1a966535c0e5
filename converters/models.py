"""What llama.cpp calls the models that published SAEs were trained on."""

from __future__ import annotations

import re

# The newest first: a name that two of them match is the former's.
_ARCHITECTURES = (
    (r"qwen-?3\.[56]\S*-a\d+b", "qwen35moe"),
    (r"qwen-?3\.[56]", "qwen35"),
    (r"qwen-?3\S*-a\d+(\.\d+)?b", "qwen3moe"),
    (r"qwen-?3", "qwen3"),
    (r"qwen-?(2|2\.5)(?![\d.])", "qwen2"),
    (r"gemma-?3", "gemma3"),
    (r"gemma-?2(?!b)", "gemma2"),
    (r"gemma-?2b|gemma-?7b|gemma-?1", "gemma"),
    (r"(meta-)?llama-?\d", "llama"),
    (r"gpt-?2", "gpt2"),
    (r"pythia", "gptneox"),
    (r"mistral-7b", "llama"),
)


def architecture_of(base_model: str | None) -> str | None:
    """llama.cpp's name for the architecture of a model on the hub, or None where its name does not tell.

    Whoever uses a pack holds it against the model itself, so a wrong guess is refused there.
    """
    if not base_model:
        return None
    name = base_model.rsplit("/", 1)[-1].lower()
    for pattern, architecture in _ARCHITECTURES:
        if re.search(rf"(?<![a-z0-9]){pattern}", name):
            return architecture
    return None
