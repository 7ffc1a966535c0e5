"""Repositories of the Hugging Face hub: ``hf:owner/name[@revision][/folder]``.

The revision is resolved to a commit first, and everything after that is asked for at that commit and
goes into the provenance. Only the list of files, small files (configuration, README, licence) and the
weights of the layers that are wanted are fetched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from converters.features import SaeLayer, SaeSet, Vectors
from converters.licence import LICENCE_FILES
from scope_runtime.errors import Location, PackError, UsageError
from scope_runtime.pack_types import layer_name
from scope_runtime.policy.model import EMBEDDING

MAX_FILES = 20_000
_ADDRESS = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+?))?(?:/(?P<folder>[^@]*))?"
)
_COMPANIONS = {"cfg.json", "config.json", "hyperparams.json", "README.md", *LICENCE_FILES}
_WEIGHTS = (".safetensors", ".npz", ".pt", ".pth", ".gguf", ".svec")
_LAYER = re.compile(
    r"(?:^|[/._-])(?:layers?[._]?|blocks\.|L)(\d{1,4})(?=[/._-]|[RMA]-|$)(?P<pre>\.hook_resid_pre)?"
)
_Opened = TypeVar("_Opened", SaeSet, Vectors)


class Client(Protocol):
    """What is used of the hub; a test gives its own."""

    def resolve(self, repository: str, revision: str | None) -> tuple[str, list[str]]:
        """The commit of a revision (a branch, tag or commit; None: the main one), and its files."""
        ...

    def download(self, repository: str, commit: str, file: str) -> Path:
        """A file's path on this machine, in a folder laid out like the repository."""
        ...


class HubClient:
    """The hub itself, through huggingface_hub."""

    def __init__(self) -> None:
        """Raises UsageError if the package is not installed."""
        try:
            import huggingface_hub
        except ImportError:
            raise UsageError(
                "huggingface_hub is needed for repositories of the hub",
                hint="Install it with: pip install 'scope-runtime[hub]'",
            ) from None
        self._hub: Any = huggingface_hub

    def resolve(self, repository: str, revision: str | None) -> tuple[str, list[str]]:
        """One request."""
        info = self._hub.HfApi().model_info(repository, revision=revision)
        return str(info.sha), [each.rfilename for each in info.siblings or ()]

    def download(self, repository: str, commit: str, file: str) -> Path:
        """A request, unless the file is in the hub's cache."""
        return Path(self._hub.hf_hub_download(repository, file, revision=commit))


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched: a folder, and where it comes from."""

    folder: Path
    repository: str
    commit: str

    def wrap(self, opened: SaeSet | Vectors) -> SaeSet | Vectors:
        """The same with the origin noted."""
        if isinstance(opened, Vectors):
            return opened
        return HubSet(opened, self.repository, self.commit)


@dataclass(frozen=True, slots=True, eq=False)
class HubSet:
    """A set that came from the hub; see `converters.features.SaeSet`.

    Attributes:
        repository: ``owner/name``.
        commit: in full.
    """

    inner: SaeSet
    repository: str
    commit: str

    @property
    def path(self) -> Path:
        return self.inner.path

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def layers(self) -> tuple[int, ...]:
        return self.inner.layers

    @property
    def base_model(self) -> str | None:
        return self.inner.base_model

    @property
    def n_layer(self) -> int | None:
        return self.inner.n_layer

    @property
    def files(self) -> tuple[Path, ...]:
        return self.inner.files

    def open(self, layer: int) -> SaeLayer:
        """One layer."""
        return self.inner.open(layer)


def fetch(address: str, layers: Sequence[int] | None, client: Client | None = None) -> Fetched:
    """Fetch what is needed of a repository.

    Args:
        address: ``hf:owner/name[@revision][/folder]``.
        layers: those that are wanted; None: all, which is refused where there are several.
        client: the hub, unless a test has its own.

    Raises:
        UsageError: the address is none, the layers must be named, or the package is missing.
        PackError: the hub refuses, or has no such file.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or ".." in address:
        raise UsageError(
            "no address of a repository",
            found=repr(address)[:120],
            expected="hf:owner/name[@revision][/folder]",
        )
    repository, location = match["repository"], Location(address)
    client = client or HubClient()
    try:
        commit, files = client.resolve(repository, match["revision"])
    except Exception as reason:  # whatever its client raises: no network, no such repository, gated
        raise _refused(location, reason) from None
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or len(files) > MAX_FILES:
        raise PackError("an answer that makes no sense", location=location, found=commit[:60])
    folder = (match["folder"] or "").strip("/")
    wanted = _wanted([each for each in files if _is_safe(each)], folder, layers, location)
    try:
        fetched = [(name, client.download(repository, commit, name)) for name in wanted]
    except Exception as reason:
        raise _refused(location, reason) from None
    name, file = fetched[0]
    root = file.parents[len(PurePosixPath(name).parts) - 1]
    return Fetched(root / folder if folder else root, repository, commit)


def _wanted(
    files: list[str], folder: str, layers: Sequence[int] | None, location: Location
) -> list[str]:
    inside = [
        each for each in files if not folder or each == folder or each.startswith(folder + "/")
    ]
    weights = {each: layer_of(each) for each in inside if each.endswith(_WEIGHTS)}
    if layers is not None and any(layer is not None for layer in weights.values()):
        chosen = {name for name, layer in weights.items() if layer in (None, *layers)}
    else:
        chosen = set(weights)
    known = sorted({layer for layer in weights.values() if layer is not None})
    if not chosen:
        raise PackError(
            "no weights of that kind in the repository",
            location=location,
            found=f"{len(inside)} files",
            expected="layers " + ", ".join(map(layer_name, known[:40])) if known else None,
        )
    if layers is None and len(chosen) > 1:
        raise UsageError(
            "several layers or files of weights: say which",
            location=location,
            found=", ".join(sorted(chosen)[:8]),
            hint="Name the folder behind the repository",
        )
    for layer in sorted({each for name in chosen if (each := weights[name]) is not None}):
        same = sorted(name for name in chosen if weights[name] == layer)
        if len(same) > 1:
            raise UsageError(
                f"{len(same)} SAEs of layer {layer_name(layer)}",
                location=location,
                found=", ".join(same[:8]),
                hint="Name the folder of one of them behind the repository",
            )
    around = {str(parent) for name in chosen for parent in PurePosixPath(name).parents}
    beside = {
        each
        for each in files
        if PurePosixPath(each).name in _COMPANIONS and str(PurePosixPath(each).parent) in around
    }
    return sorted(chosen | beside)


def layer_of(name: str) -> int | None:
    """The layer that a file's path names, if it names one."""
    if "embedding/" in name or "embed_tokens/" in name:
        return EMBEDDING
    found = list(_LAYER.finditer(name))
    return int(found[-1][1]) - bool(found[-1]["pre"]) if found else None


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name.isprintable()


def _refused(location: Location, reason: Exception) -> PackError | UsageError:
    if isinstance(reason, UsageError):
        return reason
    first = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    return PackError("the hub does not give it", location=location, found=first[:200])
