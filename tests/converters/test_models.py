"""Names of published models, and llama.cpp's names for what they are."""

from __future__ import annotations

import pytest

from converters.models import architecture_of


@pytest.mark.parametrize(
    ("base_model", "architecture"),
    [
        ("Qwen/Qwen3-1.7B-Base", "qwen3"),
        ("Qwen/Qwen3-8B", "qwen3"),
        ("Qwen/Qwen3-30B-A3B-Base", "qwen3moe"),
        ("Qwen/Qwen3.5-2B-Base", "qwen35"),
        ("Qwen/Qwen3.5-35B-A3B-Base", "qwen35moe"),
        ("Qwen/Qwen2.5-7B", "qwen2"),
        ("tiny-qwen3", "qwen3"),
        ("google/gemma-2-2b", "gemma2"),
        ("google/gemma-3-1b-pt", "gemma3"),
        ("google/gemma-2b", "gemma"),
        ("meta-llama/Llama-3.1-8B", "llama"),
        ("gpt2-small", "gpt2"),
        ("EleutherAI/pythia-160m", "gptneox"),
        ("someone/new-model", None),
        ("", None),
        (None, None),
    ],
)
def test_architectures(base_model: str | None, architecture: str | None) -> None:
    assert architecture_of(base_model) == architecture
