"""What a grammar costs llama.cpp, which follows every way through it at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from scope_runtime.errors import UsageError

MAX_EMPTY_REPEATS = 1000
"""Of a part that is repeated and may be empty, times what is repeated in it: 1,600 take 0.2 s, 10,000 take 3 s,
40,000 take 13 s, and 900 in 900 in 900 take for ever."""

MAX_REPEATS = 2000
"""llama.cpp repeats a part no more often: a higher bound it takes for none."""

MAX_RULE_DEPTH = 200

# What is not closed goes on to the end, and blanks are matched in one way alone: else the time grows with the square
# of a text, and with worse.
_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
    |(?P<text>"(?:\\.|[^"\\])*"?|\[(?:\\.|[^\]\\])*\]?)
    |(?P<name>[\w-]+)(?P<defined>\s*::=)?
    |(?P<times>\{\s*(?:(?P<least>\d+)\s*)?(?:,\s*(?:(?P<most>\d+)\s*)?)?\}|[*+?])
    |(?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(slots=True)
class _Part:
    """A part of a rule.

    Attributes:
        empty: it may be.
        times: how often it may be repeated, repetitions of the empty within it multiplied.
        nested: the most that was so multiplied anywhere in it.
    """

    empty: bool = False
    times: int = 1
    nested: int = 1


@dataclass(slots=True)
class _Group:
    """Alternatives; ``empty``: one that is over may be empty, ``now``: the one that is read may be so far."""

    empty: bool = False
    now: bool = True
    times: int = 1
    nested: int = 1
    last: _Part | None = None

    def take(self) -> None:
        """The latest part is followed by no more repetitions."""
        if self.last is not None:
            self.now = self.now and self.last.empty
            self.times = max(self.times, self.last.times)
            self.nested = max(self.nested, self.last.nested)
            self.last = None

    def end(self) -> None:
        """An alternative is over."""
        self.take()
        self.empty, self.now = self.empty or self.now, True

    def whole(self) -> _Part:
        """All alternatives as one part."""
        self.end()
        return _Part(self.empty, self.times, self.nested)


@dataclass(slots=True)
class _Rules:
    tokens: dict[str, list[re.Match[str]]]
    known: dict[str, _Part] = field(default_factory=dict)

    def part(self, name: str, depth: int) -> _Part:
        if name in self.known or name not in self.tokens:
            return self.known.get(name, _Part())
        if depth > MAX_RULE_DEPTH:
            raise UsageError(
                "the grammar's rules are nested too deeply", expected=f"at most {MAX_RULE_DEPTH}"
            )
        self.known[name] = _Part()  # while it is read: a rule within itself is not empty
        groups = [_Group()]
        for token in self.tokens[name]:
            group = groups[-1]
            if token["times"] is not None:
                if group.last is not None:
                    group.last = _repeated(group.last, token)
            elif token["sign"] == "|":
                group.end()
            elif token["sign"] == ")" and len(groups) > 1:
                groups.pop()
                groups[-1].last = group.whole()
            else:
                group.take()
                if token["sign"] == "(":
                    groups.append(_Group())
                elif token["name"] is not None:
                    group.last = self.part(token["name"], depth + 1)
                else:
                    group.last = _Part(empty=token["text"] == '""')
        for inner, outer in zip(groups[:0:-1], groups[-2::-1], strict=True):
            outer.last = inner.whole()  # brackets that nobody closed
        self.known[name] = groups[0].whole()
        return self.known[name]


def _repeated(part: _Part, token: re.Match[str]) -> _Part:
    if token["times"] in ("*", "+", "?"):
        return _Part(part.empty or token["times"] != "+", part.times, part.nested)
    least, most = (_number(token[name]) for name in ("least", "most"))
    most = max(least, most, 1)
    if most > MAX_REPEATS:
        raise UsageError(
            "the grammar repeats a part too often",
            found=token["times"][:30],
            expected=f"at most {MAX_REPEATS} times",
        )
    if not part.empty:
        return _Part(least == 0, most, part.nested)
    times = most * part.times
    return _Part(True, times, max(part.nested, times))


def _number(digits: str | None) -> int:
    """What many digits say is too much in any case."""
    return int((digits or "0")[:9])


def check_cost(grammar: str) -> None:
    """Refuses a grammar whose repetitions of what may be empty llama.cpp would follow for minutes, or for ever.

    Raises:
        UsageError: it does, or its rules go too deep.
    """
    tokens: dict[str, list[re.Match[str]]] = {}
    rule: list[re.Match[str]] = []
    for token in _TOKEN.finditer(grammar):
        if token["defined"] is not None:
            rule = tokens.setdefault(token["name"], [])
        elif token["skip"] is None:
            rule.append(token)
    rules = _Rules(tokens)
    for name in tokens:
        nested = rules.part(name, 0).nested
        if nested > MAX_EMPTY_REPEATS:
            raise UsageError(
                "the grammar repeats what may be empty too often",
                found=f"{nested} times in the rule {name[:100]}",
                expected=f"at most {MAX_EMPTY_REPEATS}",
            )
