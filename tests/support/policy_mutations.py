"""Policy documents that went wrong: changed in their bytes, their lines and words, or their tree."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from tests.support.mutations import mutations

EXTREMES: tuple[Any, ...] = (
    None, True, False, 0, -0.0, 1, -1, 31, 32, 63, 64, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**70,
    1e-323, 1e308, -1e308, 3.5e38, 1e39, 1e-46, "", " ", "~", "off", "1e3", "0x10", "20:45", "…", "\u2028",
    "\U0001f600",
    "a" * 300, "../x", "/etc/passwd", "pack.gguf", "embedding", "1 token", "99999999999 tokens", "2026-02-30",
    [], {}, [[]], [None], {"": 1}, ["one", "one"],
)  # fmt: skip
"""Values that are at, or past, the edge of what some key takes."""

PIECES = (
    "&a ", "*a", "!!str ", "!!float ", "!!binary ", "!<x> ", "<<: ", "--- ", "...\n", "%YAML 1.2\n", "%TAG ! x\n",
    "? ",
    "- ", ": ", "| ", "> ", "|2+\n", "# ", "\t", "{", "}", "[", "]", ",", '"', "'", "\\x00", '"\\U00110000"',
    '"\\ud800"',
    "\x00", "\x85", "\u2028", "\ufeff", "\r", "\r\n", ".inf", "-.INF", ".nan", "1e999", "-0", "0o17", "0b1", "1_0",
    "null",
    "enforce", "audit", "off", "none", "relu", "topk", "max", "group: ", "gate: ", "when: ", "alpha: ", "mode: ",
)  # fmt: skip
"""What YAML, or a policy, may take for something else where it does not belong."""

_WORD = re.compile(r"[\w.+-]+|\s+|[^\w\s]")


def mutated(seeds: Sequence[bytes], seed: int, number: int) -> bytes:
    """Document ``number`` of the run ``seed``: always the same one, whatever was made before it."""
    rng = random.Random(f"{seed} {number}")
    raw = rng.choice(seeds)
    if rng.random() < 0.0003:
        return rng.choice(_BOMBS)(rng, raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        raw = rng.choices(_KINDS, _WEIGHTS)[0](rng, raw, seeds)
    return raw


def _bytes(rng: random.Random, raw: bytes, seeds: Sequence[bytes]) -> bytes:
    return next(mutations(raw or b" ", 1, rng.getrandbits(64)))


def _lines(rng: random.Random, raw: bytes, seeds: Sequence[bytes]) -> bytes:
    lines = raw.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lines[at] = b" " * rng.choice((1, 2, 4, 40)) + lines[at]
    elif kind == 4:
        lines[at] = lines[at].lstrip()
    else:
        theirs = rng.choice(seeds).split(b"\n")
        lines.insert(at, rng.choice(theirs))
    return b"\n".join(lines)


def _words(rng: random.Random, raw: bytes, seeds: Sequence[bytes]) -> bytes:
    words = _WORD.findall(raw.decode("utf-8", "replace")) or [" "]
    at = rng.randrange(len(words))
    kind = rng.randrange(5)
    if kind == 0:
        words[at] = rng.choice(PIECES)
    elif kind == 1:
        words.insert(at, rng.choice(PIECES))
    elif kind == 2:
        del words[at]
    elif kind == 3:
        words[at] = rng.choice(words)
    else:
        words[at] = _scalar(rng.choice(EXTREMES))
    return "".join(words).encode("utf-8", "replace")


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _tree(rng: random.Random, raw: bytes, seeds: Sequence[bytes]) -> bytes:
    """Nodes moved, doubled, replaced and wrapped; what is no YAML is left as it is."""
    try:
        tree = yaml.load(raw, Loader=_LOADER)
    except Exception:  # PyYAML has its own ways to fail on what is no YAML
        return raw
    places = list(_places(tree))
    if not places:
        return raw
    parent, key = rng.choice(places)
    kind = rng.randrange(7)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        other, its = rng.choice(places)
        parent[key] = copy.deepcopy(other[its]) if its in _keys(other) else None
    elif kind == 2:
        value: Any = parent[key]
        for _ in range(rng.choice((1, 2, 20, 40))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        parent[key] = value
    elif kind == 3 and isinstance(parent, dict):
        parent[rng.choice(("x", "name", "mute", "alert", "when", "gate", "", "\u0007", "é"))] = (
            parent[key]
        )
    elif kind == 4 and isinstance(parent, list):
        parent.extend(copy.deepcopy(parent[key]) for _ in range(rng.choice((1, 3, 50))))
    else:
        parent[key] = rng.choice(EXTREMES)
    return _written(rng, tree)


def _written(rng: random.Random, tree: Any) -> bytes:
    try:
        if rng.random() < 0.3:
            return json.dumps(tree, ensure_ascii=rng.random() < 0.5, default=str).encode(
                "utf-8", "replace"
            )
        flow = rng.choice((None, True, False))
        text: str = yaml.dump(
            tree, Dumper=_DUMPER, sort_keys=False, default_flow_style=flow, allow_unicode=True
        )
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        return b"[]"
    return text.encode("utf-8", "replace")


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of the tree."""
    found: list[tuple[Any, Any]] = []
    todo: list[Any] = [node]
    seen: set[int] = set()
    while todo:
        inner = todo.pop()
        if id(inner) in seen:  # aliases make trees that have no end
            continue
        seen.add(id(inner))
        for key in _keys(inner):
            found.append((inner, key))
            todo.append(inner[key])
    return found


def _keys(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node)
    return list(range(len(node))) if isinstance(node, list) else []


def _number(rng: random.Random, raw: bytes, seeds: Sequence[bytes]) -> bytes:
    """One number of the text replaced by an extreme or by a neighbour."""
    found = list(re.finditer(rb"-?\b\d+(?:\.\d+)?\b", raw))
    if not found:
        return raw
    hit = rng.choice(found)
    if rng.random() < 0.5:
        new = str(float(hit[0]) * rng.choice((-1, 0, 0.5, 2, 1e30, 1e-30))).encode()
    else:
        new = _scalar(rng.choice(EXTREMES)).encode("utf-8", "replace")
    return raw[: hit.start()] + new + raw[hit.end() :]


def _deep(rng: random.Random, raw: bytes) -> bytes:
    n = rng.choice((31, 33, 1000, 100_000))
    opening, closing = rng.choice(((b"[", b"]"), (b"{a: ", b"}"), (b"- ", b""), (b"? ", b"")))
    return raw + b"\nx: " + opening * n + b"1" + closing * n


def _huge(rng: random.Random, raw: bytes) -> bytes:
    n = rng.choice((1 << 16, (1 << 20) - 2000, (1 << 20) + 1, 1 << 22))
    filling = rng.choice((b"a", b"9", b" ", b"\\", b'"')) * n
    return raw.replace(b"metadata:", b"x: " + filling + b"\nmetadata:", 1)


def _many(rng: random.Random, raw: bytes) -> bytes:
    line = rng.choice([*raw.split(b"\n"), b"- ", b"a: 1", b"&a [", b"*a", b"# x"])
    return raw + (b"\n" + line) * min(rng.choice((100, 3000, 30_000)), (1 << 20) // (len(line) + 1))


def _aliases(rng: random.Random, raw: bytes) -> bytes:
    lines = [b"a0: &a0 [x, x]"]
    lines += [b"a%d: &a%d [*a%d, *a%d]" % (n, n, n - 1, n - 1) for n in range(1, 40)]
    return raw + b"\n" + b"\n".join(lines)


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_KINDS: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    _bytes,
    _lines,
    _words,
    _tree,
    _number,
)
_WEIGHTS = (2, 2, 3, 4, 2)
_BOMBS: tuple[Callable[[random.Random, bytes], bytes], ...] = (_deep, _huge, _many, _aliases)
