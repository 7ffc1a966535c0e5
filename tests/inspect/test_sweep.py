"""Sweeps: strengths in a policy's text, the proposal from measurements, and the whole of it on the example model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.cli.main import main
from scope_runtime.errors import UsageError
from scope_runtime.inspect.propose import Limits, propose
from scope_runtime.inspect.strength import at_strength, strength_of, swept_rule, with_strength
from scope_runtime.policy.load import load_policy, parse_policy
from scope_runtime.policy.model import Op
from tests.conftest import ROOT

EXAMPLE = ROOT / "examples" / "tiny-qwen3"
MODEL = EXAMPLE / "tiny-qwen3-q8_0.gguf"
SEEDS = EXAMPLE / "seeds"
POLICIES = ROOT / "policies"

MUTE = """\
# Head.
apiVersion: scope/v1
kind: SteeringPolicy
metadata:
  name: p
spec:
  features:
    a: {pack: a.gguf, layer: 1, id: 2}
  rules:
    # Before the rule.
    - name: one
      mute: a  # why it is muted
      when: {phase: generation}
    - name: two
      alert: a
      above: 1.0
"""


@pytest.mark.parametrize(("strength", "line"), [(0.75, "factor: 0.25"), (1.5, "factor: -0.5")])
def test_a_mute_of_another_strength_is_a_scale_and_keeps_its_comments(
    strength: float, line: str
) -> None:
    after = with_strength(MUTE, "p.yaml", "one", strength)
    policy = parse_policy(after, file="p.yaml", files=False)
    rule = policy.rules[0]
    assert (rule.op, strength_of(rule)) == (Op.SCALE, pytest.approx(strength))
    assert line in after
    for comment in ("# Head.", "# Before the rule.", "# why it is muted"):
        assert comment in after
    # Only that rule differs.
    before = parse_policy(MUTE, file="p.yaml", files=False)
    assert (policy.rules[1].op, policy.rules[1].alert) == (Op.ALERT, before.rules[1].alert)
    assert policy.rules[0].when == before.rules[0].when
    assert with_strength(after, "p.yaml", "one", 1.0).count("factor: 0.0") == 1


def test_a_mute_of_full_strength_stays_one() -> None:
    assert with_strength(MUTE, "p.yaml", "one", 1.0) == MUTE


def test_an_amplification_s_strength_is_its_alpha() -> None:
    path = POLICIES / "archaic-style.yaml"
    text, policy = path.read_text(), load_policy(path)
    assert strength_of(swept_rule(policy)) == 0.8
    assert at_strength(text, policy, "archaic-style", 0.55).rules[0].alpha == 0.55
    lines = with_strength(text, str(path), "archaic-style", 0.55).splitlines()
    changed = set(lines) ^ set(text.splitlines())
    assert changed == {"      alpha: 0.8", "      alpha: 0.55"}


def test_which_rule_is_swept() -> None:
    policy = parse_policy(MUTE, file="p.yaml", files=False)
    assert swept_rule(policy).name == "one"
    with pytest.raises(UsageError) as error:
        swept_rule(policy, "two")
    assert str(error.value) == (
        "p.yaml:14:7: the rule two has no strength; found alert; expected mute, scale, amplify"
    )
    with pytest.raises(UsageError, match="there is no rule with a strength"):
        swept_rule(policy, "three")
    watch = load_policy(POLICIES / "refusal-watch.yaml")
    with pytest.raises(UsageError, match="there is no rule with a strength"):
        swept_rule(watch)


STRENGTHS = np.array([0.0, 0.5, 1.0, 1.5])


def cases(*shares: float, n: int = 40) -> np.ndarray:
    """Rows of n cases of which the first so many hold."""
    return np.array([[float(i < share * n) for i in range(n)] for share in shares])


def test_the_least_strength_that_is_nearly_as_good_as_the_best() -> None:
    found = propose(STRENGTHS, cases(0.0, 0.5, 0.975, 1.0), None, None, Limits())
    assert found.strength == 1.0
    assert found.effect is not None
    assert found.effect[0] == 0.975
    assert found.effect[1] <= 0.975 <= found.effect[2]
    assert found.low is not None
    assert found.high is not None
    assert 1.0 == found.low <= found.high <= 1.5
    assert found.chosen == 1.0


def test_what_costs_too_much_is_not_proposed() -> None:
    effect = cases(0.0, 0.5, 1.0, 1.0)
    nll = np.array([np.full(10, value) for value in (1.0, 1.01, 1.2, 1.3)])
    assert propose(STRENGTHS, effect, nll, None, Limits()).strength == 0.5
    assert propose(STRENGTHS, effect, nll, None, Limits(perplexity=1.5)).strength == 1.0
    held = cases(1.0, 1.0, 0.9, 0.5)
    assert propose(STRENGTHS, effect, None, held, Limits()).strength == 0.5


def test_nothing_is_proposed_where_nothing_helps() -> None:
    found = propose(STRENGTHS, cases(0.5, 0.5, 0.4, 0.1), None, None, Limits())
    assert found.strength is None
    nll = np.array([np.full(10, value) for value in (1.0, 2.0, 2.0, 2.0)])
    assert propose(STRENGTHS, cases(0.0, 1.0, 1.0, 1.0), nll, None, Limits()).strength is None


def test_the_interval_covers_what_another_sample_would_have_chosen() -> None:
    """Two strengths of true effects 0.6 and 0.7: which is chosen of 30 cases is open, and the interval says so."""
    rng = np.random.default_rng(4)
    draw = rng.random(30)
    effect = np.array([np.zeros(30), draw < 0.6, rng.random(30) < 0.7, np.zeros(30)], float)
    found = propose(STRENGTHS, effect, None, None, Limits())
    assert (found.low, found.high) == (0.5, 1.0)


TARGET = """\
apiVersion: scope/v1
kind: PolicyTest
policy: english-only.yaml
cases:
"""
CASE = """\
  - name: {question}
    model: {model}
    prompt: {question}
    max_tokens: 40
    expect:
      answer: {{excludes_matches: ["[\\u4e00-\\u9fff]"]}}
"""
QUESTIONS = (
    "What can people see in the city of Yugui?",
    "How should I prepare Shaoying tofu?",
    "Please help me. What can people see in the city of Kaichun?",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(POLICIES, tmp_path / "policies")
    text = "".join(CASE.format(question=json.dumps(q), model=MODEL) for q in QUESTIONS)
    (tmp_path / "policies" / "target.yaml").write_text(TARGET + text)
    rows = (SEEDS / "english.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "english.jsonl").write_text("".join(rows[:4]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_of_the_shipped_policy_beside_its_control_arms(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "sweep", "-P", "policies/english-only.yaml", "--target", "policies/target.yaml",
        "--collateral", "english.jsonl", "-m", str(MODEL), "--sae", str(EXAMPLE / "sae"),
        "--positive", str(SEEDS / "drift.positive.jsonl"),
        "--negative", str(SEEDS / "drift.negative.jsonl"),
        "--strengths", "1", "--threads", "1", "--plot", "sweep.svg", "--write", "--json",
    ]  # fmt: skip
    before = Path("policies/english-only.yaml").read_text()
    assert main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    own, random, mean = (
        said["arms"][name] for name in ("policy", "random features", "mean difference")
    )
    assert [row["effect"] for row in own] == [0, 1]
    assert [row["effect"] for row in random] == [0, 0]
    assert own[0]["perplexity"] == 1
    assert own[1]["perplexity"] < 1.05
    # At the same dose, which is what makes the arms comparable.
    for arm in (random, mean):
        assert arm[1]["dose"] == pytest.approx(own[1]["dose"], rel=0.15)
    assert own[0]["shift"] == 0 < own[1]["shift"]
    assert said["proposal"]["strength"] == 1
    assert said["written"] is True
    # A mute of full strength is what it was.
    assert Path("policies/english-only.yaml").read_text() == before
    svg = Path("sweep.svg").read_text()
    assert svg.startswith("<?xml")
    assert svg.count("<use") >= 3 * 2  # two points an arm in every panel


def test_a_sweep_on_recordings_needs_no_model(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "policies" / "recorded.yaml").write_text(
        TARGET
        + """\
  - name: the plan is muted by half at least
    recording: recordings/tiny-qwen3.rec
    text: 0
    expect:
      rules:
        stay-in-english: {dose: {min: 0.2}}
"""
    )
    Path("policies/english-only.yaml").chmod(0o640)
    arguments = [
        "sweep", "-P", "policies/english-only.yaml", "--target", "policies/recorded.yaml",
        "--collateral", "policies/recordings/tiny-qwen3.rec", "--sae", str(EXAMPLE / "sae"),
        "--strengths", "0.25,0.5,1", "--write",
    ]  # fmt: skip
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "random features" in out
    assert "perplexity" not in out
    assert "policies/english-only.yaml: written" in out
    policy = load_policy("policies/english-only.yaml")
    assert (policy.rules[0].op, policy.rules[0].factor) == (Op.SCALE, 0.5)
    assert Path("policies/english-only.yaml").stat().st_mode & 0o777 == 0o640
    assert "# Keep English answers in English." in Path("policies/english-only.yaml").read_text()


def test_nothing_to_propose_exits_with_3_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("policies/english-only.yaml").read_text()
    (folder / "policies" / "never.yaml").write_text(
        TARGET
        + """\
  - name: never
    recording: recordings/tiny-qwen3.rec
    text: 0
    expect:
      rules:
        stay-in-english: {dose: {min: 5}}
"""
    )
    arguments = ["sweep", "-P", "policies/english-only.yaml", "--target", "policies/never.yaml"]
    assert main([*arguments, "--write"]) == 3
    out = capsys.readouterr().out
    assert "nothing to propose" in out
    assert "note: no control arms" in out
    assert Path("policies/english-only.yaml").read_text() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--strengths", "a"], "no strengths; found 'a'"),
        (["--strengths", "0"], "there is no strength to try"),
        (["--strengths", "inf"], "a strength is not finite"),
        (["--positive", "x"], "--positive and --negative go together"),
        (["--max-perplexity", "0.5"], "no limit; found 0.5; expected 1 or more"),
        (["--collateral", "english.jsonl"], "perplexity needs a model"),
    ],
)
def test_wrong_usage_is_said(
    more: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", "-P", "policies/english-only.yaml", "--target", "policies/target.yaml"]
    assert main([*arguments, *more]) == 2
    assert message in capsys.readouterr().err
