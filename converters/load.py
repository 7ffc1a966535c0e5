"""Opening what researchers publish, whatever its format: files and folders, told by their content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from converters.features import Reader, ReadOptions, SaeLayer, SaeSet, Vectors
from converters.probe import Probe
from converters.readers.control_vector import ControlVectors
from converters.readers.dictionary_learning import DictionaryLearning
from converters.readers.gemma_scope import GemmaScope
from converters.readers.llama_scope import LlamaScope
from converters.readers.qwen_scope import QwenScope, QwenScopeSet
from converters.readers.sae_lens import SaeLens
from converters.readers.sparsify import Sparsify
from converters.readers.steering_vectors import SteeringVectors
from converters.readers.svec import Svec
from scope_runtime.errors import Location, PackError, ScopeError, UsageError
from scope_runtime.pack_types import layer_name

READERS: tuple[Reader, ...] = (
    QwenScope(),
    SaeLens(),
    GemmaScope(),
    Sparsify(),
    LlamaScope(),
    DictionaryLearning(),
    ControlVectors(),
    Svec(),
    SteeringVectors(),
)
MAX_FILES = 4096
MAX_DEPTH = 5


def load(
    path: str | Path, *, layer: int | None = None, options: ReadOptions | None = None
) -> SaeLayer | Vectors:
    """Open one layer of an SAE, or steering vectors.

    Args:
        path: a file or a folder; ``hf:owner/name[@revision][/folder]`` for a repository of the
            Hugging Face hub.
        layer: which one, where there are several: a 0-based block, or `EMBEDDING`.
        options: what the files do not say.

    Returns:
        The layer, of which nothing is read yet but its description, or the vectors.

    Raises:
        PackError: nothing that is known, or damaged, or two formats at once.
        UsageError: several layers, and none is named.
    """
    opened = open_source(path, options=options, layers=None if layer is None else (layer,))
    if isinstance(opened, Vectors):
        return opened
    if layer is None and len(opened.layers) > 1:
        raise UsageError(
            "several layers",
            location=Location(str(path)),
            found=", ".join(map(layer_name, opened.layers)),
            expected="one of them to be named",
        )
    return opened.open(opened.layers[0] if layer is None else layer)


def open_source(
    path: str | Path,
    *,
    options: ReadOptions | None = None,
    layers: Sequence[int] | None = None,
) -> SaeSet | Vectors:
    """Open all the layers of an SAE set, or steering vectors; arguments and errors as `load`.

    Args:
        path: as `load` has it.
        options: likewise.
        layers: those that will be asked for; from the hub, only their files are fetched.
    """
    options = options or ReadOptions()
    if str(path).startswith("hf:"):
        from converters.hub import fetch

        fetched = fetch(str(path), layers)
        return fetched.wrap(open_source(fetched.folder, options=options))
    path = Path(path)
    if not path.exists():
        raise PackError("no such file or folder", location=Location(str(path)))
    if path.is_dir():
        return _open_folder(path, options)
    probe = Probe(path, path.parent)
    reader = recognise(probe)
    if reader is None:
        raise PackError(
            "no format that is known",
            location=Location(str(path)),
            found=f"a file of type {probe.type or 'unknown'}",
            expected="one of " + ", ".join(each.kind for each in READERS),
        )
    opened = reader.open(probe, options)
    if isinstance(opened, Vectors):
        return opened
    return FolderSet(path, (Unit(probe, reader, opened),))


def recognise(probe: Probe) -> Reader | None:
    """The one reader that knows this file, or None.

    Raises:
        PackError: the file is damaged, or two readers know it.
    """
    found = [(each, why) for each in READERS if (why := each.recognise(probe))]
    if len(found) > 1:
        raise PackError(
            "can be read in two ways",
            location=Location(str(probe.path)),
            found=" or ".join(f"{each.kind} ({why})" for each, why in found),
            expected="one of them",
        )
    return found[0][0] if found else None


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One layer of a set, recognised and opened."""

    probe: Probe
    reader: Reader
    sae: SaeLayer


@dataclass(frozen=True, slots=True, eq=False)
class FolderSet:
    """SAEs found in a folder and the folders in it; see `converters.features.SaeSet`."""

    path: Path
    units: tuple[Unit, ...]
    n_layer: int | None = None
    files: tuple[Path, ...] = field(init=False)

    def __post_init__(self) -> None:
        files = {file for unit in self.units for file in unit.sae.files}
        object.__setattr__(self, "files", tuple(sorted(files)))

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that are there, ascending."""
        return tuple(sorted({unit.sae.layer for unit in self.units}))

    @property
    def kind(self) -> str:
        """The format, or formats."""
        return ", ".join(sorted({unit.sae.kind for unit in self.units}))

    @property
    def base_model(self) -> str | None:
        """What they were all trained on, if they say so and agree."""
        models = {unit.sae.base_model for unit in self.units}
        return models.pop() if len(models) == 1 else None

    def open(self, layer: int) -> SaeLayer:
        """One layer's SAE. Raises PackError if there is none, or more than one."""
        found = [unit for unit in self.units if unit.sae.layer == layer]
        if not found:
            raise PackError(
                f"layer {layer_name(layer)} is not in the set",
                location=Location(str(self.path)),
                expected="one of " + ", ".join(map(layer_name, self.layers)),
            )
        if len(found) > 1:
            files = [_below(unit.probe.path, self.path) for unit in found]
            raise PackError(
                f"{len(found)} SAEs of layer {layer_name(layer)}",
                location=Location(str(self.path)),
                found=", ".join(files[:6]),
                expected="the folder of one of them",
            )
        return found[0].sae


def _open_folder(path: Path, options: ReadOptions) -> SaeSet | Vectors:
    units: list[Unit] = []
    vectors: list[Vectors] = []
    reasons: list[ScopeError] = []
    for probe in _probes(path):
        try:
            reader = recognise(probe)
            if reader is None:
                continue
            if isinstance(reader, QwenScope) and probe.path.parent == path:
                return QwenScopeSet(path, k=options.k)
            opened = reader.open(probe, options)
        except ScopeError as reason:
            reasons.append(reason)
            continue
        if isinstance(opened, Vectors):
            vectors.append(opened)
        else:
            units.append(Unit(probe, reader, opened))
    if len(vectors) == 1 and not units:
        return vectors[0]
    if vectors and not units:
        raise UsageError(
            "several files of vectors",
            location=Location(str(path)),
            found=", ".join(_below(each.path, path) for each in vectors[:6]),
            expected="one of them",
        )
    if units:
        return FolderSet(path, tuple(units))
    # A set of which a part cannot be used (the MLP's SAEs beside those of the residual stream) is
    # the other part; only where nothing is left, the first reason is the answer.
    if reasons:
        raise reasons[0]
    raise PackError(
        "no SAE in this folder, and no steering vector",
        location=Location(str(path)),
        expected="one of " + ", ".join(each.kind for each in READERS),
    )


def _probes(root: Path) -> Iterator[Probe]:
    """Files in a folder, and in the folders in it, that may be an SAE's; links to folders are not
    followed.
    """
    n_files = 0
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop(0)
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                if depth < MAX_DEPTH and not entry.name.startswith("."):
                    waiting.append((entry, depth + 1))
            elif entry.is_file() and not entry.name.startswith("."):
                n_files += 1
                if n_files > MAX_FILES:
                    raise PackError("too many files", location=Location(str(root)))
                probe = Probe(entry, root)
                if probe.type not in (None, "json") or entry.suffix == ".svec":
                    yield probe


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
