"""What an engine asks of whoever brings programs into its context: one for all, or one for each sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from scope_runtime.events import RequestContext
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource


def source_for(source: ProgramSource, request: RequestContext) -> ProgramSource:
    """Where a request gets its program and its share from: its own policies where it tries some, else ``source``."""
    return request.trial if request.trial is not None and source.trials else source


def program_for(source: ProgramSource, request: RequestContext) -> Program:
    """What a request runs under."""
    own = source_for(source, request)
    return own.for_request(request.labels, request.request_id)


def key_of(program: Program) -> tuple[str, str]:
    """What a program does, and its revision: programs that agree in both are one to a hook and on record."""
    return program.digest, program.revision


class Prepared:
    """Programs of a source that is to be taken up, for the requests under way: made before any token waits.

    Args:
        requests: by the sequence or slot that each has.
    """

    def __init__(self, source: ProgramSource, requests: Mapping[int, RequestContext]) -> None:
        self.source = source
        self._made = {
            place: (request, program_for(source, request)) for place, request in requests.items()
        }

    @property
    def programs(self) -> list[Program]:
        """All that will be wanted, the source's own first."""
        return [self.source.program, *(program for _, program in self._made.values())]

    def program_for(self, place: int, request: RequestContext) -> Program:
        """What a request runs under that has this place now: another one may have had it when programs were made."""
        made = self._made.get(place)
        if made is not None and made[0] is request:
            return made[1]
        return program_for(self.source, request)


class Programs(Protocol):
    """Programs in a context's hook, and where they come from.

    Attributes:
        source: what requests get their programs from.
        programs: serial to program, every one that an event or a span may still name.
    """

    source: ProgramSource
    programs: dict[int, Program]

    @property
    def active(self) -> Program:
        """What tokens are computed under; where each sequence has its own, what those are parts of."""
        ...

    def use(self, source: ProgramSource, *, now: bool) -> float:
        """Serves requests from ``source`` from here on; with ``now`` those under way too, from their next token.

        All or nothing: HookError leaves the old source in force for everybody.

        Returns:
            How long the swap itself took, in milliseconds: what a token may have waited for.
        """
        ...

    @property
    def acknowledged(self) -> bool:
        """Whether the last token was computed under what is active now."""
        ...

    def computed_as(self, program: Program, serial: int) -> bool:
        """Whether KV that was computed under this serial may be used under a program.

        It may where the effect is the same and is on record as the same revision.
        """
        known = self.programs.get(serial)
        return known is not None and key_of(known) == key_of(program)
