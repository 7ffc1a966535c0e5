"""Comparing texts, trying a policy on one question, and saving one: through the admin listener of a live server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scope_runtime import Runtime
from scope_runtime.cli.main import main
from scope_runtime.policy.load import load_policy
from tests.conftest import ROOT
from tests.serve.conftest import CONFIG, MODEL, Server, furnish, serving

QUESTION = [{"role": "user", "content": "How do I get to Suzhou?"}]
SAE = f"{ROOT / 'examples' / 'tiny-qwen3' / 'sae'}:3"
ASKED = {"messages": QUESTION, "max_tokens": 24}
ENGLISH = (ROOT / "policies" / "english-only.yaml").read_text(encoding="utf-8")
DRIFT = {"pack": "packs/tiny-qwen3.gguf", "layer": 3, "id": 767, "label": "drift-a"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the watching policy alone in force, and packs to steer by."""
    folder = tmp_path_factory.mktemp("console") / "site"
    furnish(folder, CONFIG.replace("  serve:\n", f"  serve:\n    sae: {SAE}\n"))
    (folder / "policies" / "english-only.yaml").unlink()
    watch = (ROOT / "policies" / "refusal-watch.yaml").read_text(encoding="utf-8")
    (folder / "policies" / "refusal-watch.yaml").write_text(watch, encoding="utf-8")
    with serving(folder) as running:
        yield running


def test_compare_says_what_the_command_says(
    site: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = "How do I get to Paris? Take the train.", "How do I get to Suzhou? Take the train."
    with site.admin() as admin:
        assert admin.get("/-/compare").json()["layers"] == ["3"]
        before, n_records = admin.get("/-/traffic").json(), len(site.records())
        found = admin.post("/-/compare", json={"a": a, "b": b, "at": "max"}).json()
        # To read a text is no request: nothing in the live picture, nothing on record.
        assert (admin.get("/-/traffic").json(), len(site.records())) == (before, n_records)
    command = ["compare", a, b, "--at", "max", "--top", "12", "--json", "--threads", "1"]
    policy = str(ROOT / "policies" / "refusal-watch.yaml")  # what is in force there
    assert main([*command, "--model", str(MODEL), "--sae", SAE, "--policy", policy]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in said} == said
    assert ["".join(found["tokens"][name]) for name in ("a", "b")] == [a, b]
    for column, one in zip(found["activations"]["b"], found["differences"], strict=True):
        assert len(column) == len(found["tokens"]["b"])
        assert max(column[1:]) == pytest.approx(one["b"], rel=1e-3)


def test_compare_refuses_in_words(site: Server, server: Server) -> None:
    with site.admin() as admin, server.admin() as without:
        long = admin.post("/-/compare", json={"a": "far " * 2000, "b": "near"})
        assert (long.status_code, "expected" in long.json()) == (422, True)
        assert admin.post("/-/compare", json={"a": "", "b": "near"}).status_code == 422
        assert without.get("/-/compare").json()["sae"] is None
        assert "--sae" in without.post("/-/compare", json={"a": "a", "b": "b"}).json()["text"]


def tried(client: httpx.Client, **body: Any) -> dict[str, dict[str, Any]]:
    """Both arms of a trial: their texts, and how they began and ended."""
    arms: dict[str, dict[str, Any]] = {"without": {"text": ""}, "with": {"text": ""}}
    with client.stream("POST", "/-/try", json={**ASKED, **body}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                said = json.loads(line.removeprefix("data: "))
                arm = arms[said.pop("arm")]
                arm["text"] += said.pop("text", "")
                arm |= said
    return arms


def test_both_arms_answer_as_the_model_would_with_and_without_the_policy(site: Server) -> None:
    with site.admin() as admin:
        arms = tried(admin, policy=ENGLISH)
    with Runtime(MODEL, n_ctx=512, n_threads=1) as runtime:
        free = runtime.chat(QUESTION, max_tokens=24, temperature=0.0)
        revision = runtime.set_policy(ROOT / "policies" / "english-only.yaml").revision
        steered = runtime.chat(QUESTION, max_tokens=24, temperature=0.0)
    assert [arms[arm]["text"] for arm in ("without", "with")] == [free.text, steered.text]
    assert free.text != steered.text
    assert arms["without"]["began"] == {"revision": "none", "interventions": 0}
    assert arms["with"]["began"] == {"revision": revision, "interventions": 1}
    assert 0 < arms["with"]["done"]["dose_max"] <= 1
    assert arms["without"]["done"]["dose_max"] == 0


def test_a_trial_changes_nothing_for_anybody_and_is_on_record(site: Server) -> None:
    with site.admin() as admin, site.client() as client:
        before = admin.get("/-/policies").json()["revision"]
        ask = {"messages": QUESTION, "max_tokens": 24, "temperature": 0, "model": "tiny"}
        plain = client.post("/v1/chat/completions", json=ask).json()["choices"][0]["message"]
        tried(admin, policy=ENGLISH)
        again = client.post("/v1/chat/completions", json=ask)
        assert again.json()["choices"][0]["message"] == plain
        assert again.headers["x-scope-revision"] == before
        assert admin.get("/-/policies").json()["revision"] == before
        (said,) = [e for e in site.records() if e["what"] == "tried"][-1:]
    assert (said["actor"], said["trigger"], said["name"]) == ("key ops", "console", "english-only")
    assert json.loads(said["text"])["metadata"]["name"] == "english-only"
    for name in said["request_ids"]:
        (summary,) = [
            e for e in site.records() if e.get("request_id") == name and e["what"] == "summary"
        ]
        assert summary["trial"] is True
    assert summary["revisions"][0]["revision"] == said["revision"]


def test_a_trial_on_top_of_what_is_in_force_has_both(site: Server) -> None:
    with site.admin() as admin:
        loaded = admin.get("/-/policies").json()["loaded"]
        arms = tried(admin, policy=ENGLISH, on_top=True)
    assert arms["without"]["began"]["revision"] == loaded
    assert {e["rule"] for e in arms["with"]["done"]["report"] if e["what"] == "rule"} == {
        "stay-in-english",
        "refusal-watch",
    }


def test_what_cannot_be_tried_is_refused_in_words(site: Server) -> None:
    with site.admin() as admin:
        bad = admin.post("/-/try", json={**ASKED, "policy": ENGLISH.replace("767", "99999999")})
        assert (bad.status_code, bad.json()["line"]) == (422, 17)
        assert admin.post("/-/try", json={**ASKED, "policy": "nonsense"}).status_code == 422
        long = {"role": "user", "content": "far " * 2000}
        with admin.stream("POST", "/-/try", json={"policy": ENGLISH, "messages": [long]}) as told:
            (event,) = [line for line in told.iter_lines() if line.startswith("data: ")]
        assert "does not fit" in json.loads(event.removeprefix("data: "))["error"]["message"]


def test_while_switched_off_nothing_is_tried(site: Server) -> None:
    with site.admin() as admin:
        admin.post("/-/off")
        try:
            refused = admin.post("/-/try", json={**ASKED, "policy": ENGLISH})
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "switched_off")
        finally:
            admin.post("/-/on")


def test_features_are_found_by_words_of_their_label_place_or_file(site: Server) -> None:
    with site.admin() as admin:
        everything = admin.get("/-/features").json()
        found = admin.get("/-/features", params={"search": "LAYER 3 drift-a"}).json()
    assert everything["n_found"] == len(everything["features"]) > 5
    (only,) = found["features"]
    assert only["feature"] == {key: DRIFT[key] for key in ("pack", "layer", "id")}


def test_what_is_no_pack_or_for_another_model_is_told_by_name(site: Server) -> None:
    other = site.folder / "policies" / "packs" / "other.gguf"
    other.write_bytes(b"nothing")
    try:
        with site.admin() as admin:
            (told,) = admin.get("/-/features").json()["unusable"]
        assert told["file"] == "packs/other.gguf"
    finally:
        other.unlink()


def test_a_draft_is_a_policy_that_says_what_the_sliders_say(site: Server, tmp_path: Path) -> None:
    rules = [
        {"op": "mute", "feature": DRIFT},
        {"op": "clamp", "feature": {**DRIFT, "id": 843, "label": ""}, "max": 3.5},
        {"op": "scale", "feature": DRIFT, "factor": 0.25},
        {"op": "amplify", "feature": {**DRIFT, "id": 185}, "alpha": -0.1},
    ]
    with site.admin() as admin:
        draft = {"name": "made", "rules": rules, "dose_max": 0.5, "phase": None}
        answer = admin.post("/-/draft", json=draft).json()
        taken = admin.post("/-/draft", json={**draft, "name": "refusal-watch"}).json()
    assert (answer["file"], answer["replaces"]) == ("made.yaml", False)
    assert (taken["file"], taken["replaces"]) == ("refusal-watch.yaml", True)
    file = tmp_path / "made.yaml"
    file.write_text(answer["text"], encoding="utf-8")
    policy = load_policy(file, files=False)
    assert [(str(r.op), r.factor, r.alpha) for r in policy.rules][2:] == [
        ("scale", 0.25, None),
        ("amplify", None, -0.1),
    ]
    assert [f.name for f in policy.features] == ["drift-a", "f3-843", "drift-a-2"]
    assert policy.dose_limit is not None
    assert policy.dose_limit.max == 0.5


def saved(admin: httpx.Client, file: str, text: str, **more: Any) -> httpx.Response:
    plan = admin.post("/-/edit", json={"file": file, "text": text})
    assert plan.status_code == 200, plan.text
    return admin.post(
        "/-/save", json={"file": file, "text": text, "expected": plan.json()["digest"], **more}
    )


def test_save_shows_writes_reloads_and_is_on_record(site: Server) -> None:
    place = site.folder / "policies" / "english-only.yaml"
    with site.admin() as admin:
        try:
            plan = admin.post("/-/edit", json={"file": place.name, "text": ENGLISH}).json()
            assert not place.exists()
            assert (plan["digest"], plan["diff"]["settings"][0]["name"]) == (None, "english-only")
            assert "+  name: english-only" in plan["lines"]
            done = saved(admin, place.name, ENGLISH, reason="it drifts").json()
            assert place.read_text(encoding="utf-8") == ENGLISH
            assert done["changed"]
            assert admin.get("/-/policies").json()["revision"] == done["revision"]
            last = [e for e in site.records() if e["kind"] == "policy"][-2:]
            assert [(e["what"], e["actor"], e["reason"]) for e in last] == [
                ("swapped", "key ops", "it drifts"),
                ("saved", "key ops", "it drifts"),
            ]
            changed = ENGLISH.replace("mute: drift\n", "mute: drift-a\n")
            again = admin.post("/-/edit", json={"file": place.name, "text": changed}).json()
            assert "-      mute: drift" in again["lines"]
            place.write_text(ENGLISH + "# by hand\n", encoding="utf-8")
            late = {"file": place.name, "text": changed, "expected": again["digest"]}
            assert admin.post("/-/save", json=late).status_code == 412
            assert place.read_text(encoding="utf-8").endswith("# by hand\n")
        finally:
            place.unlink(missing_ok=True)
            admin.post("/-/reload")


def test_what_a_reload_would_refuse_is_never_written(site: Server) -> None:
    folder = site.folder / "policies"
    before = sorted(path.name for path in folder.iterdir())
    unfit = ENGLISH.replace("width: 256", "width: 512")
    twin = ENGLISH.replace("name: english-only", "name: refusal-watch")
    with site.admin() as admin:
        for text in ("nonsense", unfit, twin):
            body = {"file": "bad.yaml", "text": text}
            assert admin.post("/-/edit", json=body).status_code == 422
            assert admin.post("/-/save", json={**body, "expected": None}).status_code == 422
        assert admin.get("/-/policies").json()["success"]
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    "name", ["../up.yaml", "a/b.yaml", ".hidden.yaml", "p.test.yaml", "p.txt", "", "p\n.yaml"]
)
def test_only_policy_files_of_the_directory_are_written(site: Server, name: str) -> None:
    with site.admin() as admin:
        refused = admin.post("/-/edit", json={"file": name, "text": ENGLISH})
    assert refused.status_code == 422
    assert "not a name for a policy file" in refused.json()["text"]


def test_a_link_is_not_written_through(site: Server, tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "elsewhere.yaml", site.folder / "policies" / "link.yaml"
    link.symlink_to(elsewhere)
    try:
        with site.admin() as admin:
            refused = admin.post("/-/edit", json={"file": "link.yaml", "text": ENGLISH})
        assert (refused.status_code, elsewhere.exists()) == (422, False)
        assert refused.json()["found"] == "a link"
    finally:
        link.unlink()


def test_a_reload_that_is_refused_for_another_reason_puts_the_file_back(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    furnish(folder)
    place = folder / "policies" / "english-only.yaml"
    before = place.read_bytes()
    changed = ENGLISH.replace("mute: drift\n", "mute: drift-a\n")
    with serving(folder) as server, server.admin() as admin:
        loaded = admin.get("/-/policies").json()["loaded"]
        (folder / "keys.yaml").write_text("nonsense", encoding="utf-8")
        assert saved(admin, place.name, changed).status_code == 422
        watch = (ROOT / "policies" / "refusal-watch.yaml").read_text(encoding="utf-8")
        assert saved(admin, "new.yaml", watch).status_code == 422
        assert place.read_bytes() == before
        assert not (folder / "policies" / "new.yaml").exists()
        assert admin.get("/-/policies").json()["loaded"] == loaded
