"""Grammars for answers: what llama.cpp may be given, and JSON schemas turned into its GBNF."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from scope_runtime.errors import UsageError
from scope_runtime.llama.grammar_cost import MAX_REPEATS, check_cost

MAX_GRAMMAR_BYTES = 64 * 1024
MAX_NESTING = 64
MAX_OPTIONAL = 200
"""Parts that may be left out: llama.cpp's work grows with about the cube of how many stand in a row; 300 take 20 s."""

_OPTIONAL = re.compile(r"[?*]|\{\s*(?:0+\s*)?,")

MAX_PATTERN = 20_000
"""Characters that a schema's pattern is long when its repetitions are written out, which the converter does."""

_COUNTED = ("minLength", "maxLength", "minItems", "maxItems")
_PATTERN = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]?|\{[\d\s,]*\}|.", re.DOTALL)
_UNROLLED = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])*"?|\[(?:\\.|[^\]\\])*\]?)
    |\((?P<part>(?:"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[\w-]+)(?:\ (?:"(?:\\.|[^"\\])*"|[\w-]+))*)
    (?P<more>(?:\ \((?P=part))*)(?P<ends>(?:\)\?)+)""",
    re.VERBOSE,
)

_IGNORED = frozenset(
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf uniqueItems contains minContains "
    "maxContains not if then else patternProperties propertyNames minProperties maxProperties "
    "dependentRequired dependentSchemas unevaluatedItems unevaluatedProperties".split()
)

_MISWRITTEN = re.compile(r"\\(?!u)|\\u(?:00[01]|d[89a-f])")
"""Of a word as JSON: the converter lets quotes, backslashes and line ends in it count for the grammar, and halves of a
pair of surrogates for characters."""

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""Of OpenAI's ``json_object``: whatever JSON object."""


def check_grammar(text: str) -> None:
    """Refuses what llama.cpp's parser, which descends once per bracket, would take the process down with.

    Raises:
        UsageError: too long, or too deep.
    """
    if len(text.encode()) > MAX_GRAMMAR_BYTES:
        raise UsageError(
            "the grammar is too long",
            found=f"{len(text.encode())} bytes",
            expected=f"at most {MAX_GRAMMAR_BYTES}",
        )
    if "\0" in text:
        raise UsageError("the grammar has a NUL character")
    deepest = depth = 0
    for character in text:
        # Brackets in literals count as well: that refuses too much rather than too little.
        depth += (character == "(") - (character == ")" and depth > 0)
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise UsageError(
            "the grammar is nested too deeply",
            found=str(deepest),
            expected=f"at most {MAX_NESTING}",
        )
    optional = len(_OPTIONAL.findall(text))
    if optional > MAX_OPTIONAL:
        raise UsageError(
            "the grammar leaves too much open",
            found=f"{optional} optional parts",
            expected=f"at most {MAX_OPTIONAL}",
        )
    check_cost(text)


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """A JSON schema as GBNF, by llama.cpp's own converter.

    Raises:
        UsageError: it cannot be expressed.
    """
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        passed_over = sorted(_passed_over(schema))
        _check_counts(schema)
        text = _folded(json_schema_to_gbnf(json.dumps(schema)))
    except UsageError:
        raise
    except Exception as error:  # whatever the converter stumbles over, the schema is what is wrong
        raise UsageError(
            "the JSON schema cannot be turned into a grammar",
            found=f"{type(error).__name__}: {error}"[:500],
        ) from error
    if passed_over:
        raise UsageError(
            "the JSON schema asks for what its grammar would not hold",
            found=", ".join(passed_over),
            hint="Leave it out, and look at the answer",
        )
    check_grammar(text)
    return text


def _passed_over(schema: Any) -> Iterator[str]:
    """What the converter ignores, or writes wrong: whoever wrote it counts on it."""
    if not isinstance(schema, Mapping):
        return
    yield from (key for key in _IGNORED if schema.get(key) not in (None, False))
    yield from (word[:100] for word in map(json.dumps, _words(schema)) if _MISWRITTEN.search(word))
    for key in ("items", "additionalProperties"):
        yield from _passed_over(schema.get(key))
    for key in ("prefixItems", "items", "anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list):
            for each in schema[key]:
                yield from _passed_over(each)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(key), Mapping):
            for each in schema[key].values():
                yield from _passed_over(each)


def _words(schema: Mapping[str, Any]) -> Iterator[Any]:
    """What an answer must have as it stands."""
    if "const" in schema:
        yield schema["const"]
    for key in ("enum", "properties"):
        if isinstance(schema.get(key), (list, Mapping)):
            yield from schema[key]


def _check_counts(schema: Any) -> None:
    """Refuses repetitions that cannot be held, wherever they are, before the converter writes them all out."""
    if isinstance(schema, list):
        for each in schema:
            _check_counts(each)
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        if key in _COUNTED and isinstance(value, int) and value > MAX_REPEATS:
            raise _too_far(str(value)[:30], key)
        if (
            key == "pattern"
            and isinstance(value, str)
            and (size := _written_out(value)) > MAX_PATTERN
        ):
            raise UsageError(
                "the JSON schema's pattern repeats too much",
                found=f"{size} characters when written out",
                expected=f"at most {MAX_PATTERN}",
            )
        _check_counts(value)


def _too_far(found: str, key: str | None = None) -> UsageError:
    return UsageError(
        "the JSON schema counts further than a grammar can",
        key=key,
        found=found,
        expected=f"at most {MAX_REPEATS}",
        hint="Leave it out, and bound the answer by max_tokens",
    )


def _written_out(pattern: str) -> int:
    """Characters of a regular expression, its repetitions written out; no more are counted than are too many."""
    groups, last = [0], 0
    for token in _PATTERN.finditer(pattern):
        text = token[0]
        if text.startswith("{") and len(text) > 1:
            times = max((1, *(int(digits[:9]) for digits in re.findall(r"\d+", text))))
            groups[-1] += last * (times - 1)
            last *= times
        elif text == "(":
            groups.append(0)
            last = 0
        else:
            last = groups.pop() if text == ")" and len(groups) > 1 else 1
            groups[-1] += last
        if groups[-1] > MAX_PATTERN:
            return groups[-1]  # before the numbers grow as long as the pattern
    return sum(groups)


def _folded(grammar: str) -> str:
    """What the converter repeats in brackets within brackets, by count: as deep as it is long, no parser bears it."""

    def fold(found: re.Match[str]) -> str:
        if found["text"] is not None:
            return found[0]  # the schema's own words, brackets and all
        part, ends = found["part"], len(found["ends"]) // 2
        times = found["more"].count(f" ({part}") + 1
        if ends < times:
            return found[0]
        if times > MAX_REPEATS:
            raise _too_far(str(times))
        return f"({part}){{0,{times}}}" + ")?" * (ends - times)

    return _UNROLLED.sub(fold, grammar)
