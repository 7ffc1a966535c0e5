"""Repositories of the hub, with a hub of our own: what is resolved, what is fetched, what is refused."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from converters import FeatureRequest, convert_pack, hub
from converters.hub import fetch, layer_of
from scope_runtime.errors import PackError, ScopeError, UsageError
from scope_runtime.policy.model import EMBEDDING

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHAPES = {"W_enc": (4, 6), "W_dec": (6, 4), "b_enc": (6,), "b_dec": (4,), "threshold": (6,)}


@dataclass
class FakeHub:
    """A repository made of local files, laid out as the hub's cache lays them out."""

    cache: Path
    files: dict[str, Path]
    commit: str = COMMIT
    asked: list[str] = field(default_factory=list)
    revisions: list[str | None] = field(default_factory=list)

    def resolve(self, repository: str, revision: str | None) -> tuple[str, list[str]]:
        if repository != "someone/saes":
            raise OSError(f"404: no repository {repository}\nwith a second line")
        self.revisions.append(revision)
        return self.commit, list(self.files)

    def download(self, repository: str, commit: str, file: str) -> Path:
        assert (repository, commit) == ("someone/saes", COMMIT)
        self.asked.append(file)
        base = self.cache / "models--someone--saes"
        blob = base / "blobs" / file.replace("/", "-")
        link = base / "snapshots" / commit / file
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.files[file], blob)
        link.symlink_to(blob)
        return link


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    readme = tmp_path / "README.md"
    readme.write_text("---\nlicense: cc-by-4.0\n---\n# SAEs\n")
    weights = tmp_path / "params.npz"
    np.savez(weights, **{name: np.ones(shape, np.float32) for name, shape in SHAPES.items()})
    files = {f"layer_{n}/width_16k/average_l0_7/params.npz": weights for n in (5, 6, 15)}
    made = FakeHub(
        tmp_path / "cache", {"README.md": readme, "layer_5/unrelated.bin": readme, **files}
    )
    monkeypatch.setattr(hub, "HubClient", lambda: made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "digests"))
    return made


def test_only_the_layers_that_are_wanted(fake: FakeHub, tmp_path: Path) -> None:
    pack = convert_pack(
        "hf:someone/saes@v1",
        [FeatureRequest(5, 3, "three")],
        tmp_path / "p.gguf",
        architecture="gemma2",
        n_layer=26,
    )
    assert fake.revisions == ["v1"]
    assert fake.asked == ["README.md", "layer_5/width_16k/average_l0_7/params.npz"]
    provenance = dict(pack.provenance)
    assert provenance["hub.repository"] == "someone/saes"
    assert provenance["hub.commit"] == COMMIT
    assert provenance["licence"] == "license: cc-by-4.0\n"
    assert "sha256.layer_5.width_16k.average_l0_7.params.npz" in provenance


def test_a_folder_may_be_named(fake: FakeHub) -> None:
    fetched = fetch("hf:someone/saes/layer_15/width_16k/average_l0_7", None, fake)
    assert fake.revisions == [None]
    assert fetched.folder.parts[-3:] == ("layer_15", "width_16k", "average_l0_7")
    assert (fetched.folder / "params.npz").is_file()


@pytest.mark.parametrize(
    ("address", "layers", "message"),
    [
        (
            "hf:someone",
            None,
            "no address of a repository; found 'hf:someone'; "
            "expected hf:owner/name[@revision][/folder]",
        ),
        ("hf:someone/saes/../x", None, "no address of a repository"),
        ("hf:someone/saes", None, "hf:someone/saes: several layers or files of weights: say which"),
        (
            "hf:someone/saes",
            (7,),
            "hf:someone/saes: no weights of that kind in the repository; found 5 files; "
            "expected layers 5, 6, 15",
        ),
        (
            "hf:nobody/nothing",
            None,
            "hf:nobody/nothing: the hub does not give it; found 404: no repository nobody/nothing",
        ),
    ],
)
def test_what_is_refused(
    fake: FakeHub, address: str, layers: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ScopeError) as caught:
        fetch(address, layers, fake)
    assert str(caught.value).startswith(message)
    assert fake.asked == []


def test_one_of_several_saes_of_a_layer_must_be_named(fake: FakeHub) -> None:
    fake.files["layer_5/width_16k/average_l0_9/params.npz"] = fake.files["README.md"]
    with pytest.raises(UsageError) as caught:
        fetch("hf:someone/saes", (5,), fake)
    assert str(caught.value) == (
        "hf:someone/saes: 2 SAEs of layer 5; found layer_5/width_16k/average_l0_7/params.npz, "
        "layer_5/width_16k/average_l0_9/params.npz. "
        "Name the folder of one of them behind the repository"
    )
    assert fake.asked == []


def test_names_that_lead_elsewhere_are_not_fetched(fake: FakeHub) -> None:
    fake.files = dict.fromkeys(("../layer_1/params.npz", "/layer_2/params.npz"), Path("params.npz"))
    with pytest.raises(PackError, match="no weights of that kind"):
        fetch("hf:someone/saes", None, fake)


def test_a_commit_is_a_commit(fake: FakeHub) -> None:
    fake.commit = "main"
    with pytest.raises(PackError, match="an answer that makes no sense; found main"):
        fetch("hf:someone/saes", (5,), fake)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'scope-runtime\[hub\]'"):
        hub.HubClient()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layer20.sae.pt", 20),
        ("layer_20/width_16k/average_l0_71/params.npz", 20),
        ("resid_post/layer_9_width_16k_l0_small/params.safetensors", 9),
        ("layers.7/sae.safetensors", 7),
        ("blocks.8.hook_resid_post/sae_weights.safetensors", 8),
        ("blocks.8.hook_resid_pre/sae_weights.safetensors", 7),
        ("Llama3_1-8B-Base-L15R-8x/checkpoints/final.safetensors", 15),
        ("embedding/width_4k/average_l0_6/params.npz", EMBEDDING),
        ("ae.pt", None),
    ],
)
def test_layers_in_names(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer
