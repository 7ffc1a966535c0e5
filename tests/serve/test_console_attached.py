"""The console over an unmodified llama-server: trials on slots of their own, and texts read beside the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from scope_runtime import Runtime
from scope_runtime.cli.main import main
from scope_runtime.policy.load import parse_policy
from tests.serve.conftest import MODEL, OTHER, USER, Server
from tests.serve.in_browser import add_features, ask_both, looked_at
from tests.serve.over_server import STATE, attached, furnished, summaries
from tests.serve.test_console_steer import SAE, tried

QUESTION = [{"role": "user", "content": "How do I get to Suzhou?"}]
PUSH = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {{name: {name}}}
spec:
  model: {{architecture: qwen3, layers: 4, width: 256}}
  features:
    f: {{pack: packs/tiny-qwen3.gguf, layer: 3, id: {feature}}}
  rules:
    - {{name: push, amplify: f, alpha: {alpha}}}
"""
TRIAL = PUSH.format(name="tryout", feature=767, alpha=-200)
IN_FORCE = PUSH.format(name="everybody", feature=28, alpha=2)


def site(folder: Path) -> Path:
    """With a policy that everybody is under."""
    furnished(folder)
    config = STATE.replace("  serve:\n", f"  serve:\n    sae: {SAE}\n")
    (folder / "scope.yaml").write_text(config, encoding="utf-8")
    (folder / "policies" / "everybody.yaml").write_text(IN_FORCE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with attached(site(tmp_path_factory.mktemp("console") / "site")) as running:
        yield running


def chat(server: Server, key: str = USER, **changes: Any) -> dict[str, Any]:
    with server.client(key) as client:
        asked = {"messages": QUESTION, "max_tokens": 24, "temperature": 0, **changes}
        response = client.post("/v1/chat/completions", json=asked)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def said(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def trial_summaries(server: Server) -> list[dict[str, Any]]:
    """Of the latest trial, without and with."""
    names = [each for each in server.records() if each["what"] == "tried"][-1]["request_ids"]
    return [one for name in names for one in summaries(server, name)]


def test_both_arms_answer_as_the_embedded_engine_does(server: Server) -> None:
    with server.admin() as admin:
        arms = tried(admin, policy=TRIAL)
    place = server.folder / "policies"
    with Runtime(MODEL, n_ctx=512, n_threads=1, use_extra_bufts=False) as runtime:
        trial = runtime.compiled([parse_policy(TRIAL, file=str(place / "t.yaml"), root=place)])
        free = runtime.chat(QUESTION, max_tokens=24, temperature=0.0)
        steered = runtime.chat(QUESTION, max_tokens=24, temperature=0.0, trial=trial)
    # llama-server leaves half a character at the end out.
    expected = [answer.text.rstrip("\ufffd") for answer in (free, steered)]
    assert [arms[arm]["text"] for arm in ("without", "with")] == expected
    assert free.text != steered.text
    assert arms["without"]["began"] == {"revision": "none", "interventions": 0}
    assert arms["with"]["began"] == {"revision": trial.revision, "interventions": 1}
    assert arms["with"]["done"]["dose_max"] == pytest.approx(
        max(e.detail["dose"]["max"] for e in steered.report if e.what == "rule"), rel=1e-3
    )


def test_a_trial_is_nobody_else_s_and_is_on_record_as_one(server: Server) -> None:
    plain = chat(server)
    with server.admin() as admin, ThreadPoolExecutor(3) as threads:
        before = admin.get("/-/traffic").json()["n_requests"]
        both = threads.submit(tried, admin, policy=TRIAL, on_top=True, labels={"tenant": "acme"})
        others = list(threads.map(lambda _: chat(server), range(6)))
        arms = both.result()
        after = admin.get("/-/traffic").json()["n_requests"]
        in_force = admin.get("/-/policies").json()["revision"]
    assert {said(each) for each in others} == {said(plain)}
    assert arms["without"]["text"] == said(plain)
    assert arms["with"]["text"] != said(plain)
    assert after == before + len(others)
    (told,) = [each for each in server.records() if each["what"] == "tried"][-1:]
    assert (told["actor"], told["name"]) == ("key ops", "tryout")
    without, steered = trial_summaries(server)
    assert without["trial"] is steered["trial"] is True
    assert [each["revision"] for each in without["revisions"]] == [in_force]
    assert [each["revision"] for each in steered["revisions"]] != [in_force]
    rules = {e["rule"] for e in arms["with"]["done"]["report"] if e["what"] == "rule"}
    assert rules == {"push"}
    assert all(e["trial"] for e in arms["with"]["done"]["report"])


def test_what_a_trial_computed_is_used_again_by_the_same_trial_alone(server: Server) -> None:
    asked = {"messages": [{"role": "user", "content": "How far is it from Paris to Suzhou?"}]}
    one, two = (TRIAL.replace("-200", alpha) for alpha in ("-201", "-202"))
    with server.admin() as admin:
        tried(admin, policy=one, **asked)
        _, first = trial_summaries(server)
        tried(admin, policy=one, **asked)
        again = trial_summaries(server)
        tried(admin, policy=two, **asked)
        without, other = trial_summaries(server)
    assert first["n_reused"] == other["n_reused"] == 0
    assert [each["n_reused"] for each in (*again, without)] == [first["n_prompt"] - 1] * 3
    plain = chat(server, OTHER, **asked)  # who has asked nothing before
    assert plain["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_while_switched_off_nothing_is_tried_and_what_is_no_policy_never(server: Server) -> None:
    body = {"messages": QUESTION, "max_tokens": 8}
    with server.admin() as admin:
        assert admin.post("/-/try", json={**body, "policy": "nonsense"}).status_code == 422
        admin.post("/-/off")
        try:
            refused = admin.post("/-/try", json={**body, "policy": TRIAL})
        finally:
            admin.post("/-/on")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "switched_off")


def test_compare_says_what_the_command_says_under_what_is_in_force(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = "How do I get to Paris? Take the train.", "How do I get to Suzhou? Take the train."
    with server.admin() as admin:
        about = admin.get("/-/compare").json()
        found = admin.post("/-/compare", json={"a": a, "b": b, "at": "max"}).json()
        admin.post("/-/off")
        try:
            free = admin.post("/-/compare", json={"a": a, "b": b, "at": "max"}).json()
        finally:
            admin.post("/-/on")
    assert about["layers"] == ["3"]
    assert "a second context of the same file" in about["reads"]
    command = ["compare", a, b, "--at", "max", "--top", "12", "--json", "--threads", "1"]
    for policy, told in ((["--policy", str(server.folder / "policies")], found), ([], free)):
        assert main([*command, "--model", str(MODEL), "--sae", SAE, *policy]) == 0
        expected = json.loads(capsys.readouterr().out)
        assert {key: told[key] for key in expected} == expected
    assert found["differences"] != free["differences"]
    assert ["".join(found["tokens"][name]) for name in ("a", "b")] == [a, b]


def test_the_page_tries_and_compares_over_llama_server(browser: Browser, server: Server) -> None:
    with looked_at(browser, server) as seen:
        page = seen.page
        seen.open("Steer")
        add_features(page, "drift", ["drift-a"])
        states = ask_both(page, QUESTION[0]["content"])
        assert len({without for without, _ in states}) > 3
        assert states[-1][0] != states[-1][1]
        seen.open("Compare")
        expect(page.get_by_text("Read in a second context of the same file")).to_be_visible()
        page.get_by_label("Text A").fill("Paris is far.")
        page.get_by_label("Text B").fill("Suzhou is far.")
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_role("radio")).to_have_count(12)


def test_a_server_that_computes_something_else_than_its_file_says_so_on_the_page(
    browser: Browser, tmp_path: Path
) -> None:
    with (
        attached(site(tmp_path / "site"), "--rope-freq-base", "20000") as server,
        looked_at(browser, server) as seen,
    ):
        seen.open("Compare")
        why = "llama-server was started with --rope-freq-base"
        expect(seen.page.get_by_text(why)).to_be_visible()
        expect(seen.page.get_by_role("button", name="Compare")).to_have_count(0)
        with server.admin() as admin:
            refused = admin.post("/-/compare", json={"a": "near", "b": "far"})
        assert refused.status_code == 422
        assert refused.json()["text"].startswith(why)
