"""A policy's text in its one layout: comments live, and what it means stays what it was.

ruamel.yaml writes the document again, with every scalar as it stood; then the gaps between the tokens
are tidied: blank lines, and where comments begin. What comes out is held against what went in.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from scope_runtime.errors import Location, PolicyError, PolicyErrors
from scope_runtime.policy.load import canonical_json
from scope_runtime.policy.yaml12 import parse

WIDTH = 100
_TRIES = 8
_CORE = "tag:yaml.org,2002:"


def formatted(text: str, file: str) -> str:
    """The text laid out: two spaces a level, lists inside their key, at most one blank line.

    The same text again gives itself. Works on every file of ours, whether or not it fits its schema.

    Raises:
        PolicyErrors: it is no YAML that we read, with the places.
        PolicyError: it cannot be laid out without touching a value or a comment; nothing is lost,
            because nothing is returned.
    """
    text = text.removeprefix("\ufeff")
    document = parse(text, file)
    if document.errors:
        raise PolicyErrors(tuple(error for _, error in document.errors))
    laid_out = _settled(text, file)
    same = parse(laid_out, file)
    if same.errors or canonical_json(same.tree) != canonical_json(document.tree):
        raise _refused("the layout would change a value", file)
    if comments(laid_out) != comments(text):
        raise _refused("the layout would change a comment", file)
    return laid_out


def edited(text: str, file: str, edit: Callable[[Any], None]) -> str:
    """The text with something changed in it, laid out, and with every comment that it had.

    Args:
        text: YAML that we read.
        file: what to call it in errors.
        edit: changes the document in place, as ruamel.yaml's mappings and lists.

    Raises:
        PolicyError: a comment would be lost. PolicyErrors: as `formatted`.
    """
    before = formatted(text, file)
    writer, out = _writer(), io.StringIO()
    document = writer.load(before)
    edit(document)
    writer.dump(document, out)
    after = formatted(out.getvalue(), file)
    if sorted(comments(after)) != sorted(comments(before)):
        raise _refused("the change would lose a comment", file)
    return after


def comments(text: str) -> list[str]:
    """The comments in file order, from their ``#`` to the end of their line."""
    return [
        line.strip()
        for _, gap, _ in _gaps(text)
        for line in gap.splitlines()
        if line.strip().startswith("#")
    ]


def _settled(text: str, file: str) -> str:
    """Written until it does not change: moving one comment may move another."""
    for _ in range(_TRIES):
        try:
            written = _tidied(_as_it_stood(text, _written(text)))
        except (YAMLError, ValueError, yaml.YAMLError) as reason:
            raise _refused("the layout cannot be made", file, str(reason)) from None
        if written == text:
            return text
        text = written
    raise _refused("the layout does not settle", file)


def _refused(message: str, file: str, found: str | None = None) -> PolicyError:
    return PolicyError(
        message,
        location=Location(file),
        found=found.splitlines()[0] if found else None,
        hint="The file is left as it is; lay it out by hand",
    )


class _Scalar(str):
    """A plain scalar that is not text, as it was written: ``1e-3``, ``~``, ``0x1F``."""

    __slots__ = ("tag",)
    tag: str


class _Constructor(RoundTripConstructor):
    def as_written(self, node: Any) -> _Scalar:
        scalar = _Scalar(node.value)
        scalar.tag = str(node.tag)
        return scalar


class _Representer(RoundTripRepresenter):
    def as_written(self, data: _Scalar) -> Any:
        return ScalarNode(data.tag, str(data), style=None)


for _kind in ("int", "float", "bool", "null", "timestamp"):
    _Constructor.add_constructor(_CORE + _kind, _Constructor.as_written)
_Representer.add_representer(_Scalar, _Representer.as_written)


def _writer() -> YAML:
    writer = YAML(typ="rt")
    writer.Constructor = _Constructor
    writer.Representer = _Representer
    writer.preserve_quotes = True
    writer.allow_duplicate_keys = False
    writer.width = WIDTH
    writer.indent(mapping=2, sequence=4, offset=2)
    return writer


def _written(text: str) -> str:
    writer, out = _writer(), io.StringIO()
    writer.dump(writer.load(text), out)
    return out.getvalue()


def _as_it_stood(before: str, after: str) -> str:
    """Scalars of one line keep their own spelling: escapes, and text that is longer than a line."""
    old = [t for t in yaml.scan(before, Loader=yaml.SafeLoader) if isinstance(t, yaml.ScalarToken)]
    new = [t for t in yaml.scan(after, Loader=yaml.SafeLoader) if isinstance(t, yaml.ScalarToken)]
    if len(old) != len(new):  # a value that was left out was written out
        return after
    out: list[str] = []
    done = 0
    for one, other in zip(old, new, strict=True):
        if one.start_mark.line != one.end_mark.line or one.style != other.style:
            continue
        out += [
            after[done : other.start_mark.index],
            before[one.start_mark.index : one.end_mark.index],
        ]
        done = other.end_mark.index
    return "".join([*out, after[done:]])


def _gaps(text: str) -> Iterator[tuple[int, str, int]]:
    """What stands between the tokens, white space and comments: start, text, end."""
    at = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        start, end = token.start_mark.index, token.end_mark.index
        if start > at:
            yield at, text[at:start], start
        at = max(at, end)
    if at < len(text):
        yield at, text[at:], len(text)


def _tidied(text: str) -> str:
    out: list[str] = []
    done = 0
    for start, gap, end in _gaps(text):
        out.append(text[done:start])
        out.append(_tidy_gap(text, start, gap, end))
        done = end
    out.append(text[done:])
    return "".join(out).strip("\n") + "\n"


def _tidy_gap(text: str, start: int, gap: str, end: int) -> str:
    if "\n" not in gap and "#" not in gap:
        return gap
    *lines, last = gap.split("\n")
    before = _indent(text, start)
    after = len(last) if end < len(text) else 0
    tidy: list[str] = []
    if start and text[start - 1] != "\n" and lines:
        beside = lines.pop(0).strip()
        tidy.append(f"  {beside}" if beside else "")
    if end == len(text):
        lines.append(last)
        last = ""
    for blank, group in itertools.groupby(lines, key=lambda line: not line.strip()):
        tidy += [""] if blank else [_placed(line, before, after) for line in group]
    return "\n".join([*tidy, last])


def _placed(comment: str, before: int, after: int) -> str:
    """A comment on a line of its own, in line with what stands before or after, whichever is nearer."""
    column = len(comment) - len(comment.lstrip())
    nearest = min((after, before), key=lambda level: abs(level - column))
    return " " * nearest + comment.strip()


def _indent(text: str, index: int) -> int:
    """How far the line of the last thing before ``index`` is indented."""
    line = text[:index].rstrip("\n").rpartition("\n")[2]
    return len(line) - len(line.lstrip())
