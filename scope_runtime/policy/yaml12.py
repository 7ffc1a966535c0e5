"""YAML 1.2's core schema over PyYAML's parser: a plain tree, and where each part of it stands.

PyYAML resolves by YAML 1.1, which turns ``off``, ``1e-3`` and ``20:45`` into something else than
what was written. Only its parser is used here; scalars are resolved by the rules of YAML 1.2.2,
section 10.3.2. What could make a small file big or unclear (aliases, tags, merge keys, several
documents, duplicate keys) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from scope_runtime.errors import Location, PolicyError, PolicyErrors
from scope_runtime.policy.syntax import fatal, syntax_error
from scope_runtime.policy.words import cut

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 20_000

KeyPath = tuple[str | int, ...]

_CORE_TAG = "tag:yaml.org,2002:"
_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_TAGGED = {"int": (int,), "float": (int, float), "bool": (bool,), "null": (type(None),)}
_NON_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_BEYOND_UNICODE = re.compile(r"\\U(?!000|0010)[0-9a-fA-F]{8}")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_UNWANTED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Mark:
    """Where one value stands, and how its scalar was written.

    Attributes:
        key: where its key stands; None for list items and for the document itself.
        value: where the value begins.
        text: the scalar as written, None for lists and mappings.
    """

    key: Location | None
    value: Location
    text: str | None


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file.

    Attributes:
        tree: dicts, lists, str, int, float, bool and None.
        marks: one mark for each path in the tree; the document itself is the empty path.
        errors: what was wrong with single keys or values, each with the path where it lies.
    """

    file: str
    tree: Any
    marks: Mapping[KeyPath, Mark]
    errors: tuple[tuple[KeyPath, PolicyError], ...]


def key_text(path: KeyPath) -> str | None:
    """The path as people write it: ``spec.rules[2].alpha``; None for the document itself."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w/-]+", part):
            text += f".{part}" if text else part
        else:
            text += f'["{part}"]'
    return text or None


def decode(data: bytes, file: str) -> str:
    """The text of a policy file. Raises PolicyErrors if it is too large or not UTF-8."""
    where = Location(file)
    if len(data) > MAX_FILE_BYTES:
        raise fatal(
            "the file is too large", where, f"{len(data)} bytes", f"at most {MAX_FILE_BYTES} bytes"
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise fatal("the file is not UTF-8", where, "a UTF-16 or UTF-32 mark", "UTF-8 text")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8")) + 1
        raise fatal(
            "the file is not UTF-8",
            Location(file, line, column),
            f"byte 0x{data[error.start]:02x}",
            "UTF-8 text",
        ) from None


def parse(text: str, file: str, what: str = "policy") -> Document:
    """Reads one YAML document.

    Args:
        text: the file's text.
        file: its name, for messages.
        what: what the file should hold, for messages.

    Raises:
        PolicyErrors: the text is not YAML, or uses what policies do not allow; nothing after that
            place was read. What concerns a single key or value does not raise: it is in the
            document's ``errors``.
    """
    text = text.removeprefix("\ufeff")
    builder = _Builder(text, file, what)
    try:
        tree = _build(builder, text, file)
    except PolicyErrors as fatal:
        earlier = (error for _, error in builder.errors)
        raise PolicyErrors((*earlier, *fatal.errors)) from None
    return Document(file, tree, builder.marks, tuple(builder.errors))


def _build(builder: _Builder, text: str, file: str) -> Any:
    """The tree, with PyYAML's own errors in our words."""
    try:
        return builder.document()
    except yaml.MarkedYAMLError as error:
        raise syntax_error(error, file) from None
    except yaml.reader.ReaderError as error:
        where = _location(file, text, error.position)
        found = f"U+{ord(text[error.position]):04X}"
        raise fatal(
            "a character that YAML does not allow", where, found, "printable text"
        ) from None
    except (ValueError, OverflowError):  # PyYAML calls chr() on any \U escape
        escape = _BEYOND_UNICODE.search(text)
        where = _location(file, text, escape.start()) if escape else Location(file)
        raise fatal(
            "an escape that names no character",
            where,
            escape[0] if escape else None,
            "at most \\U0010FFFF",
        ) from None


def _text(event: Any) -> str:
    """A scalar's text. JSON writes a rare character as two escapes, which PyYAML leaves as two halves."""

    def joined(pair: re.Match[str]) -> str:
        return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")

    return _PAIR.sub(joined, event.value)


def _location(file: str, text: str, index: int) -> Location:
    before = text[:index]
    return Location(file, before.count("\n") + 1, index - before.rfind("\n"))


class _Builder:
    """Builds the tree from the parser's events; recursion is bounded by MAX_DEPTH."""

    def __init__(self, text: str, file: str, what: str) -> None:
        self._what = what
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self._file = file
        self.marks: dict[KeyPath, Mark] = {}
        self.errors: list[tuple[KeyPath, PolicyError]] = []

    def document(self) -> Any:
        next(self._events)  # stream start
        start = next(self._events)
        if isinstance(start, yaml.StreamEndEvent):
            raise fatal("the file is empty", Location(self._file), None, f"a {self._what}")
        if start.version and tuple(start.version) != (1, 2):
            version = ".".join(str(part) for part in start.version)
            raise fatal(
                "the file asks for another YAML version", self._at(start), version, "YAML 1.2"
            )
        tree = self._node(next(self._events), (), None)
        next(self._events)  # document end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise fatal(
                "a second document in one file",
                self._at(after),
                '"---"',
                f"one {self._what} a file",
            )
        return tree

    def _at(self, event: Any) -> Location:
        return Location(self._file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _node(self, event: Any, path: KeyPath, key: Location | None) -> Any:
        where = self._at(event)
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            raise fatal(
                "anchors and aliases are not allowed",
                where,
                f'"{sign}{event.anchor}"',
                "the value written out",
            )
        if len(path) > MAX_DEPTH:
            raise fatal("the file is nested too deeply", where, None, f"at most {MAX_DEPTH} levels")
        if len(self.marks) >= MAX_NODES:
            raise fatal("the file has too many values", where, None, f"at most {MAX_NODES}")
        self._check_tag(event, where)
        if isinstance(event, yaml.ScalarEvent):
            self.marks[path] = Mark(key, where, _text(event))
            return self._scalar(event, path, where)
        self.marks[path] = Mark(key, where, None)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(event, (*path, len(items)), None))
            return items
        return self._mapping(path)

    def _check_tag(self, event: Any, where: Location) -> None:
        if event.tag in (None, "!"):
            return
        if isinstance(event, yaml.ScalarEvent):
            allowed = {"str", "int", "float", "bool", "null"}
        else:
            allowed = {"seq" if isinstance(event, yaml.SequenceStartEvent) else "map"}
        if event.tag.removeprefix(_CORE_TAG) not in allowed or _CORE_TAG not in event.tag:
            raise fatal(
                "a tag that is not plain data",
                where,
                f'"{event.tag.replace(_CORE_TAG, "!!")}"',
                "no tag",
            )

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            where = self._at(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise fatal("a key that is not text", where, "a list or mapping", "a plain key")
            key = self._key(event, path, where)
            if key in result:
                first = self.marks[(*path, key)].key
                self._error(
                    (*path, key),
                    PolicyError(
                        f'duplicate key "{key}"',
                        location=where,
                        key=key_text((*path, key)),
                        hint=f"It already stands at {first}.",
                    ),
                )
                self._skip(next(self._events), (*path, key))
            else:
                result[key] = self._node(next(self._events), (*path, key), where)
        return result

    def _skip(self, event: Any, path: KeyPath) -> None:
        """Reads the value of a duplicate key without keeping it, nor where it stands."""
        kept, n_errors = self.marks, len(self.errors)
        self.marks = {}
        self._node(event, path, None)
        self.marks = kept
        del self.errors[n_errors:]

    def _key(self, event: Any, path: KeyPath, where: Location) -> str:
        if event.anchor:
            self._node(event, path, None)  # refuses
        self._check_tag(event, where)
        text = _text(event)
        value = self._scalar(event, (*path, text), where)
        if not isinstance(value, str):
            name = text or "nothing"
            self._error(
                (*path, text),
                PolicyError(
                    "a key that is not text",
                    location=where,
                    key=key_text((*path, text)) if text else key_text(path),
                    found=name,
                    expected=f'text, such as "{name}" in quotes' if text else "text",
                ),
            )
        elif value == "<<" and event.style is None:
            raise fatal("merge keys are not allowed", where, '"<<"', "the keys written out")
        return text

    def _scalar(self, event: Any, path: KeyPath, where: Location) -> Any:
        text = _text(event)
        kind = (event.tag or "").removeprefix(_CORE_TAG)
        if unwanted := _UNWANTED.search(text):
            self._value_error(
                path, where, "a control character", f"U+{ord(unwanted[0]):04X}", "printable text"
            )
            return _UNWANTED.sub("?", text)
        if kind in ("str", "!") or (not kind and event.style is not None):
            return text
        value = self._resolve(text, path, where)
        wanted = _TAGGED.get(kind)
        if wanted and (
            not isinstance(value, wanted) or isinstance(value, bool) != (kind == "bool")
        ):
            self._value_error(path, where, "a tag that does not fit its value", text, f"!!{kind}")
        return value

    def _resolve(self, text: str, path: KeyPath, where: Location) -> Any:
        """A plain scalar's value by the core schema."""
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if _INT.fullmatch(text) and len(text) <= 64:
            number = int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if -(1 << 63) <= number < 1 << 63:
                return number
        elif _NON_FINITE.fullmatch(text):
            self._value_error(path, where, "not a finite number", text, "a finite number")
            return 0.0
        elif not _FLOAT.fullmatch(text):
            return text
        elif len(text) <= 1000 and abs(value := float(text)) != float("inf"):
            return value
        self._value_error(path, where, "a number that is too large", cut(text), "64 bits at most")
        return 0

    def _value_error(
        self, path: KeyPath, where: Location, message: str, found: str, expected: str
    ) -> None:
        self._error(
            path,
            PolicyError(
                message, location=where, key=key_text(path), found=found, expected=expected
            ),
        )

    def _error(self, path: KeyPath, error: PolicyError) -> None:
        self.errors.append((path, error))
