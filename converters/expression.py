"""Expressions over vectors: ``0.7*a - 0.2*(b + c)``. Numbers, names, ``+ - *`` and parentheses, nothing else.

What comes out is linear: a coefficient per name. A grammar of our own, so that an expression from a
script or a web form can do nothing but combine the vectors that it was given.

    sum     = product { ("+" | "-") product }
    product = factor { "*" factor }
    factor  = "-" factor | number | name | "(" sum ")"
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NoReturn

from scope_runtime.errors import UsageError

MAX_CHARACTERS = 4096
MAX_DEPTH = 64
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class _Form:
    """A number plus coefficients of names."""

    number: float
    names: dict[str, float]

    def plus(self, other: _Form, sign: float) -> _Form:
        names = dict(self.names)
        for name, value in other.names.items():
            names[name] = names.get(name, 0.0) + sign * value
        return _Form(self.number + sign * other.number, names)

    def times(self, factor: float) -> _Form:
        return _Form(
            self.number * factor, {name: value * factor for name, value in self.names.items()}
        )


def parse_expression(text: str) -> dict[str, float]:
    """The coefficient of every name in an expression, in order of appearance.

    Raises:
        UsageError: with the column: it cannot be read, is not linear, or is not finite.
    """
    if len(text) > MAX_CHARACTERS:
        raise UsageError("the expression is too long", expected=f"{MAX_CHARACTERS} characters")
    parser = _Parser(text)
    form = parser.sum(0)
    parser.end()
    if not all(map(math.isfinite, (form.number, *form.names.values()))):
        raise UsageError("a coefficient is not finite", found=repr(text))
    if form.number != 0 or not form.names:
        raise UsageError(
            "the expression gives a number beside the vectors" if form.names else "no vector in it",
            found=repr(text),
        )
    return form.names


class _Parser:
    """One expression that is being read from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def sum(self, depth: int) -> _Form:
        form = self.product(depth)
        while sign := self.take("+-"):
            form = form.plus(self.product(depth), 1.0 if sign == "+" else -1.0)
        return form

    def product(self, depth: int) -> _Form:
        form = self.factor(depth)
        while self.take("*"):
            start = self.at
            other = self.factor(depth)
            if form.names and other.names:
                self.at = start
                self.fail("two vectors are multiplied")
            form = form.times(other.number) if form.names else other.times(form.number)
        return form

    def factor(self, depth: int) -> _Form:
        if depth > MAX_DEPTH:
            self.fail("nested too deeply")
        if self.take("-"):
            return self.factor(depth + 1).times(-1.0)
        if self.take("("):
            form = self.sum(depth + 1)
            if not self.take(")"):
                self.fail("a parenthesis is not closed")
            return form
        if found := self.match(_NUMBER):
            return _Form(float(found), {})
        found = self.match(NAME)
        if not found:
            self.fail("a number, a name or a parenthesis is missing")
        return _Form(0.0, {found: 1.0})

    def end(self) -> None:
        self.blank()
        if self.at < len(self.text):
            self.fail("this has no place in an expression")

    def take(self, characters: str) -> str:
        self.blank()
        here = self.text[self.at : self.at + 1]
        if here and here in characters:
            self.at += 1
            return here
        return ""

    def match(self, pattern: re.Pattern[str]) -> str:
        self.blank()
        found = pattern.match(self.text, self.at)
        if not found:
            return ""
        self.at = found.end()
        return found.group()

    def blank(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def fail(self, message: str) -> NoReturn:
        self.blank()
        rest = self.text[self.at : self.at + 20]
        raise UsageError(
            message,
            found=f"{rest!r} at column {self.at + 1}" if rest else "the end",
            hint="A file whose name is no word is given as name=path",
        )
