"""What changes between two policies, and what that does to residuals and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.cli.main import main
from scope_runtime.llama import library
from scope_runtime.llama.record import record
from scope_runtime.packs import read_pack
from scope_runtime.recording import read_recording
from scope_runtime.runtime import Runtime
from tests.conftest import TINY_POLICY, Tiny

library.load()

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Cli:
    for name in ("pack.gguf", "vector.gguf"):
        (tmp_path / name).write_bytes(tiny.policy.with_name(name).read_bytes())
    (tmp_path / "a.yaml").write_text(TINY_POLICY)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["diff", *map(str, arguments)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def edited(*changes: tuple[str, str]) -> None:
    text = TINY_POLICY
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    Path("b.yaml").write_text(text)


def test_what_is_said_of_rules_and_settings(call: Cli) -> None:
    edited(
        ("spec:\n", "spec:\n  mode: audit\n  limits: {dose: {max: 0.5}}\n"),
        ("id: 5}", "id: 5, gate: none}"),
        ("mute: [one, two]", "scale: [one, two], factor: 0.25"),
        ("name: watch", "name: look"),
    )
    code, out, err = call("a.yaml", "b.yaml")
    assert (code, err) == (0, "")
    assert (
        out
        == """\
policy tiny: changed
  mode: enforce → audit
  dose_limit.max: none → 0.5
  dose_limit.on_excess: none → clamp
layer 1: quiet: changed
  op: mute → scale
  mode: enforce → audit
  factor: none → 0.25
layer 2: look: new
  + op: alert
  + alert.above: -1.0
  + alert.for_tokens: 1
  + alert.keep_firing_for_tokens: 0
  + alert.watch: max
  + alert.severity: warning
  + alert.actions: log, metric
  + mode: audit
  + features: two (layer 2, id 5)
  + gates: two none
layer 2: push: changed
  mode: enforce → audit
layer 2: quiet: changed
  op: mute → scale
  mode: enforce → audit
  factor: none → 0.25
  gates: none → two none
layer 2: watch: gone
  - op: alert
  - alert.above: -1.0
  - alert.for_tokens: 1
  - alert.keep_firing_for_tokens: 0
  - alert.watch: max
  - alert.severity: warning
  - alert.actions: log, metric
  - mode: enforce
  - features: two (layer 2, id 5)
"""
    )


def test_comments_and_names_of_features_change_nothing(call: Cli) -> None:
    edited(("metadata: {name: tiny}", "metadata: {name: tiny, owner: us}  # ours"))
    code, out, _ = call("a.yaml", "b.yaml", "--exit-code")
    assert (code, out) == (
        0,
        "The same programs for the same requests: nothing that the model computes changes.\n",
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("alpha: 0.5", "alpha: 0.5000001"),
        ("spec:\n", "spec:\n  selector: {tenant: acme}\n"),
        ("above: -1.0", "above: -1.0, watch: sum"),
        ("id: 3", "id: 4"),
    ],
)
def test_whatever_has_an_effect_is_a_difference(before: str, after: str, call: Cli) -> None:
    edited((before, after))
    code, out, _ = call("a.yaml", "b.yaml", "--exit-code")
    assert code == 1
    assert "changed" in out


def test_a_pack_that_changed_is_named(call: Cli, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for folder in (other, tmp_path):
        (folder / "a.yaml").write_text(TINY_POLICY.replace(", layers: [2]", ""))
    for name in ("pack.gguf", "vector.gguf"):
        (other / name).write_bytes((tmp_path / name).read_bytes())
    assert call("a.yaml", "other/a.yaml", "--exit-code")[0] == 0
    data = bytearray((tmp_path / "vector.gguf").read_bytes())
    data[-2] ^= 0x10  # in the last float
    (other / "vector.gguf").write_bytes(bytes(data))
    code, out, _ = call("a.yaml", "other/a.yaml", "--exit-code", "--json")
    said = json.loads(out)
    assert (code, [each["name"] for each in said["files"]]) == (1, ["vector.gguf"])


def test_doses_on_a_recording_are_what_brute_force_says(
    call: Cli, tiny: Tiny, tmp_path: Path
) -> None:
    record(tiny.model, ["the sun rises", "a bird"], tmp_path / "r.rec", max_tokens=6)
    edited(("mute: [one, two]", "scale: [one, two], factor: 0.25"))
    _, out, _ = call("a.yaml", "b.yaml", "--recording", "r.rec", "--json")
    found = json.loads(out)["recording"]
    pack, recording = read_pack(tmp_path / "pack.gguf"), read_recording(tmp_path / "r.rec")
    changed = [np.zeros(len(text.tokens), bool) for text in recording.texts]
    for entry, (layer, id) in zip(found["layers"], ((1, 3), (2, 5)), strict=True):
        at = pack.layers[layer]
        row = at.row(id)
        doses = []
        for number, text in enumerate(recording.texts):
            h = text.layers[layer].astype(np.float64)
            z = np.maximum(h @ at.enc[row].astype(np.float64) + at.enc_bias[row], 0)
            moved = 0.25 * z * np.linalg.norm(at.dec[row].astype(np.float64))
            doses.append(moved / np.linalg.norm(h, axis=1))
            changed[number] |= z > 0
        every = np.concatenate(doses)
        assert (entry["layer"], entry["n_tokens"]) == (layer, int((every > 0).sum()))
        assert entry["dose_max"] == pytest.approx(every.max(), rel=1e-3)
        assert entry["dose_mean"] == pytest.approx(every[every > 0].mean(), rel=1e-3)
    assert found["n_tokens"] == sum(len(text.tokens) for text in recording.texts)
    assert found["n_changed"] == sum(int(each.sum()) for each in changed)
    _, out, _ = call("a.yaml", "b.yaml", "--recording", "r.rec")
    assert f"{found['n_changed']} of {found['n_tokens']} tokens of 2 texts are changed" in out
    assert "On the recording: 0 of" in call("a.yaml", "a.yaml", "--recording", "r.rec")[1]


def test_alerts_that_fire_more_or_less_are_counted(call: Cli, tiny: Tiny, tmp_path: Path) -> None:
    record(tiny.model, ["the sun rises", "a bird"], tmp_path / "r.rec")
    edited(("above: -1.0", "above: 1000000.0"))
    _, out, _ = call("a.yaml", "b.yaml", "--recording", "r.rec")
    assert "  alert watch: fires 2 times → 0 times\n" in out


def test_answers_of_a_model(call: Cli, tiny: Tiny, tmp_path: Path) -> None:
    edited(("alpha: 0.5", "alpha: -8"))
    prompts = ["the sun rises", "a bird sings"]
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    options = ["-m", tiny.model, "--prompts", "p.txt", "-n", 4, "--raw"]
    _, out, _ = call("a.yaml", "b.yaml", *options, "--json")
    answers = json.loads(out)["answers"]
    wanted = []
    for name in ("a.yaml", "b.yaml"):
        with Runtime(tiny.model, name, n_ctx=1024) as runtime:
            wanted.append(
                [runtime.generate(p, max_tokens=4, temperature=0.0).text for p in prompts]
            )
    assert [[each[side] for each in answers["each"]] for side in "ab"] == wanted
    assert answers["n_different"] == sum(x != y for x, y in zip(*wanted, strict=True)) == 2
    code, out, _ = call("a.yaml", "a.yaml", *options)
    assert (code, out.splitlines()[-1]) == (0, "On the model: 0 of 2 answers differ")


def test_wrong_usage(call: Cli) -> None:
    assert call("a.yaml", "a.yaml", "--prompts", "p.txt") == (
        2,
        "",
        "error: --model and --prompts go together\n",
    )
    code, _, err = call("a.yaml", "gone.yaml")
    assert (code, err) == (
        1,
        "error: gone.yaml: the policy cannot be read; found No such file or directory\n",
    )
