"""What was in force before: kept to come back to, and to tell what is older than it."""

from __future__ import annotations

from collections.abc import Mapping

from scope_runtime.errors import Location, PolicyError, PolicyErrors, ScopeError
from scope_runtime.events import Kind
from scope_runtime.lifecycle.history import History, back_to, before, put_on
from scope_runtime.lifecycle.source import Source
from scope_runtime.lifecycle.state import Active, State, StateError, generations_of
from scope_runtime.lifecycle.types import Feed, Target
from scope_runtime.policy.model import Policy
from scope_runtime.select import ProgramSource


class Memory:
    """In which order sets came into force, and the highest generation of each policy.

    Args:
        target: where it is put on record that something could not be kept.
        state: where it outlives the process; None forgets it.
    """

    def __init__(self, target: Target, state: State | None) -> None:
        self._target = target
        self._state = state
        self._generations: dict[str, int] = {}
        self._history: History = ()

    def recall(self) -> Active | None:
        """What was in force when the process before ended, if that is known."""
        if self._state is None:
            return None
        try:
            active = self._state.active
        except StateError as error:
            self._target.record("refused", Kind.POLICY, **error.fields())
            return None
        if active is not None:
            self._generations = dict(active.generations)
            self._history = active.history
        return active

    def check_generations(self, policies: tuple[Policy, ...]) -> None:
        """Refuses what is older than what was in force before: an old file that came back by accident."""
        errors = tuple(
            PolicyError(
                "an older generation than the one that was in force",
                location=policy.generation_at,
                key="metadata.generation",
                found=str(policy.generation),
                expected=f"{self._generations[policy.name]} or more",
                hint="To go back on purpose, use scope rollback.",
            )
            for policy in policies
            if policy.generation is not None
            and policy.generation < self._generations.get(policy.name, 0)
        )
        if errors:
            raise PolicyErrors(errors)

    def keep(
        self,
        source: Source,
        programs: ProgramSource,
        seen: Mapping[str, str],
        feed: Feed | None,
    ) -> str | None:
        """Keeps what came into force. What cannot be kept is in force all the same, and that is told.

        Args:
            seen: digests of the files that it was made from.
            feed: where the source comes from, where it is not simply there.

        Returns:
            Why it is not kept, if it is not.
        """
        for name, generation in generations_of(programs).items():
            self._generations[name] = max(generation, self._generations.get(name, 0))
        if self._state is None:
            return None
        self._history = put_on(self._history, programs.revision, self._state.keep)
        try:
            archive = feed.archive() if feed is not None else None
            self._state.keep_set(source, programs, seen, archive, self._history)
        except ScopeError as error:
            return self._not_kept(programs.revision, error)
        note = self._keep_active(self._state, programs.revision, None)
        if feed is not None and note is None:
            feed.forget_others()
        return note

    def went_back(self, programs: ProgramSource, held_against: Mapping[str, str]) -> str | None:
        """Keeps that an older set was chosen over what lies at the source.

        Returns:
            Why it is not kept, if it is not.
        """
        # Going back is on purpose: from here on, what counts as old is older than this.
        self._generations |= generations_of(programs)
        if self._state is None:
            return None
        self._history = back_to(self._history, programs.revision, self._state.keep)
        return self._keep_active(self._state, programs.revision, held_against)

    def before(self, revision: str) -> str:
        """What was in force before a revision, of what is kept. Raises StateError if there is nothing."""
        kept = {k.revision for k in self._state.kept()} if self._state else set()
        found = before(self._history, revision, kept)
        if found is None:
            raise StateError(
                "there is no earlier revision to go back to",
                location=Location(str(self._state.folder)) if self._state else None,
                found=f"{len(kept)} kept",
                hint=(
                    "Name one of those that are kept with --to; `scope status` lists them"
                    if self._state
                    else "Run with a state directory to keep revisions"
                ),
            )
        return found

    def _keep_active(
        self, state: State, revision: str, held_against: Mapping[str, str] | None
    ) -> str | None:
        held = None if held_against is None else dict(held_against)
        active = Active(revision, held, dict(self._generations), self._history)
        try:
            if not state.says(active):
                state.set_active(active)
        except ScopeError as error:
            return self._not_kept(revision, error)
        return None

    def _not_kept(self, revision: str, error: ScopeError) -> str:
        self._target.record("not-kept", Kind.POLICY, revision=revision, **error.fields())
        return f"in force, but not kept for a restart: {error}"
