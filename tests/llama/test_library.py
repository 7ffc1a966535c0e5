"""Which came first, llama_cpp or the hook: both ways steer alike, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT, Tiny

PROGRAM = """
import json, sys
if sys.argv[1] == "late":
    import llama_cpp
from scope_runtime import Runtime
with Runtime(sys.argv[2], sys.argv[3], n_ctx=256, n_ubatch=4, n_threads=1) as rt:
    answer = rt.generate([5, 17, 33, 80, 41, 60, 77, 9, 8, 7, 6], max_tokens=12, temperature=0.0)
    again = rt.generate([5, 17, 33, 80, 41, 60, 77, 9, 8, 7, 6], max_tokens=12, temperature=0.0)
    rt.set_policy(None)
    unsteered = rt.generate([5, 17, 33, 80, 41, 60], max_tokens=12, temperature=0.0)
    print(json.dumps({
        "columns": rt.proof.columns,
        "words": " ".join(rt.proof.words),
        "tokens": [answer.tokens, again.tokens, unsteered.tokens],
        "reused": again.n_reused,
        "rules": [
            [e.rule, e.detail["n_tokens"], e.detail["n_fired"], e.detail["dose"]]
            for e in answer.report if e.what == "rule"
        ],
    }))
"""


@pytest.fixture(scope="module")
def seen(tiny: Tiny) -> dict[str, dict[str, Any]]:
    out = {}
    for order in ("early", "late"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, order, str(tiny.model), str(tiny.policy)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        out[order] = json.loads(done.stdout)
    return out


def test_without_the_columns_one_sequence_is_steered_the_same(
    seen: dict[str, dict[str, Any]],
) -> None:
    assert seen["early"]["columns"]
    assert not seen["late"]["columns"]
    for what in ("tokens", "reused", "rules"):
        assert seen["late"][what] == seen["early"][what], what


def test_what_is_missing_is_said(seen: dict[str, dict[str, Any]]) -> None:
    assert "imported before scope_runtime" in seen["late"]["words"]
