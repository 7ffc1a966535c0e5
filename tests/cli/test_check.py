from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scope_runtime.cli.main import main
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


def test_a_valid_policy(check: Check) -> None:
    assert check("good.yaml", "--no-files") == (0, "good.yaml: ok: good\n", "")


def test_an_invalid_policy_lists_each_error_with_its_place(check: Check) -> None:
    code, out, err = check("bad.yaml", "--no-files")
    assert (code, err) == (1, "")
    assert out == BAD_LINES


def test_warnings_alone_have_their_own_exit_code(check: Check) -> None:
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


def test_wrong_usage(check: Check, tmp_path: Path) -> None:
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


def test_a_feature_that_is_not_in_the_pack(check: Check, tiny: Tiny) -> None:
    wrong = tiny.policy.with_name("wrong.yaml")
    wrong.write_text(tiny.policy.read_text().replace("layer: 2, id: 5", "layer: 2, id: 999999"))
    code, out, _ = check(wrong, "--no-warnings")
    assert code == 1
    assert "999999" in out
    assert "wrong.yaml" in out
