"""One look at a source, as far as it goes: load → check → compile → dry run.

What comes out was read from one state of the files: they are digested before and after, and read again if they
changed meanwhile, so that no half of an edit is ever put together with the other half of the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from scope_runtime.errors import CompileError, Location, PolicyError, PolicyErrors, ScopeError
from scope_runtime.lifecycle.source import Source, contents, named_at, named_by
from scope_runtime.native.hook import Hook
from scope_runtime.pack_types import F32Array
from scope_runtime.policy.load import load_policies
from scope_runtime.policy.revision import FileDigests
from scope_runtime.resolve import OpenFiles
from scope_runtime.select import ProgramSource
from scope_runtime.types import ModelShape
from scope_runtime.vectors_alone import check_vectors_alone

ATTEMPTS = 5
_SEQUENCE = 0


@dataclass(frozen=True, slots=True)
class Bench:
    """What programs are compiled for and tried on.

    Attributes:
        samples: residuals of the model itself by layer, (n_tokens, n_embd), for the dry run.
        vectors_alone: refuse what control vectors cannot carry; see ``scope_runtime.vectors_alone``.
    """

    shape: ModelShape
    control_vector_layers: frozenset[int] = frozenset()
    samples: Mapping[int, F32Array] = field(default_factory=dict)
    vectors_alone: bool = False


@dataclass(frozen=True, slots=True)
class Built:
    """What came of it: programs or an error, never both.

    Attributes:
        seen: digests of the files that it was made from.
        named: those of them that the policies name.
    """

    programs: ProgramSource | None
    error: ScopeError | None
    seen: Mapping[str, str]
    named: tuple[str, ...]

    def result(self) -> ProgramSource:
        """The programs. Raises the error."""
        if self.programs is None:
            raise self.error or RuntimeError("a build without a result")
        return self.programs


def build(
    source: Source,
    bench: Bench,
    digests: FileDigests,
    named: tuple[str, ...] = (),
    files: OpenFiles | None = None,
) -> Built:
    """Builds a source.

    Args:
        named: the files that it named when it was last looked at; saves a second look.
        files: packs and vectors that earlier builds opened.
    """
    if files is not None:
        files.begin()
    for _ in range(ATTEMPTS):
        before = contents(source, named, digests)
        programs, error = None, None
        try:
            programs = _programs(source, bench, files)
            named = named_by(programs.policies)
        except ScopeError as caught:
            error, named = caught, named_at(source)
        if contents(source, named, digests) == before:
            return Built(programs, error, before, named)
    restless = PolicyError(
        "the files change faster than they can be read",
        location=Location(str(source.path)),
        found=f"another content at each of {ATTEMPTS} looks",
    )
    return Built(None, restless, contents(source, named, digests), named)


def _programs(source: Source, bench: Bench, files: OpenFiles | None) -> ProgramSource:
    if not source.path.exists():
        gone = PolicyError("the policies are not there", location=Location(str(source.path)))
        raise PolicyErrors((gone,))
    programs = ProgramSource(
        load_policies(source.path, root=source.root),
        bench.shape,
        control_vector_layers=bench.control_vector_layers,
        files=files,
    )
    if bench.vectors_alone:
        check_vectors_alone(programs)
    dry_run(programs, bench)
    return programs


def dry_run(programs: ProgramSource, bench: Bench) -> None:
    """Runs the native program on the samples, away from the model.

    Raises:
        HookError: the hook refuses it.
        CompileError: it makes residuals that are no numbers.
    """
    n = max((len(h) for h in bench.samples.values()), default=1)
    hook = Hook(bench.shape.n_embd, bench.shape.n_layer)
    try:
        hook.install(programs.program.blob)
        hook.request_begin(_SEQUENCE, 1, max(n // 2, 1))
        hook.columns(range(n), range(n))
        for layer in sorted({layer for rule in programs.program.rules for layer in rule.layers}):
            h = _sample(bench, layer, n)
            hook.residual(layer, h)
            if not np.isfinite(h).all():
                raise CompileError(
                    f"the policy makes residuals at layer {layer} that are no numbers",
                    location=Location(programs.policies[0].file),
                    hint="Look for a huge alpha or factor",
                )
        hook.end_ubatch()
        hook.request_end(_SEQUENCE)
    finally:
        hook.close()


def _sample(bench: Bench, layer: int, n: int) -> F32Array:
    """A copy of the layer's residuals; noise of length 1 a value where there are none."""
    known = bench.samples.get(layer)
    if known is not None and len(known) == n:
        return np.array(known, np.float32)
    noise = np.random.default_rng(layer + 1).standard_normal((n, bench.shape.n_embd))
    return noise.astype(np.float32)
