"""Measured rounds, kept as they come: an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, on what. Rounds of equal plans belong together.

    Attributes:
        n_prompt: tokens of a prompt; each arm reads one a round.
        n_blocks: decode blocks a round; in each, every arm decodes ``n_block_tokens`` tokens.
        slow_every: the slow arm takes part in every so many rounds.
    """

    model: str
    build: str
    n_threads: int
    n_rounds: int
    n_prompt: int
    n_blocks: int
    n_block_tokens: int
    slow_every: int


@dataclass(frozen=True, slots=True)
class Round:
    """Per arm the prompt's seconds, and per decode block the median seconds of a token."""

    prompt: dict[str, float]
    decode: dict[str, list[float]]


class Journal:
    """The rounds of one plan in a file: the plan, then one line a round.

    Attributes:
        rounds: all so far, those of earlier sittings first.
        n_sittings: how many runs of the program they come from.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self._path = path
        self._sitting = time.time()
        self._sittings: set[float] = set()
        self.rounds: list[Round] = []
        lines = path.read_text().splitlines() if path.exists() else []
        if not lines or json.loads(lines[0]) != asdict(plan):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write_all([json.dumps(asdict(plan))])
            return
        for line in lines[1:]:
            try:
                data = json.loads(line)
            except ValueError:  # cut off by a crash: that round is measured again
                self._write_all(lines[: len(self.rounds) + 1])
                break
            self._sittings.add(data.pop("sitting"))
            self.rounds.append(Round(**data))

    def _write_all(self, lines: list[str]) -> None:
        self._path.write_text("".join(f"{line}\n" for line in lines))

    def add(self, one: Round) -> None:
        """Appends a finished round; half a round is never written."""
        self.rounds.append(one)
        self._sittings.add(self._sitting)
        with self._path.open("a") as file:
            file.write(json.dumps({"sitting": self._sitting, **asdict(one)}) + "\n")

    def discard(self) -> None:
        """Removes the file, once its rounds are in the results."""
        self._path.unlink(missing_ok=True)

    @property
    def n_sittings(self) -> int:
        return len(self._sittings)
