"""What tokens are computed under: the last good policies, or nothing while somebody switched them off."""

from __future__ import annotations

import threading
import time

from scope_runtime.errors import ScopeError
from scope_runtime.events import Kind
from scope_runtime.lifecycle.state import State, Switch
from scope_runtime.lifecycle.types import Cause, Target
from scope_runtime.select import ProgramSource

NONE = "none"


class InForce:
    """The last good policies, and the switch that takes them out of force without forgetting them.

    All methods may be called from any thread; none waits for a build.

    Args:
        target: the runtime.
        nothing: what is in force before there is anything good.
        off: what is in force while switched off.
        state: where the switch outlives the process; None forgets it.

    Attributes:
        current: the last good policies; in force unless switched off.
        switch: who switched steering off; None while it is on.
    """

    def __init__(
        self, target: Target, nothing: ProgramSource, off: ProgramSource, state: State | None
    ) -> None:
        self.current = nothing
        self.switch: Switch | None = None
        self._target = target
        self._off = off
        self._state = state
        self._on_file = False  # whether the switch has a file, whose end switches on again
        self._swapping = threading.RLock()

    @property
    def revision(self) -> str:
        """What tokens are computed under now: ``none`` while switched off."""
        return NONE if self.switch else self.current.revision

    def start(self, cause: Cause) -> None:
        """Stays off where the process before was switched off."""
        with self._swapping:
            self.switch = self._state.switch() if self._state else None
            self._on_file = self.switch is not None
            if self.switch is not None:
                self._target.record("off", Kind.POLICY, **cause.fields(), at_start=True)

    def take_up(
        self, programs: ProgramSource, cause: Cause, what: str, *, now: bool = False
    ) -> None:
        """Swaps in, or while switched off only remembers, what is good."""
        with self._swapping:
            if self.switch is None:
                self._target.take_up(programs, what=what, now=now, **cause.fields())
            else:
                self._target.record(
                    "loaded",
                    Kind.POLICY,
                    name=programs.program.policy,
                    revision=programs.revision,
                    previous=self.current.revision,
                    **cause.fields(),
                )
            self.current = programs

    def off(self, cause: Cause) -> str | None:
        """Stops all steering by the next token, whatever else goes on. Stays off over a restart.

        Returns:
            Why it would not stay off over a restart, if it would not.
        """
        with self._swapping:
            self._set_off(Switch(cause.actor, cause.reason, time.time()), cause)
            if self._state is None:
                return None
            try:
                self._state.set_switch(self.switch)
            except ScopeError as error:
                self._target.record("not-kept", Kind.POLICY, revision=NONE, **error.fields())
                return f"off, but not kept for a restart: {error}"
            self._on_file = True
            return None

    def on(self, cause: Cause) -> None:
        """Steers again, under the last good policies.

        Raises:
            StateError: the switch file cannot be removed, and would switch off again.
        """
        with self._swapping:
            if self._state is not None:
                self._state.set_switch(None)
            self._set_on(cause)

    def follow_switch(self) -> None:
        """Does what the switch file says."""
        if self._state is None:
            return
        with self._swapping:
            if self._on_file and not self._state.folder.is_dir():
                self._state.make()  # a volume that went away switches nothing on
                self._state.set_switch(self.switch)
            switch = self._state.switch()
            if switch is not None:
                self._on_file = True
                self._set_off(switch, Cause("file", switch.actor, switch.reason))
            elif self._on_file:  # what was switched off without a file is not switched on by one
                self._set_on(Cause("file", "file", f"{self._state.switch_path.name} is gone"))

    def _set_off(self, switch: Switch, cause: Cause) -> None:
        if self.switch is None:
            self._target.take_up(self._off, what="off", now=True, **cause.fields())
            self.switch = switch

    def _set_on(self, cause: Cause) -> None:
        if self.switch is not None:
            self._target.take_up(self.current, what="on", now=True, **cause.fields())
            self.switch = None
            self._on_file = False
