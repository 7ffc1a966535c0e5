"""A short run of ``scripts/fuzz_converters``: damaged files are read or refused, and nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.converter_fuzz import FORMATS, Result, cut, fuzz

N_COPIES = 30


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    result = fuzz(name, tmp_path, n=N_COPIES, seed=1)
    assert result.wrong == []
    assert result.outcomes[name, "refused"] > N_COPIES // 10


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(FORMATS)), share=st.floats(0, 1), zeros=st.booleans())
def test_a_file_that_was_cut_is_refused(name: str, share: float, zeros: bool) -> None:
    """Shortened, or as a disk leaves it that was full: zeros from some place on. Both files of a pair."""
    with tempfile.TemporaryDirectory() as folder:
        result: Result = cut(name, Path(folder), share, zeros=zeros)
    assert result.wrong == []
    assert zeros or result.outcomes[name, "read"] == 0
