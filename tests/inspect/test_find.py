"""`find` on the example model: the features that are known to be there, and nothing where there is nothing."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from converters.texts import Text, read_texts
from scope_runtime import Runtime
from scope_runtime.cli.main import main
from scope_runtime.errors import PackError, UsageError
from scope_runtime.inspect import Criteria, Found, Intervention, Pool, encode_kinds, find, rank
from scope_runtime.inspect.sample import Sample
from scope_runtime.llama.capture import capturing
from scope_runtime.sae import SaeLayers
from tests.conftest import ROOT, Tiny

EXAMPLE = ROOT / "examples" / "tiny-qwen3"
MODEL = EXAMPLE / "tiny-qwen3-q8_0.gguf"
SAE = EXAMPLE / "sae"
SEEDS = EXAMPLE / "seeds"
AT = {"drift": "last", "archaic": "last", "refusal": "max"}


def texts(name: str) -> tuple[tuple[Text, ...], tuple[Text, ...]]:
    return (
        read_texts(SEEDS / f"{name}.positive.jsonl"),
        read_texts(SEEDS / f"{name}.negative.jsonl"),
    )


@pytest.fixture(scope="module")
def found() -> dict[str, Found]:
    saes = SaeLayers.open(SAE)
    return {name: find(MODEL, saes, *texts(name), at=at, n_threads=1) for name, at in AT.items()}


def known(role: str) -> list[str]:
    roles = json.loads((EXAMPLE / "features.json").read_text())["roles"]
    return [f"{each['layer']}:{each['id']}" for each in roles[role]["features"]]


DRIFT = ["3:767", "3:843", "3:185", "3:28"]
"""The drift features that cause it; what is said of the fifth, see `test_the_fifth_drift_feature_causes_none`."""


def test_20_pairs_put_each_known_feature_in_the_top_five(found: dict[str, Found]) -> None:
    """Of five groups that are shown; features that are not split further are among the first five by themselves."""
    assert known("drift") == [*DRIFT, "3:459"]
    for name in AT:
        assert (found[name].n_positive, found[name].n_negative) == (20, 20)
        assert found[name].ranking.held_out
    shown = {name: [f.name for g in each.groups[:5] for f in g] for name, each in found.items()}
    first = {name: [f.name for f in each.features[:5]] for name, each in found.items()}
    assert set(DRIFT) <= set(shown["drift"])
    assert {"3:767", "3:843", "3:28"} <= set(first["drift"])
    assert set(known("archaic")) <= set(first["archaic"])
    assert set(known("refusal")) <= set(first["refusal"])
    for name in AT:
        for each in found[name].features:
            if each.name in (DRIFT if name == "drift" else known(name)):
                assert found[name].is_significant(each)
                assert each.rank.auroc > 0.75


@pytest.mark.parametrize("seed", range(3))
def test_on_their_own_layer_the_drift_features_come_first(seed: int) -> None:
    """However the halves are drawn; and no other feature pushes as far towards the Chinese."""
    saes = SaeLayers.open(f"{SAE}:3")
    found = find(MODEL, saes, *texts("drift"), at="last", n_threads=1, criteria=Criteria(seed=seed))
    assert {each.name for each in found.features[:4]} == set(DRIFT)
    pushes = {each.name: each.rank.push or 0 for each in found.features}
    others = [push for name, push in pushes.items() if name not in DRIFT]
    assert min(pushes[name] for name in DRIFT) > 2 * max(others)


CJK = re.compile("[\u4e00-\u9fff]")


def test_the_fifth_drift_feature_causes_none(tmp_path: Path) -> None:
    """Muting the four stops the drift on unseen questions; muting the fifth, which `find` does not find, stops none.

    It fires at the ends of archaic sentences, in 1 of the 20 seeds.
    """
    questions = [
        each["question"] for each in json.loads((EXAMPLE / "heldout.json").read_text())["fault"][:6]
    ]
    pack = ROOT / "policies" / "packs" / "tiny-qwen3.gguf"

    def drifted(runtime: Runtime, features: list[str]) -> int:
        muted = Intervention("muted", "generation")
        for feature in features:
            muted = muted.suppress(f"{pack}:{feature}")
        muted.write(tmp_path / "muted.yaml", root="/")
        runtime.set_policy(tmp_path / "muted.yaml")
        asked = [[{"role": "user", "content": question}] for question in questions]
        answers = [runtime.chat(each, max_tokens=60, temperature=0.0).text for each in asked]
        return sum(CJK.search(answer) is not None for answer in answers)

    with Runtime(MODEL, n_ctx=256, n_threads=1, policy_root="/") as runtime:
        assert drifted(runtime, ["3:459"]) == len(questions)
        assert drifted(runtime, DRIFT) == 0


def test_where_a_feature_is_strongest_is_where_it_should_be(found: dict[str, Found]) -> None:
    by_name = {each.name: each for each in found["drift"].features}
    plan = by_name["3:767"]
    assert all(context.token.strip() == "." for context in plan.contexts)
    assert plan.peak == plan.contexts[0].activation
    refusal = {each.name: each for each in found["refusal"].features}["2:685"]
    assert all(context.positive for context in refusal.contexts)
    assert any("cannot help" in context.after + context.before for context in refusal.contexts)
    # The shipped policy's threshold came out of hundreds of answers.
    assert refusal.threshold == pytest.approx(100, rel=0.35)


@pytest.fixture(scope="module", params=list(AT))
def read(request: pytest.FixtureRequest) -> Iterator[tuple[Sample, Pool]]:
    with capturing(MODEL, n_ctx=512, n_threads=1) as context:
        at = Pool(AT[request.param])
        saes, ahead = SaeLayers.open(SAE), at is Pool.LAST
        yield encode_kinds(context, saes, *texts(request.param), ahead=ahead), at


def test_with_shuffled_labels_nothing_is_significant(read: tuple[Sample, Pool]) -> None:
    """At most 5 of 100; at the rate of 1 % that is exceeded once in two thousand tries."""
    pooled = read[0].pooled(read[1])
    rng = np.random.default_rng(20)
    significant = [
        bool(
            rank(
                pooled, rng.permutation(read[0].positive), Criteria(seed=seed), read[0].ahead
            ).significant
        )
        for seed in range(100)
    ]
    assert sum(significant) <= 5


def command(name: str, *more: str) -> list[str]:
    return [
        "find", "-m", str(MODEL), "--sae", str(SAE), "--at", AT[name], "--threads", "1",
        "--positive", str(SEEDS / f"{name}.positive.jsonl"),
        "--negative", str(SEEDS / f"{name}.negative.jsonl"), *more,
    ]  # fmt: skip


def test_the_pack_command_and_the_policy_that_it_writes_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(command("refusal", "--write-policy", "watch.yaml", "--rule", "alert", "--json")) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["policy_file"] == "watch.yaml"
    assert said["policy"] == Path("watch.yaml").read_text()
    words = shlex.split(said["pack_command"])
    assert words[:3] == ["scope", "convert", "pack"]
    assert main(words[1:]) == 0
    assert main(["check", "--no-warnings", "watch.yaml"]) == 0
    assert main(["fmt", "--check", "watch.yaml"]) == 0
    assert main(["explain", "watch.yaml", "-m", str(MODEL)]) == 0
    capsys.readouterr()
    # A policy that somebody wrote is not replaced.
    assert main(command("refusal", "--write-policy", "watch.yaml")) == 2
    assert "the policy is there already" in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["mute", "amplify"])
def test_other_kinds_of_rules_are_policies_too(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command("archaic", "--write-policy", "style.yaml", "--rule", rule, "--json")) == 0
    words = shlex.split(json.loads(capsys.readouterr().out)["pack_command"])
    assert main(words[1:]) == 0
    assert main(["check", "--no-warnings", "style.yaml"]) == 0


def test_the_page_for_people_says_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("archaic", "--top", "1")) == 0
    out = capsys.readouterr().out
    assert "2 of" in out
    assert "candidates are significant" in out
    assert "2:459" in out
    assert "more likely" in out
    assert "mute: found-group" in out


def test_kinds_that_do_not_differ_are_told_from_those_that_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (SEEDS / "archaic.negative.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text("".join(lines[:10]))
    (tmp_path / "b.jsonl").write_text("".join(lines[10:]))
    arguments = [
        "find", "-m", str(MODEL), "--sae", f"{SAE}:3", "--positive", str(tmp_path / "a.jsonl"),
        "--negative", str(tmp_path / "b.jsonl"), "--at", "last",
    ]  # fmt: skip
    assert main([*arguments, "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert said["significant"] == 0
    assert said["layers"] == ["3"]


def test_a_pack_with_whole_layers_gives_labels_and_needs_no_conversion(tmp_path: Path) -> None:
    pack = ROOT / "policies" / "packs" / "tiny-qwen3.gguf"
    found = find(MODEL, pack, *texts("archaic"), at="last", n_threads=1)
    labels = {each.name: each.label for each in found.features}
    assert labels["2:459"] == "archaic-a"
    [note] = [note for note in found.notes if "does not hold their directions" in note]
    assert "3:244" in note
    by_name = {each.name: each for each in found.features}
    assert by_name["2:459"].favours
    assert not by_name["3:244"].favours


def test_errors_say_what_is_wrong(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PackError, match="not of this model"):
        find(tiny.model, SAE, *texts("archaic"))
    long = (Text("word " * 4000),)
    with pytest.raises(UsageError, match="longer than the context"):
        find(MODEL, SAE, long, long)
    assert main([*command("archaic"), "--rule", "melt"]) == 2
    assert "--rule is none; found 'melt'; expected mute, amplify, alert" in capsys.readouterr().err
    assert main([*command("archaic"), "--false-alarm-rate", "2"]) == 2
    assert "no rate; found 2; expected between 0 and 1" in capsys.readouterr().err
