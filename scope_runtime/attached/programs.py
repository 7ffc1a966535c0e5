"""Each slot of a server under the program of its own request: where programs come from, and how all are replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from scope_runtime.attached.interface import AttachedHook, SlotState
from scope_runtime.errors import HookError
from scope_runtime.events import RequestContext
from scope_runtime.llama.programs import Prepared, key_of, source_for
from scope_runtime.native.hook import Span
from scope_runtime.program import Program
from scope_runtime.select import ProgramSource, Share


class SlotPrograms:
    """Programs held by one server's hook, and which slot runs under which. Any thread may call.

    Args:
        n_slots: slots of the server.
        source: what requests get their programs from.

    Attributes:
        programs: serial to program, every one that an event or a span may still name.
    """

    def __init__(self, hook: AttachedHook, n_slots: int, source: ProgramSource) -> None:
        self._hook = hook
        self._n_slots = n_slots
        self.source = source
        self.programs: dict[int, Program] = {}
        self._held: dict[tuple[str, str], int] = {}  # what a program does, and its revision
        self._requests: dict[int, RequestContext] = {}
        self._serials: dict[int, int] = {}  # of every slot with a request
        # All that each of them may have run under: the hook tells a request's spans when it is over, and somebody must
        # still know what they are called then.
        self._ran: dict[int, set[int]] = {}
        self._unsure: set[int] = (
            set()
        )  # slots that may be open in the hook, by a command that came too late
        self._coming: set[tuple[str, str]] = set()  # held for a source that is not in force yet
        self._lock = threading.RLock()  # of all of the above
        self._loading = threading.Lock()  # one program at a time; nobody else waits for that
        self._commands = _SharedOrAlone()
        self._since_use = 0  # ubatches when the source was taken up
        self._hold(source.program)

    @property
    def acknowledged(self) -> bool:
        """Whether something was computed since the source was taken up."""
        return self._hook.status.n_ubatches > self._since_use

    def use(self, source: ProgramSource, *, now: bool) -> float:
        """Serves requests from ``source`` from here on; with ``now`` those under way too, from their next token.

        All or nothing: HookError leaves the old source in force for everybody.

        Returns:
            What the swap itself took, in milliseconds; up to an ubatch, which it waits for.
        """
        with self._lock:
            under_way = dict(self._requests)
        prepared = Prepared(source, under_way)
        with self._lock:
            self._coming = {key_of(program) for program in prepared.programs}
        try:
            # Loaded and checked before anybody waits; what happens then is a pointer.
            for program in prepared.programs:
                self._hold(program)
            return self._swap(prepared, now)
        finally:
            with self._lock:
                self._coming = set()

    def _swap(self, prepared: Prepared, now: bool) -> float:
        # An assignment is for all slots: none may begin meanwhile.
        with self._commands.alone():
            began = time.perf_counter()
            with self._lock:
                requests = dict(self._requests) if now else {}
            programs = {
                slot: prepared.program_for(slot, request) for slot, request in requests.items()
            }
            with self._lock:
                self._coming |= {key_of(program) for program in programs.values()}
            held = {slot: self._hold(program) for slot, program in programs.items()}
            with self._lock:
                serials = {slot: held.get(slot, at) for slot, at in self._serials.items()}
                if serials != self._serials:
                    self._hook.assign(serials)
                self.source, self._serials = prepared.source, serials
                for slot in held.keys() & serials.keys():  # others have ended meanwhile
                    self._ran[slot].add(held[slot])
                self._since_use = self._hook.status.n_ubatches
                took_ms = (time.perf_counter() - began) * 1e3
                self._release_old()
                return took_ms

    def begin(
        self, slot: int, number: int, request: RequestContext
    ) -> tuple[Program, Share, SlotState]:
        """Puts a free slot under its request's program, before the request is sent."""
        with self._commands.shared():
            source = source_for(self.source, request)
            program = source.for_request(request.labels, request.request_id)
            share = source.share(request.labels, request.request_id)
            serial = self._run_under(program, slot, request)
            try:
                if slot in self._unsure:
                    self._end_late(slot)
                return program, share, self._hook.begin(slot, number, serial)
            except BaseException:
                self._unsure.add(slot)
                self.end(slot)
                raise

    def unsure(self, slot: int) -> None:
        """Nobody knows whether the hook has ended the slot's request: it is ended before the next one begins."""
        self._unsure.add(slot)

    def _end_late(self, slot: int) -> None:
        """Ends what is open on a slot; the hook takes commands in their order, so a late one is over by then."""
        with suppress(HookError):
            self._hook.end(slot)
        if self._hook.slot(slot).request_id is not None:
            raise HookError("the server's hook has not ended the slot's request before")
        self._unsure.discard(slot)

    def program_of(self, slot: int) -> Program:
        """What the next token of a slot with a request is computed under."""
        with self._lock:
            return self.programs[self._serials[slot]]

    def first_of(self, slot: int) -> Program:
        """What the first token was computed under that a slot's request computed; what the next will be if none was.

        Raises:
            HookError: the server was killed.
        """
        state = self._hook.slot(slot)
        with self._lock:
            return self.programs[state.first_serial or state.serial]

    def end(self, slot: int) -> None:
        """The slot's request is over; lets go of programs of old sources that no slot and no span names.

        Of a server that is gone, or is killed meanwhile, all that its spans might name stays known.
        """
        with self._lock:
            for of_slots in (self._requests, self._serials, self._ran):
                of_slots.pop(slot, None)
            if not self._hook.alive:
                return
            self._release_old()
            try:
                spans = [self._hook.slot(each).spans or () for each in range(self._n_slots)]
            except HookError:
                return
            named = {span.serial for of_slot in spans for span in of_slot}
            kept = named.union(self._held.values(), *self._ran.values())
            for serial in set(self.programs) - kept:
                del self.programs[serial]

    def computed_as(self, program: Program, spans: tuple[Span, ...] | None) -> bool:
        """Whether all of a slot's KV was computed under this program: same effect, same revision."""
        if spans is None:
            return False
        with self._lock:
            known = [self.programs.get(span.serial) for span in spans]
        return all(each is not None and key_of(each) == key_of(program) for each in known)

    def _release_old(self) -> None:
        """Has the hook free programs of old sources; whether it does fails neither a request's end nor a swap."""
        running = set(self._serials.values())
        for key, serial in list(self._held.items()):
            if key in self._coming or serial in running:
                continue
            if self.programs[serial].revision != self.source.revision:
                # One that is asked in vain may still do it: the program is not relied on again.
                del self._held[key]
                try:
                    self._hook.release(serial)
                except HookError:
                    return  # the next would wait in vain, too

    def _run_under(self, program: Program, slot: int, request: RequestContext) -> int:
        """Names a free slot's program, which is held from then on."""
        while True:
            serial = self._hold(program)
            with self._lock:
                # Somebody else's end may have let go of it in between.
                if self._held.get(key_of(program)) == serial:
                    self._serials[slot], self._requests[slot] = serial, request
                    self._ran[slot] = {serial}
                    return serial

    def _hold(self, program: Program) -> int:
        """Has the hook load a program that it has not; nobody waits for that but who wants one, too."""
        key = key_of(program)
        with self._lock:
            serial = self._held.get(key)
        if serial is not None:
            return serial
        with self._loading:
            with self._lock:
                serial = self._held.get(key)
            if serial is None:
                serial = self._hook.hold(program.blob)
                with self._lock:
                    self._held[key] = serial
                    self.programs[serial] = program
            return serial


class _SharedOrAlone:
    """Some things go on side by side, one goes on alone; whoever must be alone keeps new others out."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_shared = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._n_shared += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_shared -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
            self._changed.wait_for(lambda: self._n_shared == 0)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()
