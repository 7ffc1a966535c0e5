"""Damaged copies of real files of every format, and whether the converters take them as they should."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from converters import FeatureRequest, Vectors, convert_pack, open_source
from scope_runtime.errors import ScopeError
from tests.support.mutations import memory_limit, mutations

FIXTURES = Path(__file__).resolve().parent.parent / "converters" / "fixtures"
MOST_BYTES = 512 << 20
"""More than any of these files needs, far less than a wrong size makes somebody allocate."""

FORMATS = {
    "qwen-scope": "by-hand/qwen-scope",
    "sae-lens": "sae-lens/jumprelu-random",
    "sae-lens gated": "sae-lens/gated-random",
    "sae-lens topk": "sae-lens/topk-random",
    "gemma-scope": "sae-lens/gemma-scope/layer_5",
    "gemma-scope deflated": "sae-lens/gemma-scope-deflated/layer_6",
    "gemma-scope 2": "sae-lens/gemma-scope-2",
    "llama-scope": "sae-lens/llama-scope",
    "sparsify": "eai-sparsify/set/layers.2",
    "dictionary-learning": "dictionary-learning/GatedAutoEncoder-random",
    "dictionary-learning topk": "dictionary-learning/AutoEncoderTopK-random",
    "repeng": "repeng/repeng.gguf",
    "glp": "by-hand/glp.gguf",
    "easysteer": "by-hand/easysteer.gguf",
    "svec": "by-hand/cast.svec",
    "steering-vectors": "steering-vectors/fields.pt",
}
_EXTREMES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**70, -0.5, 1e308, "", "x" * 1000, "\x1b[2J", [], {}, [1], {"a": 1},
)  # fmt: skip


@dataclass
class Result:
    """Of a run.

    Attributes:
        outcomes: how often each format was read and refused.
        wrong: what should not have happened, a sentence each.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def fuzz(name: str, folder: Path, *, n: int, seed: int) -> Result:
    """Damage copies of one format's files, one at a time, and read them.

    Whatever is neither success nor a ScopeError is wrong, and so is a file that is left behind.

    Args:
        name: a key of `FORMATS`.
        folder: to work in, empty.
        n: how many copies.
        seed: the same seed gives the same damage.
    """
    result, rng = Result(), random.Random(f"{name} {seed}")
    work, out, whole = _copied(name, folder)
    with memory_limit(MOST_BYTES):
        for number in range(n):
            target = rng.choice(list(whole))
            target.write_bytes(_damaged(whole[target], target, rng))
            _try(name, work, out, result, write=number % 4 == 0)
            target.write_bytes(whole[target])
    return result


def cut(name: str, folder: Path, share: float, *, zeros: bool) -> Result:
    """Cut every file of one format's set in turn after this share of it, or put zeros there, and read."""
    result = Result()
    work, out, whole = _copied(name, folder)
    with memory_limit(MOST_BYTES):
        for target, raw in whole.items():
            kept = min(int(share * len(raw)), len(raw) - 1)
            target.write_bytes(raw[:kept] + bytes(len(raw) - kept) * zeros)
            _try(name, work, out, result, write=True)
            target.write_bytes(raw)
    return result


def _copied(name: str, folder: Path) -> tuple[Path, Path, dict[Path, bytes]]:
    """The set to damage, an empty folder for what is written, and the bytes of each file of the set."""
    source = FIXTURES / FORMATS[name]
    work, out = folder / "work" / source.name, folder / "out"
    work.parent.mkdir()
    out.mkdir()
    if source.is_dir():
        shutil.copytree(source, work, ignore=shutil.ignore_patterns("expected*.npz"))
    else:
        shutil.copy(source, work)
    targets = [work] if work.is_file() else [each for each in work.rglob("*") if each.is_file()]
    return work, out, {each: each.read_bytes() for each in sorted(targets)}


def _try(name: str, work: Path, out: Path, result: Result, *, write: bool) -> None:
    try:
        _use(work, out, write=write)
        result.outcomes[name, "read"] += 1
    except ScopeError:
        result.outcomes[name, "refused"] += 1
    except Exception as reason:  # whatever it is, the run goes on and reports it
        result.wrong.append(f"{name}: {type(reason).__name__}: {reason}")
    left = [each.name for each in out.iterdir() if each.name != "pack.gguf"]
    if left:
        result.wrong.append(f"{name}: left behind: {left}")


def _use(path: Path, out: Path, *, write: bool) -> None:
    opened = open_source(path)
    if isinstance(opened, Vectors):
        return
    for layer in opened.layers:
        sae = opened.open(layer)
        sae.rows(np.array([0, sae.d_sae - 1]))
        sae.encoder()
        if write:
            wanted = [FeatureRequest(layer, 0)]
            file = out / "pack.gguf"
            convert_pack(
                path, wanted, file, architecture="qwen3", n_layer=64, k=None, digests=False
            )
            file.unlink()


def _damaged(raw: bytes, file: Path, rng: random.Random) -> bytes:
    if raw[:1] == b"{" and rng.random() < 0.7:
        return json.dumps(_swapped(json.loads(raw), rng)).encode()
    if file.suffix == ".safetensors" and rng.random() < 0.4:
        length = int.from_bytes(raw[:8], "little")
        header = json.dumps(_swapped(json.loads(raw[8 : 8 + length]), rng)).encode()
        return len(header).to_bytes(8, "little") + header + raw[8 + length :]
    return next(mutations(raw, 1, rng.randrange(1 << 30)))


def _swapped(document: Any, rng: random.Random) -> Any:
    """A value somewhere in it replaced by an extreme or by another of its values, or taken out."""
    document = copy.deepcopy(document)
    places = list(_places(document))
    parent, key = rng.choice(places)
    other_parent, other_key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        parent[key] = copy.deepcopy(other_parent[other_key])
    else:
        parent[key] = rng.choice(_EXTREMES)
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in list(pairs):
        yield value, key
        if isinstance(each, dict | list) and each:
            yield from list(_places(each))[:40]
