"""The control channel as an operator meets it: commands against a running process."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from pathlib import Path

import httpx
import pytest

from scope_runtime.errors import UsageError
from scope_runtime.lifecycle import Options
from scope_runtime.lifecycle.client import ControlClient, ControlError
from scope_runtime.lifecycle.listen import unix_socket
from scope_runtime.policy import load_policy, policy_revision
from tests.conftest import Scope
from tests.lifecycle.conftest import PROMPT, Site

QUIET = Options(poll_s=600.0, events=False)


def socket_of(site: Site) -> Path:
    return site.folder.parent / "control.sock"


def revision(site: Site) -> str:
    return policy_revision(load_policy(site.policy))


def test_the_socket_is_its_owners_alone_and_goes_with_the_process(site: Site) -> None:
    with site.running(QUIET):
        assert stat.S_IMODE(socket_of(site).stat().st_mode) == 0o600
    assert not socket_of(site).exists()


def test_a_socket_that_somebody_serves_at_is_not_taken_over(site: Site) -> None:
    with site.running(QUIET):
        with pytest.raises(
            UsageError, match=r"the control socket cannot be made; .* another process"
        ):
            unix_socket(socket_of(site))
        assert socket_of(site).is_socket()


def test_a_socket_is_made_without_a_moment_of_another_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask is the process's: a state directory that is made in that moment could not be entered."""
    masks: list[int] = []
    before = os.umask(0)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", masks.append)
            made = unix_socket(tmp_path / "control.sock")
    finally:
        os.umask(before)
    with made:
        assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o600
    assert not masks


def test_what_is_no_socket_is_left_alone_and_said(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("mine")
    with pytest.raises(
        UsageError, match="the control socket cannot be made; found a file"
    ) as caught:
        unix_socket(path)
    assert "another process" not in str(caught.value)
    assert path.read_text() == "mine"


def fault(client: ControlClient, path: str) -> str:
    with pytest.raises(ControlError) as caught:
        client.get(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            httpx.Response(500, text="Internal Server Error"),
            "fails; found 500 Internal Server Error",
        ),
        (httpx.ReadTimeout("timed out"), "no answer in 0.5 s. It may still be done"),
    ],
    ids=["fault", "slow"],
)
def test_an_answer_that_is_none_is_not_called_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch, answer: httpx.Response | Exception, message: str
) -> None:
    def send(*_: object, **__: object) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    socket_of(site).parent.mkdir(exist_ok=True)
    with (
        contextlib.closing(unix_socket(socket_of(site))),
        ControlClient(socket_of(site), timeout_s=0.5) as client,
    ):
        monkeypatch.setattr(httpx.Client, "send", send)
        assert message in fault(client, "/health")


def test_who_may_not_look_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with ControlClient(tmp_path / "control.sock") as client:
        monkeypatch.setattr(Path, "stat", forbidden)
        monkeypatch.setattr(Path, "is_socket", forbidden)
        assert "control.sock: nobody answers at the control socket; found Permission" in fault(
            client, "/health"
        )


def test_a_socket_that_a_dead_process_left_is_replaced(site: Site) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(socket_of(site)))
    with site.running(QUIET), ControlClient(socket_of(site)) as client:
        assert client.get("/health") == {"status": "alive"}


def test_behaviour_15_a_post_a_signal_and_a_file_give_one_answer(site: Site, scope: Scope) -> None:
    """The post blocks and returns the error; the others leave the same one in the status."""
    control = ("--control", socket_of(site))
    with site.running(QUIET) as runtime:
        good = runtime.hosted.lifecycle.revision
        site.replace(site.text.replace("mute: [one, two]", "mute: [one, tow]"))
        posted = scope("reload", *control)
        assert posted.returncode == 1
        assert f"error: {site.policy}:10:33: unknown feature" in posted.stderr
        with ControlClient(socket_of(site)) as client:
            ready = client.get("/ready")
        assert (ready["ready"], ready["refused"], ready["off"]) == (True, True, False)
        said = json.loads(scope("status", "--json", *control).stdout)
        assert not said["success"]
        assert said["revision"] == good
        assert posted.stderr.strip() == f"error: {said['last_reload']['text']}"
        site.replace(site.text.replace("mute: [one, two]", "mute: [one, tow] "))
        assert runtime.hosted.lifecycle.follow()
        by_file = json.loads(scope("status", "--json", *control).stdout)["last_reload"]
        assert by_file["trigger"] == "file"
        assert by_file["error"] == said["last_reload"]["error"]


def test_reload_rollback_and_status_by_command(site: Site, scope: Scope) -> None:
    control = ("--control", socket_of(site))
    with site.running(QUIET) as runtime:
        first = runtime.hosted.lifecycle.revision
        site.replace(site.text_with("0.25", generation=2, owner="ops"))
        planned = json.loads(scope("plan", "--json", *control).stdout)
        assert (planned["changed"], planned["planned"]) == (["tiny"], revision(site))
        done = scope("reload", "-r", "softer", *control)
        assert done.stdout == f"{revision(site)} in force\n"
        assert scope("reload", *control).stdout == f"{revision(site)} in force already\n"
        swapped = [e for e in runtime.events() if e.what == "swapped"][-1].record()
        assert (swapped["actor"], swapped["reason"]) == (f"uid {os.getuid()}", "softer")
        stale = scope("rollback", "--if-match", first, *control)
        assert stale.returncode == 1
        assert "another revision is loaded by now" in stale.stderr
        back = scope("rollback", "--to", first, "-r", "too soft", *control)
        assert back.stdout == f"{first} in force\n"
        shown = scope("status", *control).stdout
        assert f"in force  {first} (waits for its first token)" in shown
        assert "rolled back: held until" in shown
        runtime.generate(PROMPT, max_tokens=1)
        assert f"in force  {first} (acknowledged)" in scope("status", *control).stdout


def test_off_and_on_by_command(site: Site, scope: Scope) -> None:
    control = ("--control", socket_of(site))
    with site.running(QUIET) as runtime:
        assert (
            f"by uid {os.getuid()}: incident 7" in scope("off", "-r", "incident 7", *control).stdout
        )
        assert runtime.generate(PROMPT, max_tokens=1).revisions[0].revision == "none"
        metrics = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_of(site))))
        with metrics:
            text = metrics.get("http://scope/metrics").text
        assert "scope_steering_off 1.0\n" in text
        assert "OFF" not in scope("on", *control).stdout
        assert runtime.generate(PROMPT, max_tokens=1).revisions[0].revision == revision(site)


def test_behaviour_18_a_stale_if_match_is_a_412(site: Site) -> None:
    transport = httpx.HTTPTransport(uds=str(socket_of(site)))
    with site.running(QUIET) as runtime, httpx.Client(transport=transport) as http:
        etag = http.get("http://scope/-/policies").headers["ETag"]
        assert etag == f'"{runtime.hosted.lifecycle.revision}"'
        site.replace(site.text_with("0.25"))
        assert http.post("http://scope/-/reload", headers={"If-Match": etag}).status_code == 200
        assert http.post("http://scope/-/reload", headers={"If-Match": etag}).status_code == 412
        assert http.post("http://scope/-/reload", headers={"If-Match": "*"}).status_code == 200
        whats = [event["what"] for event in http.get("http://scope/-/events?last=2").json()]
        assert "swapped" in whats
        assert http.get("http://scope/ready").json()["ready"]


def test_who_asks_nobody_is_told_so(scope: Scope, tmp_path: Path) -> None:
    done = scope("status", "--control", tmp_path / "none.sock")
    assert done.returncode == 1
    assert "none.sock: nobody answers at the control socket" in done.stderr
    with ControlClient(tmp_path / "none.sock") as client, pytest.raises(ControlError):
        client.get("/health")
