"""docs/audit.md: every command on the page is run, in its order."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from scope_runtime import Runtime
from scope_runtime.audit import AuditLog, AuditOptions
from scope_runtime.audit.segments import LogFiles
from scope_runtime.cli.main import main
from scope_runtime.events import Content
from scope_runtime.policy.model import Keep
from tests.conftest import Tiny
from tests.support.audit_logs import records_of, request


def test_every_command_of_the_page_runs(
    root: Path,
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (root / "docs" / "audit.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\$ scope (.*)$", page, re.MULTILINE)
    assert len(lines) >= 17
    n_records = 0
    shutil.copy(tiny.model, tmp_path / "model.gguf")
    (tmp_path / "policies").mkdir()
    for name in ("pack.gguf", "vector.gguf"):
        shutil.copy(tiny.policy.with_name(name), tmp_path / "policies" / name)
    asks = "  audit: {prompts: keep, outputs: keep}\n"
    (tmp_path / "policies" / "p.yaml").write_text(tiny.policy.read_text() + asks)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        assert main(shlex.split(line)) == 0, line + capsys.readouterr().err
        if "keygen" in line:
            log = AuditLog(AuditOptions("audit.jsonl", key="audit.key"))
            for n in range(4):
                *others, summary = request(n, rule="stay-in-english")
                contents = (
                    Content("prompt", (n,), "why?", Keep.KEEP),
                    Content("output", (n,), f"because {n}", Keep.COMMIT),
                )
                log.write([*others, replace(summary, contents=contents)])
            log.close()
            Path("answer.txt").write_text("because 1")
            signed = AuditOptions("audit.jsonl", key="audit.key")
            with Runtime("model.gguf", "policies", audit=signed, n_ctx=128, n_threads=1) as runtime:
                runtime.generate([5, 17, 33], max_tokens=4, temperature=0.0, request_id="r7")
            n_records = len(records_of(LogFiles(Path("audit.jsonl"))))
            shutil.copy("audit.checkpoint", "kept.checkpoint")
    out = capsys.readouterr().out
    n = n_records
    assert f"sound, {n} records in 1 segments, {n} of {n} signed by example.com/llm/audit" in out
    assert "reproduced, all 4 tokens" in out
    assert '"reproduced": true' in out
    assert "record 2 is in example.com/llm/audit" in out
    assert '        prompt: "why?"\n        output: (only its commitment is kept)\n' in out
    assert "output: the one on record" in out
    assert "2 prompts and outputs of 1 requests erased" in out
    assert "6 prompts and outputs of 3 requests erased" in out


def test_the_page_names_every_option(root: Path) -> None:
    page = (root / "docs" / "audit.md").read_text(encoding="utf-8")
    for name in AuditOptions.__dataclass_fields__:
        assert f"`{name}`" in page or name in ("path", "queue_records"), name
