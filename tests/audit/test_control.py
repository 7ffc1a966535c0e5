"""The log of a running process, at its control socket."""

from __future__ import annotations

from pathlib import Path

from scope_runtime import Runtime
from scope_runtime.audit.segments import LogFiles
from scope_runtime.audit.verify import verify
from scope_runtime.lifecycle import Options
from scope_runtime.lifecycle.client import ControlClient
from tests.audit.support import Site
from tests.conftest import Scope
from tests.support.audit_logs import records_of


def test_a_running_process_redacts_its_own_log(site: Site, tmp_path: Path, scope: Scope) -> None:
    site.policy.write_text(site.text + "  audit: {prompts: keep, outputs: keep}\n")
    socket, log = tmp_path / "control.sock", tmp_path / "log.jsonl"
    quiet = Options(poll_s=600.0, events=False)
    with Runtime(
        site.model, site.policy, watch=quiet, control=socket, audit=log, n_ctx=256, n_threads=1
    ) as runtime:
        for name in ("a", "b"):
            runtime.generate([5, 17, 33], max_tokens=2, request_id=name)
        held = scope("audit", "redact", log, "--request", "a", "-r", "asked to")
        assert held.returncode == 1
        assert "is being written already; found process" in held.stderr
        ask = ("audit", "redact", "--control", socket, "--request")
        done = scope(*ask, "a", "-r", "asked to")
        assert done.stdout == "2 prompts and outputs of 1 requests erased\n", done.stderr
        again = scope(*ask, "a", "-r", "asked to")
        assert again.returncode == 1
        assert "nothing is kept of what is to be redacted" in again.stderr
        runtime.generate([5, 17, 33], max_tokens=2, request_id="c")
        with ControlClient(socket) as client:
            said = client.get("/health")
        assert said["status"] == "alive"
        assert said["audit"]["records_written"] == runtime.audit.status.records_written  # type: ignore[union-attr]
        assert said["audit"]["failing_since"] is None
    report = verify(LogFiles(log))
    assert report.bad is None
    assert report.contents is not None
    assert (report.contents.n_kept, report.contents.n_redacted) == (4, 2)
    [note] = [r for r in records_of(LogFiles(log)) if r["what"] == "redacted"]
    assert note["actor"].startswith("uid ")
