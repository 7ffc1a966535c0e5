from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scope_runtime.cli.findings import Finding, github
from scope_runtime.cli.main import main
from scope_runtime.errors import Location
from tests.conftest import Tiny

GOOD = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: good, owner: ops, description: a test}
spec:
  features: {style: {vector: v.gguf}}
  rules: [{name: r, amplify: style, alpha: 1}]
"""
BAD = GOOD.replace("alpha: 1", "alpha: one").replace("kind: S", "Kind: S")
LINTY = GOOD.replace(", owner: ops", "")

Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Check:
    """Runs ``scope check`` in a folder with the three policies."""
    for name, text in (("good", GOOD), ("bad", BAD), ("linty", LINTY)):
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["check", *map(str, arguments)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


BAD_LINES = (
    'bad.yaml:2:1: error: unknown key "Kind" (at Kind). Did you mean "kind"?\n'
    'bad.yaml:6:44: error: wrong type (at spec.rules[0].alpha); found text "one"; expected a number\n'
)
LINTY_LINES = (
    "linty.yaml: warning: nobody is named who answers for the policy [no-owner]\n"
    "linty.yaml: ok: good\n"
)


def test_behaviour_2_fine_is_0(check: Check) -> None:
    assert check("good.yaml", "--no-files") == (0, "good.yaml: ok: good\n", "")


def test_behaviour_2_invalid_is_1_and_lists_each_error_with_its_place(check: Check) -> None:
    code, out, err = check("bad.yaml", "--no-files")
    assert (code, err) == (1, "")
    assert out == BAD_LINES


def test_behaviour_2_warnings_alone_are_3(check: Check) -> None:
    assert check("linty.yaml", "--no-files") == (3, LINTY_LINES, "")
    assert check("linty.yaml", "--no-files", "--no-warnings") == (0, "linty.yaml: ok: good\n", "")


def test_an_error_weighs_more_than_a_warning(check: Check) -> None:
    assert check("linty.yaml", "bad.yaml", "good.yaml", "--no-files")[0] == 1


def test_a_directory_is_its_policies(check: Check) -> None:
    code, out, _ = check(".", "--no-files")
    assert code == 1
    assert [line.split(":")[0] for line in out.splitlines()] == [
        *["bad.yaml"] * 2,
        "good.yaml",
        *["linty.yaml"] * 2,
    ]


def test_behaviour_2_wrong_usage_is_2(check: Check, tmp_path: Path) -> None:
    assert check("gone.yaml") == (
        2,
        "",
        "error: no such file or directory; found gone.yaml\n",
    )
    (tmp_path / "empty").mkdir()
    code, out, err = check("empty")
    assert (code, out) == (2, "")
    assert err == "error: no policy in the directory; found empty; expected *.yaml\n"
    assert check()[0] == 2


def test_json_carries_the_same(check: Check) -> None:
    code, out, err = check("bad.yaml", "linty.yaml", "--no-files", "--json")
    assert (code, err) == (1, "")
    document = json.loads(out)
    assert document["valid"] is False
    bad, linty = document["policies"]
    assert [(e["line"], e["column"], e["key"]) for e in bad["errors"]] == [
        (2, 1, "Kind"),
        (6, 44, "spec.rules[0].alpha"),
    ]
    assert bad["errors"][1] == {
        "error": "PolicyError",
        "message": "wrong type",
        "file": "bad.yaml",
        "line": 6,
        "column": 44,
        "key": "spec.rules[0].alpha",
        "found": 'text "one"',
        "expected": "a number",
        "hint": None,
    }
    assert (linty["name"], linty["errors"]) == ("good", [])
    assert [warning["warning"] for warning in linty["warnings"]] == ["no-owner"]


def test_a_missing_pack_is_an_error_unless_files_are_left_out(check: Check) -> None:
    code, out, _ = check("good.yaml")
    assert code == 1
    assert out == (
        "good.yaml:5:30: error: no such file (at spec.features.style.vector); "
        "found nothing at v.gguf; expected a file\n"
    )


def test_what_is_not_a_pack_is_an_error_in_words(check: Check, tmp_path: Path) -> None:
    (tmp_path / "v.gguf").write_bytes(b"not a vector")
    code, out, err = check("good.yaml")
    assert (code, err) == (1, "")
    assert "v.gguf" in out
    assert "error" in out


def test_packs_are_opened_and_the_policy_compiled(check: Check, tiny: Tiny) -> None:
    code, out, _ = check(tiny.policy, "--no-warnings")
    assert code == 0
    assert out.startswith(f"{tiny.policy}: ok: tiny sha256:")


def test_behaviour_1_a_feature_that_is_not_in_the_pack(check: Check, tiny: Tiny) -> None:
    wrong = tiny.policy.with_name("wrong.yaml")
    wrong.write_text(tiny.policy.read_text().replace("layer: 2, id: 5", "layer: 2, id: 999999"))
    code, out, _ = check(wrong, "--no-warnings")
    assert code == 1
    assert "999999" in out
    assert "wrong.yaml" in out


# -- formats of code hosts


def sarif_results(out: str) -> list[dict[str, Any]]:
    """The results, after what SARIF 2.1.0 asks of the log around them."""
    log = json.loads(out)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "scope check"
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(ids) == len(set(ids))
    for result in run["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
    assert len({r["partialFingerprints"]["scope/v1"] for r in run["results"]}) == len(
        run["results"]
    )
    return list(run["results"])


def test_sarif(check: Check) -> None:
    code, out, err = check("--format", "sarif", "bad.yaml", "good.yaml", "linty.yaml", "--no-files")
    assert (code, err) == (1, "")
    places = [
        (r["ruleId"], r["level"], r["locations"][0]["physicalLocation"]) for r in sarif_results(out)
    ]
    assert places == [
        (
            "policy-error",
            "error",
            {
                "artifactLocation": {"uri": "bad.yaml"},
                "region": {"startLine": 2, "startColumn": 1},
            },
        ),
        (
            "policy-error",
            "error",
            {
                "artifactLocation": {"uri": "bad.yaml"},
                "region": {"startLine": 6, "startColumn": 44},
            },
        ),
        ("no-owner", "warning", {"artifactLocation": {"uri": "linty.yaml"}}),
    ]


def test_sarif_of_nothing_is_a_run_without_results(check: Check) -> None:
    code, out, _ = check("--format", "sarif", "good.yaml", "--no-files")
    assert (code, sarif_results(out)) == (0, [])


def test_sarif_names_files_by_uri(check: Check, tmp_path: Path) -> None:
    odd = tmp_path / "a b#ä.yaml"
    odd.write_text(BAD)
    _, out, _ = check("--format", "sarif", odd.name, odd, "--no-files")
    uris = {
        r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in sarif_results(out)
    }
    assert uris == {"a%20b%23%C3%A4.yaml", odd.as_uri()}


def test_github_annotations(check: Check) -> None:
    code, out, err = check("--format", "github", "bad.yaml", "linty.yaml", "--no-files")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert "\n".join(lines[:4]) + "\n" == BAD_LINES + LINTY_LINES
    assert lines[4:] == [
        "::error file=bad.yaml,line=2,col=1,title=scope check%3A policy-error::"
        'unknown key "Kind" (at Kind). Did you mean "kind"?',
        "::error file=bad.yaml,line=6,col=44,title=scope check%3A policy-error::"
        'wrong type (at spec.rules[0].alpha); found text "one"; expected a number',
        "::warning file=linty.yaml,title=scope check%3A no-owner::"
        "nobody is named who answers for the policy",
    ]


def test_an_annotation_stays_one_command() -> None:
    finding = Finding("error", "x", "50 %\nnext", Location("a,b:c.yaml", 1))
    assert github([finding]) == [
        "::error file=a%2Cb%3Ac.yaml,line=1,title=scope check%3A x::50 %25%0Anext"
    ]


def test_an_unknown_format_is_wrong_usage(check: Check) -> None:
    code, out, err = check("--format", "xml", "good.yaml")
    assert (code, out) == (2, "")
    assert "'xml' is not one of" in err
