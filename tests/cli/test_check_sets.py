"""``scope check`` on a directory holds its policies against each other; on a ``scope.yaml``, all that it names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scope_runtime.cli.main import main
from scope_runtime.lifecycle.config import changes, load_config, settings
from scope_runtime.lifecycle.types import Options
from scope_runtime.llama.checks import check_model
from tests.conftest import Tiny

MUTES = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: NAME, owner: ops, description: a test}
spec:
  features: {one: {pack: pack.gguf, layer: 1, id: 3}}
  rules: [{name: r, mute: one}]
"""
CONFIG = """\
apiVersion: scope/v1
kind: Runtime
spec:
  model: {path: model.gguf, ctx: 512}
  policy: {path: policies, poll_s: 1}
"""

Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny
) -> Check:
    """Runs a command in a folder with two policies that contradict each other, a pack and a configuration."""
    (tmp_path / "policies").mkdir()
    for name in ("pack.gguf", "vector.gguf"):
        shutil.copy(tiny.policy.with_name(name), tmp_path / "policies")
    shutil.copy(tiny.model, tmp_path / "model.gguf")
    for name in ("a", "b"):
        (tmp_path / "policies" / f"{name}.yaml").write_text(MUTES.replace("NAME", name))
    (tmp_path / "scope.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str]:
        code = main([*map(str, arguments)])
        return code, capsys.readouterr().out

    return run


CONFLICT = (
    "two policies of the set both change the feature one of layer 1; "
    'found "mute" by b, rule r; expected one rule for it; there is "mute" at policies/a.yaml:6:11. '
    "Or let selectors tell their requests apart."
)


def test_policies_of_a_directory_are_held_against_each_other(check: Check) -> None:
    code, out = check("check", "policies")
    assert code == 1
    assert out.splitlines()[0].startswith("policies/a.yaml: ok: a sha256:")
    assert out.splitlines()[1:] == [f"policies/b.yaml:6:11: error: {CONFLICT}"]
    assert (
        check("check", "policies/a.yaml", "policies/b.yaml")[0] == 0
    )  # by themselves they are sound
    assert check("check", "policies", "policies/b.yaml")[0] == 1


def test_what_one_policy_lacks_does_not_hide_what_others_do_to_each_other(check: Check) -> None:
    Path("policies/c.yaml").write_text(MUTES.replace("mute", "moot"))
    code, out = check("check", "policies")
    assert code == 1
    assert 'policies/c.yaml:6:21: error: unknown key "moot"' in out
    assert CONFLICT in out


def test_two_of_one_name_are_told_with_both_places(check: Check) -> None:
    Path("policies/b.yaml").write_text(MUTES.replace("NAME", "a"))
    _, out = check("check", "policies", "--no-files")
    assert out.splitlines()[-1] == (
        "policies/b.yaml:3:18: error: another policy of the set has this name (at metadata.name); "
        'found "a", as at policies/a.yaml:3:18; expected a name of its own'
    )


def test_both_sides_of_a_contradiction_are_in_every_format(check: Check) -> None:
    document = json.loads(check("check", "policies", "--json")[1])
    (error,) = document["policies"][1]["errors"]
    assert (error["file"], error["line"], error["column"]) == ("policies/b.yaml", 6, 11)
    assert error["related"] == [{"file": "policies/a.yaml", "line": 6, "column": 11}]
    (result,) = json.loads(check("check", "policies", "--format", "sarif")[1])["runs"][0]["results"]
    for side, file in (("locations", "b"), ("relatedLocations", "a")):
        (place,) = result[side]
        assert place["physicalLocation"] == {
            "artifactLocation": {"uri": f"policies/{file}.yaml"},
            "region": {"startLine": 6, "startColumn": 11},
        }
    *_, error_line, notice = check("check", "policies", "--format", "github")[1].splitlines()
    assert error_line.startswith("::error file=policies/b.yaml,line=6,col=11,")
    assert notice == (
        "::notice file=policies/a.yaml,line=6,col=11,title=scope check%3A compile-error::"
        "policies/b.yaml:6:11 contradicts this"
    )


def test_a_configuration_is_checked_with_the_policies_that_it_names(check: Check) -> None:
    code, out = check("check", "scope.yaml")
    assert code == 1
    assert out.splitlines()[0] == "scope.yaml: ok: a runtime's configuration"
    assert f"policies/b.yaml:6:11: error: {CONFLICT}" in out
    Path("policies/b.yaml").unlink()
    assert check("check", "scope.yaml")[0] == 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ctx: 512", "cxt: 512", 'scope.yaml:4:29: error: unknown key "cxt" (at spec.model.cxt)'),
        ("path: policies", "path: gone", "scope.yaml:5:18: error: the policies are not there"),
        ("path: policies", "path: .git", "scope.yaml:5:18: error: no policy in the directory"),
    ],
)
def test_what_is_wrong_with_a_configuration_has_its_place(
    check: Check, old: str, new: str, said: str
) -> None:
    Path(".git").mkdir()
    Path("scope.yaml").write_text(CONFIG.replace(old, new))
    code, out = check("check", "scope.yaml")
    assert code == 1
    assert said in out


def test_a_configuration_in_a_directory_is_no_policy(check: Check) -> None:
    alone = check("check", "scope.yaml")
    assert alone[0] == 1
    assert check("check", ".") == alone
    for path in Path("policies").iterdir():
        if path.name != "b.yaml":
            path.rename(path.name)
    Path("policies").rename("elsewhere")
    Path("scope.yaml").write_text(CONFIG.replace("cy: {path: policies", "cy: {path: a.yaml"))
    code, out = check("check", ".")
    assert code == 0, out
    policy, config = out.splitlines()
    assert policy.startswith("a.yaml: ok: a sha256:")
    assert config == "scope.yaml: ok: a runtime's configuration"


def test_a_context_beyond_the_training_is_a_warning(check: Check) -> None:
    Path("policies/b.yaml").unlink()
    n_ctx_train = check_model("model.gguf").n_ctx_train
    assert n_ctx_train is not None
    Path("scope.yaml").write_text(CONFIG.replace("ctx: 512", f"ctx: {n_ctx_train}"))
    assert check("check", "scope.yaml")[0] == 0
    Path("scope.yaml").write_text(CONFIG.replace("ctx: 512", f"ctx: {n_ctx_train + 1}"))
    code, out = check("check", "scope.yaml")
    assert code == 3
    assert (
        f"scope.yaml:4:34: warning: a context of {n_ctx_train + 1:,} tokens is longer than" in out
    )


def test_policies_are_held_against_the_model_that_is_configured(check: Check) -> None:
    Path("policies/b.yaml").unlink()
    text = MUTES.replace("NAME", "a").replace(
        "{pack: pack.gguf, layer: 1, id: 3}", "{vector: vector.gguf}"
    )
    text = text.replace("mute: one", "amplify: one, alpha: 1")
    Path("policies/a.yaml").write_text(text.replace("spec:\n", "spec:\n  model: {layers: 99}\n"))
    code, out = check("check", "policies", "--no-warnings")
    assert code == 0, out  # nothing says what else it could be
    code, out = check("check", "scope.yaml")
    assert code == 1
    assert "policies/a.yaml:5:10: error: " in out
    Path("model.gguf").unlink()
    code, out = check("check", "scope.yaml")
    assert code == 3
    assert "scope.yaml:4:17: warning: no model at model.gguf" in out


def test_explain_tells_every_key_then_the_policies(check: Check) -> None:
    Path("policies/b.yaml").unlink()
    code, out = check("explain", "scope.yaml", "--json")
    assert code == 0
    data = json.loads(out)
    keys = {each["key"]: each for each in data["configuration"]["keys"]}
    assert tuple((key, each["change"]) for key, each in keys.items()) == changes()
    assert (keys["spec.model.ctx"]["value"], keys["spec.model.ctx"]["said"]) == (512, True)
    assert (keys["spec.policy.keep"]["value"], keys["spec.policy.keep"]["said"]) == (10, False)
    assert keys["spec.audit.path"]["value"] is None
    assert data["policy"] == "a"
    code, out = check("explain", "scope.yaml")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["spec.model.ctx", "512", "restart"] in lines
    assert ["spec.policy.keep", "10", "default", "reload"] in lines
    assert "a (enforce) on model.gguf" in out


def test_the_defaults_that_are_told_are_those_that_hold(check: Check) -> None:
    Path("scope.yaml").write_text(CONFIG.replace(", ctx: 512", "").replace(", poll_s: 1", ""))
    config = load_config("scope.yaml")
    told = {each.key.rpartition(".")[2]: each.value for each in settings(config)}
    assert (told["ctx"], told["gpu_layers"]) == (config.n_ctx, config.n_gpu_layers)
    for name in ("keep", "poll_s", "debounce_ms", "compile_nice", "fail"):
        assert told[name] == getattr(Options(), name) == getattr(config.options, name)
