"""Mutated policies against a live lifecycle: refused in words or taken up whole, and nothing else."""

from __future__ import annotations

import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scope_runtime.errors import PolicyErrors, ScopeError
from scope_runtime.lifecycle import Cause, Lifecycle, Options, Source
from scope_runtime.lifecycle.build import Bench
from scope_runtime.policy import load_policy, policy_revision
from scope_runtime.policy.load import parse_policy
from scope_runtime.policy.yaml12 import decode
from scope_runtime.types import ModelShape
from tests.conftest import ROOT, TINY_POLICY
from tests.policy.cases import FOLDER, read_case
from tests.support.live import HookTarget, InProcess
from tests.support.mutations import memory_limit

MOST_BYTES = 1 << 30
"""That a worker may take beyond what it has when it begins; a document is at most a megabyte."""
RELOAD_EVERY = 16
"""Of the documents that cannot be loaded so many go through a reload, too; of the others, each does."""
LIMIT_S = 20.0
"""Of processor time for one document: a hundred times what the slowest sound one takes."""
_LONGEST_SEED_BYTES = 16_000

EVERYTHING = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: everything, owner: ops, generation: 7, description: every key once}
spec:
  mode: enforce
  apply: next-request
  selector: {tenant: [acme, globex]}
  features:
    one: {pack: pack.gguf, layer: 1, id: 3}
    two: {pack: pack.gguf, layer: 2, id: 5, gate: {kind: threshold, threshold: 0.5}}
    three: {pack: pack.gguf, layer: 2, id: 6, gate: topk}
    start: {pack: pack.gguf, layer: embedding, id: 1, gate: none}
    both: {group: [one, two]}
    style: {vector: vector.gguf, layers: [2]}
  limits: {dose: {max: 0.7, on_excess: clamp}}
  rules:
    - {name: quiet, mute: both, when: {phase: generation}}
    - {name: less, scale: three, factor: 0.5, when: {positions: {from: 3, to: 90, of: answer}}}
    - {name: keep, clamp: start, min: -1, max: 2.5}
    - {name: gone, ablate: style, rollout: {percent: 50, by: request}}
    - {name: push, amplify: style, alpha: 0.15, unit: residual,
       when: {feature: one, above: 1, hysteresis: 0.5, for: 2 tokens}}
    - {name: most, amplify: two, alpha: 0.1, unit: max, mode: audit}
    - {name: watch, alert: both, above: 8, for: 3 tokens, keep_firing_for: 2 tokens, watch: sum,
       severity: critical, actions: [log, webhook, {switch_on: gone}]}
  exceptions: [{selector: {tenant: acme}, rules: [quiet], owner: ops, until: 2999-01-31}]
"""


SMALL = """\
apiVersion: scope/v1
kind: SteeringPolicy
metadata: {name: small}
spec:
  features: {one: {pack: pack.gguf, layer: 1, id: 3}}
  rules: [{name: r, OPERATION}]
"""
OPERATIONS = (
    "mute: one",
    "mute: [one], when: {phase: prompt}",
    "scale: one, factor: 2",
    "clamp: one, max: 4.5",
    "ablate: one, mode: audit",
    "amplify: one, alpha: 0.1, unit: max",
    "amplify: one, alpha: -2, rollout: {percent: 10, by: tenant}",
    "alert: one, above: 8.0, for: 3 tokens, severity: info",
)


def seeds() -> tuple[bytes, ...]:
    """Sound policies and every bad document of the tests; short ones many times, for they are read in less time."""
    shipped = [
        path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "policies").glob("*.yaml"))
        if not path.name.endswith(".test.yaml")
    ]
    sound = [EVERYTHING, TINY_POLICY, *map(_for_random_pack, shipped)]
    small = [SMALL.replace("OPERATION", operation) for operation in OPERATIONS]
    cases = [read_case(path).document for path in sorted(FOLDER.glob("*.yaml"))]
    bad = [document for document in cases if len(document) <= _LONGEST_SEED_BYTES]
    return (*(text.encode() for text in sound * 2 + small * 20), *bad)


def _for_random_pack(text: str) -> str:
    """A shipped policy on the random pack: the same words, other features."""
    text = re.sub(r"packs/[\w.-]+\.gguf", "pack.gguf", text)
    text = re.sub(r"vectors/[\w.-]+\.gguf", "vector.gguf", text)
    text = re.sub(r"\bid: (\d+)", lambda m: f"id: {int(m[1]) % 64}", text)
    return re.sub(r"\n  model: .*", "", text)


@dataclass
class Result:
    """Of a run.

    Attributes:
        outcomes: how many documents were taken up, and refused with which error.
        wrong: what should not have happened, a sentence each, with the document's number.
        slowest: processor seconds, and the document that took them.
        peak_bytes: most memory that this process held, ever.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    peak_bytes: int = 0


class Live:
    """A lifecycle that follows one file, to be fed with documents.

    Args:
        folder: with ``pack.gguf`` and ``vector.gguf``; policy.yaml is written there.
    """

    def __init__(self, folder: Path, shape: ModelShape) -> None:
        self._file = folder / "policy.yaml"
        self._file.write_text(TINY_POLICY, encoding="utf-8")
        rng = np.random.default_rng(0)
        samples = {
            layer: rng.standard_normal((4, shape.n_embd)).astype(np.float32)
            for layer in range(-1, shape.n_layer)
        }
        bench = Bench(shape, samples=samples)
        self.target = HookTarget(shape)
        self.lifecycle = Lifecycle(
            self.target,
            Source(self._file),
            bench,
            None,
            Options(events=False),
            builder=InProcess(bench),
        )
        self.lifecycle.start()

    def load(self, document: bytes) -> str | None:
        """Loads and checks a document without a reload; says how it was refused, or None."""
        name = str(self._file)
        try:
            parse_policy(decode(document, name), file=name)
        except ScopeError as error:
            return self._named(error)
        return None

    def _named(self, error: ScopeError) -> str:
        assert str(self._file) in str(error), f"an error that does not name the file: {error}"
        first = error.errors[0] if isinstance(error, PolicyErrors) else error
        return f"refused: {type(first).__name__}"

    def feed(self, document: bytes) -> str:
        """Reloads with this document in place; says what came of it.

        Raises:
            AssertionError: what runs is neither what ran nor the document's policy, whole.
            Exception: anything but a ScopeError that a reload raised.
        """
        before, ran = self.lifecycle.current, self.target.runs()
        self._file.write_bytes(document)
        try:
            self.lifecycle.reload(Cause("test", "fuzz"))
        except ScopeError as error:
            assert self.lifecycle.current is before, "refused, and yet taken up"
            assert self.target.runs() == ran, "refused, and yet another program runs"
            return self._named(error)
        wanted = policy_revision(load_policy(self._file))
        assert self.lifecycle.revision == wanted, "taken up, but not what lies there"
        assert self.target.runs() == wanted, "taken up, but another program runs"
        self.target.recorded.clear()
        self.lifecycle._memory._generations.clear()  # what was new must not make what follows too old
        return "taken up"


def fuzz(
    live: Live,
    documents: Iterable[tuple[int, bytes]],
    *,
    on_document: Callable[[int], None] = lambda number: None,
) -> Result:
    """Feeds numbered documents to a live lifecycle."""
    result = Result()
    with memory_limit(MOST_BYTES):
        for number, document in documents:
            on_document(number)
            began = time.process_time()
            try:
                refused = live.load(document)
                if refused is None or number % RELOAD_EVERY == 0:
                    said = live.feed(document)
                    assert refused in (None, said), f"by itself {refused}, by a reload {said}"
                    refused = said
                result.outcomes[refused] += 1
            except (Exception, RecursionError, MemoryError) as reason:
                why = "".join(str(reason).splitlines()[:1])[:300]
                result.wrong.append(f"document {number}: {type(reason).__name__}: {why}")
            took = time.process_time() - began
            if took > LIMIT_S:
                result.wrong.append(f"document {number}: took {took:.1f} s")
            result.slowest = max(result.slowest, (took, number))
    result.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result
