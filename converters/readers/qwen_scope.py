"""Qwen-Scope: a folder with ``layer{n}.sae.pt`` for each block n (0-based) and ``config.json``.

``W_enc`` (d_sae, d_model), ``W_dec`` (d_model, d_sae), ``b_enc`` (d_sae,), ``b_dec`` (d_model,);
``topk(x @ W_enc.T + b_enc, k)`` without subtracting ``b_dec`` and without a ReLU; x is the output
of block n (``hook_point: resid_post``). A direction is a *column* of ``W_dec``. From the model
cards.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from converters.features import ReadOptions, SaeRows
from converters.licence import LICENCE_FILES
from converters.probe import Probe, check_inside
from converters.readers.stored import FileArray
from converters.readers.stored_sae import scratch
from converters.readers.torch_file import open_torch
from scope_runtime.errors import Location, PackError, UsageError
from scope_runtime.files import open_regular, read_exactly
from scope_runtime.pack_types import MAX_WIDTH, F32Array, I64Array, check_finite
from scope_runtime.policy.model import GateKind
from scope_runtime.sae.encoder import WholeEncoder

KIND = "qwen-scope"
MAX_CONFIG_BYTES = 1 << 20
MAX_D_SAE = 1 << 24
_LAYER_FILE = re.compile(r"layer(0|[1-9][0-9]{0,3})\.sae\.pt")
_COMPANIONS = ("config.json", *LICENCE_FILES)


class QwenScope:
    """One file of a set; see the module."""

    kind = KIND

    def recognise(self, probe: Probe) -> str | None:
        """W_enc (d_sae, d_model) and W_dec (d_model, d_sae) in a .pt file, no threshold."""
        if probe.type != "pt" or not {"W_enc", "W_dec", "b_enc"} <= probe.names:
            return None
        enc, dec, bias = (probe.weights.arrays[name].shape for name in ("W_enc", "W_dec", "b_enc"))
        if "threshold" in probe.names or len(enc) != 2 or dec != enc[::-1] or bias != enc[:1]:
            return None
        if isinstance(probe.configuration.values.get("trainer"), dict):
            return None  # dictionary_learning's, of as many features as the model is wide
        return "W_enc (d_sae, d_model) and W_dec (d_model, d_sae) in a .pt file"

    def open(self, probe: Probe, options: ReadOptions) -> QwenScopeLayer:
        """The layer, with its folder's configuration."""
        match = _LAYER_FILE.fullmatch(probe.path.name)
        if match:
            return QwenScopeSet(probe.path.parent, k=options.k).open(int(match[1]))
        if options.layer is None:
            raise PackError(
                "the layer is not said",
                location=Location(str(probe.path)),
                found=f"the name {probe.path.name!r}",
                expected="layerN.sae.pt, or --layer",
            )
        return QwenScopeLayer(probe.path, options.layer, options.k, width=None, d_sae=None)


class QwenScopeSet:
    """A folder of Qwen-Scope SAEs; see `converters.features.SaeSet`."""

    kind = KIND

    def __init__(self, path: str | Path, *, k: int | None = None) -> None:
        """Look at the folder and its configuration; SAE files are opened when they are asked for.

        Args:
            path: the folder.
            k: of the top-k, for a set whose configuration does not say.

        Raises:
            PackError: no such folder, none of its files is an SAE, or the configuration is not
                that of a Qwen-Scope set.
            UsageError: ``k`` is not the set's own.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise PackError("no such folder", location=Location(str(path)))
        found = {
            int(match[1]): file
            for file in sorted(self.path.iterdir())
            if (match := _LAYER_FILE.fullmatch(file.name))
        }
        if not found:
            raise PackError(
                "no SAE in this folder", location=Location(str(path)), expected="layer0.sae.pt …"
            )
        self._files = dict(sorted(found.items()))
        self.layers = tuple(self._files)
        self.files = tuple(file for name in _COMPANIONS if (file := self.path / name).exists())
        config = _Config(self.path / "config.json")
        self.base_model = config.text("base_model")
        self.n_layer = config.count("num_layers")
        self.k = config.count("k") or k
        if k not in (None, self.k):
            raise UsageError("k differs from the set's own", found=str(k), expected=str(self.k))
        self._width = config.count("d_model")
        self._d_sae = config.count("d_sae")

    def open(self, layer: int) -> QwenScopeLayer:
        """One layer's SAE.

        Raises:
            PackError: it is not in the set, lies elsewhere, or is damaged.
        """
        file = self._files.get(layer)
        if file is None:
            raise PackError(
                f"layer {layer} is not in the set",
                location=Location(str(self.path)),
                expected="one of " + ", ".join(map(str, self.layers)),
            )
        check_inside(file, self.path)
        sae = QwenScopeLayer(file, layer, self.k, width=self._width, d_sae=self._d_sae)
        sae.files, sae.base_model = self.files, self.base_model
        return sae


class QwenScopeLayer:
    """One ``layer{n}.sae.pt``; see `converters.features.SaeLayer`."""

    kind = f"{KIND} topk_sae"
    gate = GateKind.TOPK
    hook_point = "output of the block"
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    base_model: str | None = None

    def __init__(
        self, file: Path, layer: int, k: int | None, *, width: int | None, d_sae: int | None
    ) -> None:
        """Look into the file and check the shapes, against each other and against the configuration's."""
        self.file, self.layer, self.k = file, layer, k
        self._data = open_torch(file)
        missing = [name for name in ("W_enc", "W_dec", "b_enc") if name not in self._data.arrays]
        if missing:
            there = ", ".join(sorted(self._data.arrays)) or "nothing"
            self._data.fail(f"{missing[0]} is missing", found=there)
        shape = self._data.array("W_enc").shape
        if len(shape) != 2 or not 1 <= shape[0] <= MAX_D_SAE or not 1 <= shape[1] <= MAX_WIDTH:
            self._data.fail(
                "W_enc has an impossible shape", found=str(shape), expected="(d_sae, d_model)"
            )
        self.d_sae, self.width = shape
        self._data.array("W_dec", (self.width, self.d_sae))
        self._data.array("b_enc", (self.d_sae,))
        if "b_dec" in self._data.arrays:
            self._data.array("b_dec", (self.width,))
        for key, found, expected in (("d_model", self.width, width), ("d_sae", self.d_sae, d_sae)):
            if expected is not None and found != expected:
                self._fail(
                    f"{key} differs from config.json", found=str(found), expected=str(expected)
                )

    def rows(self, ids: I64Array) -> SaeRows:
        """Some features: rows of ``W_enc``, columns of ``W_dec``."""
        wrong = [each for each in ids.tolist() if not 0 <= each < self.d_sae]
        if wrong:
            self._fail(
                "the SAE has no such feature",
                found=str(wrong[0]),
                expected=f"0 to {self.d_sae - 1}",
            )
        enc = self._take("W_enc", ids, axis=0)
        bias = self._take("b_enc", ids, axis=0)
        return SaeRows(ids, enc, bias, np.ascontiguousarray(self._take("W_dec", ids, axis=1).T))

    def encoder(self) -> tuple[F32Array, F32Array]:
        """``W_enc``, mapped if the file is F32, and ``b_enc``."""
        enc = self._data.array("W_enc")
        if isinstance(enc, FileArray) and enc.type == "F32":
            shape = (self.d_sae, self.width)
            rows: F32Array = np.memmap(self.file, "<f4", "r", offset=enc.offset, shape=shape)
        else:
            rows = scratch((self.d_sae, self.width))
            for start, block in enc.blocks():
                rows[start : start + len(block)] = block
        self._data.check(lambda: check_finite(rows, "W_enc"))
        return rows, self._data.vector("b_enc", self.d_sae)

    def whole(self) -> WholeEncoder:
        """The same, also mapped if the file is F16 or BF16."""
        enc, bias = self._data.array("W_enc"), self._data.vector("b_enc", self.d_sae)
        rows = enc.mapped() if isinstance(enc, FileArray) else None
        if rows is None:
            return WholeEncoder(self.encoder()[0], "F32", bias)
        return WholeEncoder(rows, enc.type, bias)

    def tensors(self) -> tuple[tuple[str, tuple[int, ...], str], ...]:
        """Name, shape and type of every tensor in the file."""
        arrays = sorted(self._data.arrays.items())
        return tuple((name, one.shape, one.type) for name, one in arrays)

    def _take(self, name: str, ids: I64Array, *, axis: int) -> F32Array:
        values = self._data.array(name).take(ids, axis)
        self._data.check(lambda: check_finite(values, name))
        return values

    def _fail(self, message: str, *, found: str, expected: str | None = None) -> NoReturn:
        self._data.fail(message, found=found, expected=expected)


class _Config:
    """``config.json`` of a set, or nothing where there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        if not path.exists():
            return
        with open_regular(path, PackError) as file:
            raw = bytes(read_exactly(file, 0, MAX_CONFIG_BYTES + 1))
        try:
            values = json.loads(raw[:MAX_CONFIG_BYTES])
        except (ValueError, RecursionError) as reason:
            self._fail("no JSON", found=str(reason)[:200])
        if not isinstance(values, dict):
            self._fail("no JSON object", found=type(values).__name__)
        self._values = values
        for key, expected in (("model_type", "topk_sae"), ("hook_point", "resid_post")):
            if values.get(key, expected) != expected:
                self._fail(
                    f"{key} is not Qwen-Scope's", found=repr(values[key])[:80], expected=expected
                )

    def text(self, key: str) -> str | None:
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            self._fail(f"{key} is no text", found=repr(value)[:80])
        return value

    def count(self, key: str) -> int | None:
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_D_SAE:
            self._fail(
                f"{key} is no count", found=repr(value)[:80], expected="a whole number from 1"
            )
        return value

    def _fail(self, message: str, *, found: str, expected: str | None = None) -> NoReturn:
        raise PackError(message, location=Location(str(self.path)), found=found, expected=expected)
