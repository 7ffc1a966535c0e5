"""The console's page and routes on the admin listener: what is open, what is not, and what they say."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import httpx
import pytest

from scope_runtime.console.page import FOLDER
from tests.conftest import ROOT
from tests.serve.conftest import ADMIN, USER, Server, furnish, serving

HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}


def policy_of(response: httpx.Response) -> dict[str, set[str]]:
    """A Content-Security-Policy as directives and their sources."""
    parts = [part.split() for part in response.headers["content-security-policy"].split(";")]
    return {name: set(sources) for name, *sources in parts}


def test_the_page_needs_no_key_and_holds_nothing(server: Server) -> None:
    with server.admin(None) as client:
        page = client.get("/console/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert client.get("/").headers["location"] == "/console/"
        assert client.get("/console").headers["location"] == "/console/"
        for path in sorted(FOLDER.rglob("*.*js")):
            answer = client.get(f"/console/{path.relative_to(FOLDER).as_posix()}")
            assert answer.content == path.read_bytes()
            assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
            again = {"if-none-match": answer.headers["etag"]}
            assert client.get(answer.request.url, headers=again).status_code == 304
        for nowhere in (
            "nothing.js",
            "../page.py",
            "%2e%2e/page.py",
            "vendor",
            "vendor/htm.LICENSE",
        ):
            assert client.get(f"/console/{nowhere}").status_code in (401, 404)


def test_the_page_may_run_its_own_files_and_nothing_else(server: Server) -> None:
    with server.admin(None) as client:
        page = client.get("/console/")
    allowed = policy_of(page)
    (inline,) = re.findall(r'<script type="importmap">(.*?)</script>', page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert allowed["default-src"] == {"'none'"}
    assert allowed["script-src"] == {"'self'", f"'sha256-{digest}'"}
    assert all(allowed[name] == {"'self'"} for name in ("style-src", "img-src", "connect-src"))
    for name in ("base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert allowed[name] == {"'none'"}
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["x-content-type-options"] == "nosniff"


def test_no_file_of_the_page_comes_from_elsewhere() -> None:
    for path in FOLDER.rglob("*"):
        if path.suffix in (".js", ".css", ".html"):
            assert not re.findall(r"[\"'(`=]\s*(?:[a-z]+:)?//[^>]", path.read_text("utf-8"))


def test_what_others_wrote_is_what_the_page_of_dependencies_says() -> None:
    said = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    found = sorted((FOLDER / "vendor").glob("*.mjs"))
    assert [path.name for path in found] == ["htm.mjs", "preact-hooks.mjs", "preact.mjs"]
    for path in found:
        assert f"`{path.name}` | `{hashlib.sha256(path.read_bytes()).hexdigest()}`" in said


@pytest.mark.parametrize("key", [None, "wrong", USER])
@pytest.mark.parametrize("path", ["/-/rules", "/-/traffic", "/-/audit", "/-/audit/verify"])
def test_behaviour_26_what_the_page_asks_for_needs_an_admin_key(
    server: Server, key: str | None, path: str
) -> None:
    with server.admin(key) as client:
        assert client.get(path).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
    ],
)
def test_another_sites_page_may_not_ask_even_with_the_key(
    server: Server, headers: dict[str, str]
) -> None:
    with server.admin() as client:
        assert client.post("/-/reload", headers=headers).status_code == 403
        own = {"sec-fetch-site": "same-origin", "origin": server.admin_url}
        assert client.post("/-/reload", headers=own).status_code == 200


def test_without_keys_a_browser_must_have_come_by_a_name_of_this_machine(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    furnish(folder)
    with serving(folder, "--config", "scope.yaml", "--admin", "unix:admin.sock"):
        through = httpx.HTTPTransport(uds=str(folder / "admin.sock"))
        with httpx.Client(transport=through, base_url="http://console") as client:
            assert client.get("/-/policies").status_code == 200  # no browser: curl --unix-socket
            for host, status in (("localhost:8081", 200), ("rebound.example", 403)):
                headers = {"host": host, "sec-fetch-site": "same-origin"}
                assert client.get("/-/policies", headers=headers).status_code == status
            assert (
                client.post("/-/off", headers={"sec-fetch-site": "cross-site"}).status_code == 403
            )
            assert client.get("/-/policies").json()["off"] is None


def test_rules_are_those_of_the_loaded_policies(server: Server) -> None:
    with server.admin() as client:
        (rule,) = client.get("/-/rules").json()["rules"]
    assert (rule["name"], rule["layer"], rule["before"]) == ("stay-in-english", 3, None)
    assert (rule["after"]["op"], rule["after"]["when.phase"]) == ("mute", "generation")


def test_traffic_counts_what_rules_did(server: Server) -> None:
    with server.client() as client, server.admin() as admin:
        before = admin.get("/-/traffic").json()
        answer = client.post("/v1/chat/completions", json={**HELLO, "scope": {"explain": True}})
        after = admin.get("/-/traffic").json()
    (told,) = [each for each in answer.json()["scope"]["report"] if each["what"] == "rule"]
    (rule,) = after["rules"]
    assert after["n_requests"] == before["n_requests"] + 1
    assert rule["recent"][-1]["request_id"] == answer.json()["scope"]["request_id"]
    n_before = before["rules"][0]["n_tokens"] if before["rules"] else 0
    assert rule["n_tokens"] == n_before + told["n_tokens"]


def test_the_log_is_searched_and_verified_while_it_is_written(server: Server) -> None:
    with server.client() as client, server.admin() as admin:
        headers = {"x-request-id": "looked-for"}
        client.post("/v1/chat/completions", json=HELLO, headers=headers)
        found = admin.get("/-/audit", params={"request": "looked-for"}).json()
        assert found["n_found"] == len(found["records"]) >= 2
        assert {record["request_id"] for record in found["records"]} == {"looked-for"}
        indices = [record["chain"]["index"] for record in found["records"]]
        assert indices == sorted(indices, reverse=True)
        one = admin.get("/-/audit", params={"last": 1}).json()
        assert len(one["records"]) == 1 < one["n_found"]
        assert (
            admin.get("/-/audit", params={"kind": "policy"}).json()["records"][0]["kind"]
            == "policy"
        )
        refused = admin.get("/-/audit", params={"since": "yesterday"})
        assert refused.status_code == 422
        assert "this is no time" in refused.json()["text"]
        report = admin.get("/-/audit/verify").json()
    assert (report["ok"], report["n_records"]) == (True, len(server.records()))


def test_the_plan_says_why_a_reload_would_be_refused(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    furnish(folder)
    policy = folder / "policies" / "english-only.yaml"
    with serving(folder) as server, server.admin() as admin:
        assert admin.get("/-/plan").json()["diff"]["same_effect"]
        policy.write_text("nothing", "utf-8")
        refused = admin.get("/-/plan")
        assert (refused.status_code, refused.json()["line"]) == (422, 1)


def test_events_are_had_by_kind(server: Server) -> None:
    with server.client() as client, server.admin() as admin:
        client.post("/v1/chat/completions", json=HELLO)
        found = admin.get("/-/events", params={"kind": "policy"}).json()
        assert {event["kind"] for event in found} == {"policy"}
        assert len(admin.get("/-/events", params={"kind": "request", "last": 1}).json()) == 1
        assert admin.get("/-/events", headers={"authorization": f"Bearer {ADMIN}"}).is_success
