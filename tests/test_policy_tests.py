"""Tests of policies: what is asked for is what happens, what is not is said, and where."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from scope_runtime.cases.load import SCHEMA_PATH, load_test
from scope_runtime.cases.run import run_tests
from scope_runtime.cli.main import main
from scope_runtime.errors import PolicyErrors
from scope_runtime.llama import library
from scope_runtime.llama.record import record
from scope_runtime.packs import read_pack
from scope_runtime.policy.model import GateKind
from scope_runtime.recording import read_recording
from tests.conftest import ROOT, TINY_POLICY, Tiny

library.load()

HEAD = "apiVersion: scope/v1\nkind: PolicyTest\npolicy: policy.yaml\ncases:\n"
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture(scope="module")
def bench(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny policy, its pack and vector, the model, and a recording of it."""
    folder = tmp_path_factory.mktemp("bench")
    for name in ("pack.gguf", "vector.gguf"):
        (folder / name).write_bytes(tiny.policy.with_name(name).read_bytes())
    (folder / "model.gguf").symlink_to(tiny.model)
    record(tiny.model, ["the sun rises", "a bird sings"], folder / "tiny.rec", max_tokens=9)
    return folder


@pytest.fixture
def folder(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in bench.iterdir():
        (tmp_path / path.name).hardlink_to(path)
    (tmp_path / "policy.yaml").write_text(TINY_POLICY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, cases: str, name: str = "policy.test.yaml") -> Path:
    path = folder / name
    path.write_text(HEAD + cases)
    return path


def test_behaviour_4_the_shipped_policies_pass_their_tests_offline(call: Cli) -> None:
    code, out, err = call("test", ROOT / "policies", "--min-coverage", "100", "--json")
    said = json.loads(out)
    assert (code, err, said["passed"]) == (0, "", True)
    assert said["coverage"]["share"] == 1.0
    assert len(said["tests"]) == 3
    (recording,) = (ROOT / "policies" / "recordings").glob("*.rec")
    assert recording.stat().st_size < 300_000


# -- what a case sees is what brute force says


def test_a_rule_did_what_brute_force_says(folder: Path) -> None:
    test = load_test(
        write(folder, "  - {name: c, recording: tiny.rec, text: 1, expect: {aborts: false}}\n")
    )
    ((result,),) = run_tests([test]).results.values()
    assert result.outcome is not None
    pack, text = read_pack(folder / "pack.gguf"), read_recording(folder / "tiny.rec").texts[1]
    zs, doses = {}, {}
    for layer, id in ((1, 3), (2, 5)):
        at = pack.layers[layer]
        assert at.gate is GateKind.RELU
        row = at.row(id)
        h = text.layers[layer].astype(np.float64)
        zs[layer] = np.maximum(h @ at.enc[row].astype(np.float64) + at.enc_bias[row], 0)
        doses[layer] = zs[layer] * np.linalg.norm(at.dec[row]) / np.linalg.norm(h, axis=1)
    acted = np.flatnonzero((zs[1] > 0) | (zs[2] > 0))
    quiet = result.outcome.rules["quiet"]
    assert (quiet.n_fired, quiet.first, quiet.last) == (len(acted), acted[0], acted[-1])
    assert quiet.activation_max == pytest.approx(max(zs[1].max(), zs[2].max()), rel=1e-4)
    assert quiet.dose_max == pytest.approx(max(doses[1].max(), doses[2].max()), rel=1e-4)
    push = result.outcome.rules["push"]
    assert text.n_prompt is not None
    assert (push.first, push.last) == (text.n_prompt - 1, len(text.tokens) - 1)
    assert push.dose_max == pytest.approx(0.5, rel=1e-4)
    watch = result.outcome.rules["watch"]
    assert (watch.n_fired, watch.activation_max) == (
        len(text.tokens),
        pytest.approx(zs[2].max(), rel=1e-4),
    )


HELD = """\
  - name: on the recording
    recording: tiny.rec
    expect:
      rules:
        push: {applies: true, tokens: {min: 1}, first: 13, dose: {min: 0.49, max: 0.51}}
        watch: {tokens: {max: 100}}
      alerts: {watch: firing}
      aborts: false
  - name: on the model
    model: model.gguf
    prompt: the sun
    raw: true
    max_tokens: 3
    expect:
      rules: {push: {tokens: 3}}
      alerts: {watch: fired}
      answer: {matches: ["(?s).*"], excludes: ["no such text"], excludes_matches: ["^no such"]}
"""


def test_cases_that_hold(folder: Path, call: Cli) -> None:
    first = read_recording(folder / "tiny.rec").texts[0]
    assert first.n_prompt is not None
    write(folder, HELD.replace("first: 13", f"first: {first.n_prompt - 1}"))
    code, out, err = call("test")
    assert (code, out, err) == (
        0,
        "policy.test.yaml: on the recording: ok\npolicy.test.yaml: on the model: ok\n"
        "2 cases, 0 failed; 3 of 3 rules exercised\n",
        "",
    )


FAILING = """\
  - name: r
    recording: tiny.rec
    expect:
      rules:
        push: {tokens: 0, dose: {max: 0.25}, applies: false}
      alerts: {watch: quiet}
      aborts: true
  - name: m
    prompt: the sun
    raw: true
    max_tokens: 2
    expect:
      answer: {contains: ["no such text"]}
  - {name: gone, recording: gone.rec, expect: {aborts: false}}
"""


def test_what_does_not_hold_is_said_with_its_place(folder: Path, call: Cli) -> None:
    write(folder, FAILING)
    code, out, _ = call("test", "policy.test.yaml", "-m", "model.gguf", "--junit", "j.xml")
    assert code == 1
    n = len(read_recording(folder / "tiny.rec").texts[0].tokens)
    n -= (read_recording(folder / "tiny.rec").texts[0].n_prompt or 0) - 1
    lines = [line.strip() for line in out.splitlines() if line.startswith("  ")]
    at = "cases[0].expect"
    assert lines[:5] == [
        f"policy.test.yaml:9:16: tokens of the rule push is not as expected (at {at}.rules.push.tokens)"
        f"; found {n}; expected 0",
        f"policy.test.yaml:9:27: dose of the rule push is not as expected (at {at}.rules.push.dose)"
        "; found 0.5; expected at most 0.25",
        "policy.test.yaml:9:46: applies of the rule push is not as expected "
        f"(at {at}.rules.push.applies); found given to the request; expected not given to the request",
        "policy.test.yaml:10:16: the alert watch is not as expected "
        f"(at {at}.alerts.watch); found firing; expected quiet",
        f"policy.test.yaml:11:7: ending the generation is not as expected (at {at}.aborts)"
        "; found it did not; expected that it does",
    ]
    assert lines[5].startswith("policy.test.yaml:17:27: the answer is not as expected")
    assert lines[6] == "gone.rec: no such file"
    assert out.splitlines()[-1].startswith("3 cases, 3 failed; ")
    suites = ET.parse(folder / "j.xml").getroot()
    (suite,) = suites
    counts = {key: suite.get(key) for key in ("name", "tests", "failures", "errors")}
    assert counts == {"name": "policy.test.yaml", "tests": "3", "failures": "2", "errors": "1"}
    assert [(case.get("name"), case.get("line"), len(case)) for case in suite] == [
        ("r", "5", 5),
        ("m", "12", 1),
        ("gone", "18", 1),
    ]
    assert suite[2][0].tag == "error"
    assert suite[0][0].text == lines[0]


def test_a_case_without_a_model_says_so(folder: Path, call: Cli) -> None:
    write(folder, "  - {name: m, prompt: x, expect: {aborts: false}}\n")
    code, out, _ = call("test", "--json")
    (case,) = json.loads(out)["tests"][0]["cases"]
    assert (code, case["failures"][0]["message"]) == (1, "the case needs a model")


def test_rules_that_no_case_exercises_are_named(folder: Path, call: Cli) -> None:
    write(folder, "  - {name: c, recording: tiny.rec, expect: {aborts: false}}\n")
    idle = TINY_POLICY.replace("name: tiny", "name: other").replace("watch,", "other,")
    (folder / "other.yaml").write_text(idle)
    policy = TINY_POLICY.replace("above: -1.0", "above: 1000000.0")
    (folder / "policy.yaml").write_text(policy)
    code, out, _ = call("test", "--min-coverage", "50")
    assert code == 1
    assert out.splitlines()[1:] == [
        "other.yaml: no case exercises the rule quiet",
        "other.yaml: no case exercises the rule push",
        "other.yaml: no case exercises the rule other",
        "policy.yaml: no case exercises the rule watch",
        "1 cases, 0 failed; 2 of 6 rules exercised, fewer than 50 %",
    ]
    assert call("test", "--min-coverage", "30")[0] == 0
    assert call("test", "policy.test.yaml", "--min-coverage", "60")[0] == 0


def test_labels_and_days_choose_the_rules(folder: Path) -> None:
    (folder / "policy.yaml").write_text(
        TINY_POLICY.replace(
            "spec:",
            "spec:\n  selector: {tenant: [acme, globex]}\n"
            "  exceptions: [{selector: {tenant: acme}, rules: [push], owner: me, until: 2027-01-31}]",
        )
    )
    cases = ""
    for number, (tenant, day, quiet, push) in enumerate(
        [
            ("acme", "2027-01-31", "true", "false"),
            ("acme", "2027-02-01", "true", "true"),
            ("globex", "2027-01-31", "true", "true"),
            ("other", "2027-01-31", "false", "false"),
        ]
    ):
        cases += (
            f"  - name: c{number}\n    recording: tiny.rec\n    labels: {{tenant: {tenant}}}\n"
            f'    date: "{day}"\n    expect:\n'
            f"      rules: {{quiet: {{applies: {quiet}}}, push: {{applies: {push}}}}}\n"
        )
    run = run_tests([load_test(write(folder, cases))])
    for results in run.results.values():
        assert [[str(f) for f in result.failures] for result in results] == [[]] * 4


# -- what is wrong with a test file


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        (
            "  - {name: a, recording: r, expect: {rules: {quite: {tokens: 1}}}}\n",
            'p.test.yaml:5:46: the policy has no rule "quite" (at cases[0].expect.rules.quite). '
            'Did you mean "quiet"?',
        ),
        (
            "  - {name: a, recording: r, expect: {alerts: {push: fired}}}\n",
            "p.test.yaml:5:47: not an alert (at cases[0].expect.alerts.push); found the amplify rule; "
            "expected an alert rule",
        ),
        (
            "  - {name: a, recording: r, expect: {aborts: no}}\n",
            'p.test.yaml:5:46: wrong type (at cases[0].expect.aborts); found text "no"; '
            "expected true or false",
        ),
        (
            "  - {name: a, recording: r, prompt: p, expect: {aborts: true}}\n",
            "p.test.yaml:5:29: keys that exclude each other (at cases[0].prompt); "
            "found recording and prompt; expected exactly one of recording or prompt",
        ),
        (
            "  - {name: a, recording: r, max_tokens: 3, expect: {aborts: true}}\n",
            'p.test.yaml:5:29: "max_tokens" goes only with "prompt" (at cases[0].max_tokens)',
        ),
        (
            "  - {name: a, recording: r, expect: {answer: {contains: [x]}}}\n",
            "p.test.yaml:5:38: a recording has no answer to look at (at cases[0].expect.answer); "
            "expected a case with a prompt",
        ),
        (
            '  - {name: a, prompt: p, expect: {answer: {matches: ["("]}}}\n',
            "p.test.yaml:5:54: not a regular expression (at cases[0].expect.answer.matches[0]); "
            "found missing ), unterminated subpattern at position 0; expected one of Python's",
        ),
        (
            "  - {name: a, recording: r, expect: {rules: {push: {tokens: {min: 3, max: 2}}}}}\n",
            "p.test.yaml:5:62: min is above max (at cases[0].expect.rules.push.tokens.min); "
            "found min 3 and max 2; expected min ≤ max",
        ),
        (
            "  - &a {name: a, recording: r, expect: {aborts: true}}\n",
            'p.test.yaml:5:5: anchors and aliases are not allowed; found "&a"; '
            "expected the value written out",
        ),
        (
            '  - {name: a, recording: r, date: "2027-02-30", expect: {aborts: true}}\n'
            "  - {name: a, recording: r, expect: {aborts: true}}\n",
            'p.test.yaml:5:35: no such day (at cases[0].date); found "2027-02-30"; '
            "expected a day of the calendar\n"
            'p.test.yaml:6:12: two cases of one name (at cases[1].name); found "a"; '
            "expected a name of its own",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(cases: str, message: str, folder: Path) -> None:
    with pytest.raises(PolicyErrors) as refused:
        load_test(write(folder, cases, "p.test.yaml").name)
    assert str(refused.value) == message


def test_a_wrong_test_file_fails_the_run_and_the_check(folder: Path, call: Cli) -> None:
    write(folder, "  - {name: a, recording: tiny.rec, expect: {aborts: false}}\n")
    write(folder, "  - {name: a, expect: {}}\n", "bad.test.yaml")
    code, out, err = call("test")
    assert code == 1
    assert "bad.test.yaml:5:5: missing key" in err
    assert "policy.test.yaml: a: ok" in out
    assert call("check", "policy.test.yaml") == (0, "policy.test.yaml: ok: tests tiny\n", "")
    code, out, _ = call("check", "bad.test.yaml", "--format", "github")
    assert code == 1
    assert "::error file=bad.test.yaml,line=5,col=5" in out
    (folder / "empty").mkdir()
    assert call("test", "empty")[0] == 2
    assert call("test", "gone")[0] == 2


def test_the_schema_is_one_and_says_what_each_key_means() -> None:
    schema = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)

    def keys(node: object) -> Iterator[dict[str, object]]:
        if isinstance(node, dict):
            yield from node.get("properties", {}).values()
            for child in node.values():
                yield from keys(child)

    found = list(keys(schema))
    assert len(found) > 30
    for key in found:
        name = str(key.get("$ref", "")).rpartition("/")[2]
        whole = {**schema["$defs"].get(name, {}), **key}
        # A path or a list of texts means something else at each key, a rule or a case does not.
        assert whole.get("title"), key
        assert (key if name in ("path", "range", "texts") else whole).get("description"), key
