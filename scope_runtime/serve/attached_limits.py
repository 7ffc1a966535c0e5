"""What a client may not send through to a llama-server: what would stop it for everybody, or fetch things for them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scope_runtime.llama.grammar import MAX_OPTIONAL, check_grammar
from scope_runtime.serve.ask import Ask
from scope_runtime.serve.errors import ApiError
from scope_runtime.serve.parse import FORM

CHATS = tuple(
    "tools tool_choice reasoning_format reasoning_effort chat_template_kwargs thinking_budget_tokens".split()
)
"""Parameters that only the route of chats knows."""

MAX_LAST_N = 65_536
"""Tokens that a sampler looks back at: llama-server makes room for all of them, twice, and keeps it."""

MAX_SAMPLERS = 32
MAX_PATTERN_CHARS = 512
MAX_REFS = 200
MAX_LED_DEPTH = 1000
"""Of a schema and of what its references lead to: llama.cpp descends into all of it at once, 17,000 end it."""

MAX_WAYS = 1000
"""Of references and alternatives, through a schema: 2**24 take llama.cpp 9 s."""

_MAX_DEPTH = 100
_LAST_N = ("repeat_last_n", "dry_penalty_last_n")
_LISTS = ("samplers", "dry_sequence_breakers")
_MEDIA = ("image_url", "input_audio", "input_video", "video_url")
_KWARGS = "chat_template_kwargs"
_NOT_KWARGS = ("messages", "tools", "bos_token", "eos_token")
"""What a template gets of the request itself: given to it as arguments they would stand in for what was checked."""

_FETCHED = ("http", "file:")  # what llama-server goes by, which reads the first letters


def check(ask: Ask) -> None:
    """Refuses what an answer of a llama-server cannot be asked for.

    Raises:
        ApiError, UsageError: in words, with the parameter.
    """
    for name, text in (("prompt", ask.prompt), ("grammar", ask.sampling.grammar)):
        if isinstance(text, str):
            _check_plain(text, name)
    if ask.sampling.grammar:
        check_grammar(ask.sampling.grammar)
    for name, value in ask.passed.items():
        if ask.messages is None and name in CHATS:
            raise ApiError(
                400,
                f"The parameter {name!r} is for chats.",
                code="unsupported_parameter",
                param=name,
            )
        _check_plain(value, name)
        if name in _LAST_N and isinstance(value, (int, float)) and not 0 <= value <= MAX_LAST_N:
            raise _wrong(f"{name} is a number from 0 to {MAX_LAST_N}.", name)
        if name in _LISTS and isinstance(value, (list, str)) and len(value) > MAX_SAMPLERS:
            raise _wrong(f"{name} has at most {MAX_SAMPLERS} entries.", name)
        if name == _KWARGS and isinstance(value, Mapping):
            for each in _NOT_KWARGS:
                if each in value:
                    raise _wrong(f"{_KWARGS} cannot be {each!r}.", f"{name}.{each}")
        if name in (FORM, "tools") and isinstance(value, (Mapping, list)):
            _check_schema(value, name)
            for root in _roots(value):
                _check_refs(root, name)
    for index, message in enumerate(ask.messages or ()):
        _check_plain(message, f"messages[{index}]")
        _check_media(message.get("content"), f"messages[{index}].content")


def _wrong(message: str, param: str) -> ApiError:
    return ApiError(400, message, code="invalid_value", param=param)


def _check_plain(value: Any, param: str, depth: int = 0) -> None:
    """JSON that llama-server can read: finite numbers, whole characters, no endless nesting."""
    if depth > _MAX_DEPTH:
        raise _wrong(f"{param} is nested more than {_MAX_DEPTH} deep.", param)
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(f"{param} has a number that JSON does not have.", param)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _wrong(f"{param} has half a character.", param) from None
    elif isinstance(value, Mapping):
        for key, each in value.items():
            _check_plain(key, param, depth + 1)
            _check_plain(each, param, depth + 1)
    elif isinstance(value, Sequence):
        for each in value:
            _check_plain(each, param, depth + 1)


def _check_media(content: Any, param: str) -> None:
    """Whoever has a key must not have the server ask other machines, or this one, in its name."""
    if not isinstance(content, list):
        return
    for part in content:
        media = [part[name] for name in _MEDIA if name in part]
        for value in media:
            told = value.values() if isinstance(value, Mapping) else [value]
            if any(isinstance(each, str) and each.lower().startswith(_FETCHED) for each in told):
                raise _wrong("Media are sent themselves, as data: URLs; none is fetched.", param)


def _check_schema(value: Any, param: str) -> None:
    """llama.cpp follows all that may be left out at once, and answers nobody meanwhile."""
    for schema in _mappings(value):
        properties, required = schema.get("properties"), schema.get("required")
        if isinstance(properties, Mapping):
            held = required if isinstance(required, list) else []
            if (
                len(properties) - sum(name in properties for name in set(map(str, held)))
                > MAX_OPTIONAL
            ):
                message = f"An object in {param} has more than {MAX_OPTIONAL} optional properties."
                raise _wrong(message, param)
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and (
            len(pattern) > MAX_PATTERN_CHARS or not _is_bounded(pattern)
        ):
            raise _wrong(f"{param} has a pattern that repeats too much.", param)


def _roots(value: Mapping[str, Any] | list[Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas of a form, or of tools: what a reference in them begins at."""
    if isinstance(value, Mapping):
        held = [value.get("schema"), _at(value.get("json_schema"), "schema")]
    else:
        held = [_at(_at(each, "function"), "parameters") for each in value]
    yield from (each for each in held if isinstance(each, Mapping))


def _check_refs(root: Mapping[str, Any], param: str) -> None:
    """llama.cpp follows each way through references and alternatives anew, and one that leads to itself to its end."""
    schemas = list(_mappings(root))
    refs = {ref for each in schemas if isinstance(ref := each.get("$ref"), str)}
    if len(refs) > MAX_REFS:
        raise _wrong(f"{param} has more than {MAX_REFS} different references.", param)
    deep: dict[int, int] = {}
    if _depth(root, deep) + sum(_depth(_led(root, ref), deep) for ref in refs) > MAX_LED_DEPTH:
        raise _wrong(f"{param} has references that lead more than {MAX_LED_DEPTH} deep.", param)
    ways: dict[int, int | None] = {}  # None: being counted

    def count(schema: Any) -> int:
        if not isinstance(schema, Mapping):
            return 1
        known = ways.get(id(schema), 0)
        if known is None:
            raise _wrong(f"{param} has a $ref that leads to itself.", param)
        if not known:
            ways[id(schema)] = None
            known = ways[id(schema)] = max(sum(map(count, _alternatives(schema, root))), 1)
            if known > MAX_WAYS:
                raise _wrong(f"{param} has more than {MAX_WAYS} ways through a schema.", param)
        return known

    try:
        for each in schemas:
            count(each)
    except RecursionError:
        raise _wrong(f"{param} has references that lead too far.", param) from None


def _alternatives(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Any]:
    """What else a schema is, before anything is in it."""
    if isinstance(ref := schema.get("$ref"), str):
        yield _led(root, ref)
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            yield from schema[key]


def _led(root: Mapping[str, Any], ref: str) -> Any:
    """Where a reference leads; None: nowhere."""
    at: Any = root
    for name in ref.split("/")[1:]:
        at = _at(at, name)
    return at


def _depth(value: Any, known: dict[int, int]) -> int:
    """How deep something is nested; ``known``: of what has been looked at."""
    if not isinstance(value, (Mapping, list)):
        return 0
    if id(value) not in known:
        inner = value.values() if isinstance(value, Mapping) else value
        known[id(value)] = 1 + max((_depth(each, known) for each in inner), default=0)
    return known[id(value)]


def _at(value: Any, name: str) -> Any:
    """What a mapping or a list has there; None: nothing. Numbers are read as llama.cpp does it."""
    if isinstance(value, Mapping):
        return value.get(name)
    number = re.match(r"\s*\+?(\d{1,9})(?!\d)", name)
    if isinstance(value, list) and number is not None and int(number[1]) < len(value):
        return value[int(number[1])]
    return None


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
    for each in value.values() if isinstance(value, Mapping) else value:
        if isinstance(each, (Mapping, list)):
            yield from _mappings(each)


def _is_bounded(pattern: str) -> bool:
    """Whether no group that is repeated repeats something within it more than a few times altogether."""
    times = [1]
    last = 1
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if letter == "(":
            times.append(1)
        elif letter == ")" and len(times) > 1:
            last = times.pop()
            times[-1] = max(times[-1], last)
        elif letter == "{":
            end = pattern.find("}", at)
            counts = [int(n[:9]) for n in pattern[at + 1 : end].split(",") if n.isdecimal()]
            last *= max([1, *counts])
            times[-1] = max(times[-1], last)
            at = max(end, at)
        else:
            last = 1
            at += letter == "\\"
        at += 1
    return max(times) <= 1000
