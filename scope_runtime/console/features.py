"""Which features there are to steer by: those of the packs and vectors that lie in the policies' directory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scope_runtime.errors import PackError, ScopeError
from scope_runtime.pack_types import FeaturePack
from scope_runtime.packs import read_pack
from scope_runtime.policy.revision import FileDigests
from scope_runtime.resolve import OpenFiles
from scope_runtime.types import ModelShape
from scope_runtime.vectors import ControlVector, read_control_vector

MOST_FILES = 200
MOST_FOUND = 200


class Shelf:
    """Packs and vectors below a directory; a file with the same bytes is read once. For any thread."""

    def __init__(self, folder: Path, shape: ModelShape) -> None:
        self._folder = folder
        self._shape = shape
        self._open = OpenFiles(FileDigests())
        self._lock = threading.Lock()

    def find(self, search: str = "") -> dict[str, Any]:
        """Features whose label, number or file has every word of ``search``; the first ``MOST_FOUND`` of them.

        What cannot be read, or is for another model, is told by name.
        """
        words = search.casefold().split()
        found: list[dict[str, Any]] = []
        unusable: list[dict[str, str]] = []
        n = 0
        with self._lock:
            self._open.begin()
            for path in self._paths():
                name = path.relative_to(self._folder).as_posix()
                try:
                    features = list(self._features(path, name))
                except ScopeError as error:
                    unusable.append({"file": name, "text": error.message})
                    continue
                for feature in features:
                    said = f"{feature['label']} {feature['file']} {feature['place']}".casefold()
                    if all(word in said for word in words):
                        n += 1
                        if n <= MOST_FOUND:
                            found.append(feature)
        return {"n_found": n, "features": found, "unusable": unusable}

    def _paths(self) -> list[Path]:
        paths = (path for path in self._folder.rglob("*.gguf") if path.is_file())
        return sorted(paths)[:MOST_FILES]

    def _features(self, path: Path, name: str) -> Iterator[dict[str, Any]]:
        try:
            pack = self._open.opened(read_pack, path)
        except PackError:
            yield self._vector(self._open.opened(read_control_vector, path), name)
            return
        model, shape = pack.model, self._shape
        if (model.architecture, model.layers, model.width) != (
            shape.architecture,
            shape.n_layer,
            shape.n_embd,
        ):
            raise PackError("is for another model")
        yield from _of_pack(pack, name)

    def _vector(self, vector: ControlVector, name: str) -> dict[str, Any]:
        if any(len(row) != self._shape.n_embd for row in vector.layers.values()):
            raise PackError("is for another model")
        return {
            "file": name,
            "label": Path(name).stem,
            "place": f"vector, {len(vector.layers)} layers",
            "feature": {"vector": name},
            "max": None,
            "firing_rate": None,
        }


def _of_pack(pack: FeaturePack, name: str) -> Iterator[dict[str, Any]]:
    for number, layer in pack.layers.items():
        for i, feature in enumerate(layer.ids):
            stats = layer.stats
            yield {
                "file": name,
                "label": layer.labels[i],
                "place": f"{'embedding' if number < 0 else f'layer {number}'}, id {feature}",
                "feature": {"pack": name, "layer": number, "id": int(feature)},
                "max": None if stats is None else float(stats.max[i]),
                "firing_rate": None if stats is None else float(stats.firing_rate[i]),
            }
