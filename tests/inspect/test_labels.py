"""Labels into packs, and out of the files that others write."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scope_runtime.cli.main import main
from scope_runtime.errors import PackError, UsageError
from scope_runtime.inspect.labels import label_pack, read_labels
from scope_runtime.packs import read_pack
from scope_runtime.policy.load import load_policy
from scope_runtime.policy.revision import policy_revision
from tests.conftest import ROOT

POLICIES = ROOT / "policies"
NEURONPEDIA = [
    {"modelId": "m", "layer": "3-res-1k", "index": "767", "description": "about to\nswitch"},
    {"modelId": "m", "layer": "2-res-1k", "index": "685", "description": "refusals"},
    {"modelId": "m", "layer": "2-res-1k", "index": "685", "description": "a second opinion"},
    {"modelId": "m", "layer": "2-res-1k", "index": "4", "description": "elsewhere"},
]
EXPECTED = {(3, 767): "about to switch", (2, 685): "refusals", (2, 4): "elsewhere"}


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return Path(shutil.copy(POLICIES / "packs" / "tiny-qwen3.gguf", tmp_path / "pack.gguf"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, NEURONPEDIA)).encode()),
        ("a.json", json.dumps(NEURONPEDIA).encode()),
        ("b.json", json.dumps({"explanations": NEURONPEDIA}).encode()),
        ("a.jsonl.gz", gzip.compress("\n".join(map(json.dumps, NEURONPEDIA)).encode())),
        ("a.csv", b"layer,id,label\n3,767,about to  switch\n2,685,refusals\n2,4,elsewhere\n"),
        ("c.json", b'{"3:767": "about to\\u001b switch", "2:685": "refusals", "2:4": "elsewhere"}'),
        (
            "d.json",
            b'[{"layer": 3, "id": 767, "label": "about to switch"}, {"layer": 2, "id": 685, "label":'
            b' "refusals"}, {"layer": 2, "id": 4, "label": "elsewhere"}]',
        ),
    ],
)
def test_every_form_says_the_same(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert read_labels(path) == EXPECTED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"layer": 1}\n{"layer": "x"}\n', "{path}:1: no label; found "),
        ('{"layer": 1, "id": 2, "label": "a"}\n{"b"\n', "{path}:2: no JSON; found "),
        ('{"3-767": "a"}', "{path}: no label; found "),
        ('["a"]', "{path}: no label; found 'a'; expected layer, id and label"),
        ('{"1:2": 7}', "{path}: no label; found "),
        ('{"explanations": 5}', "{path}: no label; found int; expected "),
        ("one\ntwo\n", "{path}:1: the first line does not name the columns; found 'one'"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        read_labels(path)
    assert str(error.value).startswith(message.format(path=path))


def test_too_long_a_label_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"1:2": "word " * 100}))
    [label] = read_labels(path).values()
    assert len(label) <= 200
    assert label.endswith("word…")


def test_only_labels_change_and_back_is_the_same_file(pack: Path) -> None:
    before = read_pack(pack)
    done = label_pack(pack, {(3, 767): "switches", (2, 4): "nowhere"})
    assert (done.changed, done.absent, done.before) == (((3, 767),), 1, before.digest)
    after = read_pack(pack)
    assert after.digest == done.pack.digest != before.digest
    assert (after.model, after.provenance) == (before.model, before.provenance)
    for number, layer in before.layers.items():
        other = after.layer(number)
        for name in ("ids", "enc", "enc_bias", "dec", "full_enc", "full_enc_bias"):
            assert np.array_equal(getattr(layer, name), getattr(other, name))
        assert (layer.gate, layer.k, layer.notes) == (other.gate, other.k, other.notes)
        for row, id in enumerate(layer.ids.tolist()):
            expected = "switches" if (number, id) == (3, 767) else layer.labels[row]
            assert other.labels[row] == expected
    assert label_pack(pack, {(3, 767): "drift-a"}).pack.digest == before.digest


def test_a_label_that_no_pack_may_hold_changes_nothing(pack: Path) -> None:
    data = pack.read_bytes()
    with pytest.raises(PackError, match="control characters"):
        label_pack(pack, {(3, 767): "\x1b[2J"})
    assert pack.read_bytes() == data


def test_a_policy_gets_a_new_revision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(POLICIES, tmp_path / "policies")
    policy, pack = (
        tmp_path / "policies" / "refusal-watch.yaml",
        tmp_path / "policies/packs/tiny-qwen3.gguf",
    )
    before = policy_revision(load_policy(policy))
    assert main(["label", str(pack), "--set", "2:685=says no"]) == 0
    out = capsys.readouterr().out
    assert "2:685: says no\n" in out
    assert f"{read_pack(pack).digest} now: policies that name it get a new revision" in out
    assert policy_revision(load_policy(policy)) != before
    assert main(["check", str(policy)]) == 0


def test_listing_and_importing_from_the_command_line(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(map(json.dumps, NEURONPEDIA)))
    data = pack.read_bytes()
    out = tmp_path / "new.gguf"
    arguments = ["label", str(pack), "--import", str(file), "-s", "2:685=mine", "-o", str(out)]
    assert main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["changed"], said["absent"], said["path"]) == (2, 1, str(out))
    assert pack.read_bytes() == data
    assert main(["label", str(out)]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["3:767", "about to switch"] in [[a, *map(str.rstrip, b)] for a, *b in lines]
    assert ["2:685", "mine"] in [[a, *map(str.rstrip, b)] for a, *b in lines]
    assert main(["label", str(out), "--import", str(file), "-s", "2:685=mine"]) == 0
    assert "no label differs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "3:1=x"], 1, "feature 1 of layer 3 is not in the pack"),
        (["--set", "9:1=x"], 1, "layer 9 is not in the pack"),
        (["--set", "3:767"], 2, "no label; found '3:767'; expected LAYER:ID=LABEL"),
        (["-o", "x.gguf"], 2, "there is nothing to write"),
    ],
)
def test_errors_say_what_is_wrong(
    arguments: list[str], code: int, message: str, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", str(pack), *arguments]) == code
    assert message in capsys.readouterr().err
