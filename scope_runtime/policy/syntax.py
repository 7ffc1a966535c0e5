"""PyYAML's complaints in words for people who do not know its parser."""

from __future__ import annotations

import yaml

from scope_runtime.errors import Location, PolicyError, PolicyErrors


def fatal(
    message: str, where: Location, found: str | None, expected: str | None, hint: str | None = None
) -> PolicyErrors:
    """An error after which the file is not read on."""
    return PolicyErrors(
        (PolicyError(message, location=where, found=found, expected=expected, hint=hint),)
    )


# PyYAML's problem → (what to say, what to do about it). The text before "…" must begin the problem.
_SYNTAX: tuple[tuple[str, str, str | None], ...] = (
    ("found character '\\t'", "a tab where YAML allows only spaces", "Indent with spaces."),
    ("found character", "a character that cannot begin a value", "Put the value in quotes."),
    (
        "mapping values are not allowed here",
        'a ":" where no key can stand',
        "Check the indentation of this line and the one before; quote a value that holds a colon.",
    ),
    (
        "could not find expected ':'",
        'a key without ":"',
        'Write "key: value", with a space after the colon.',
    ),
    (
        "expected <block end>",
        "this line does not fit the lines around it",
        "Check the indentation.",
    ),
    ("expected ',' or ']'", 'a list that is not closed by "]"', None),
    ("expected ',' or '}'", 'a mapping that is not closed by "}"', None),
    ("found unexpected end of stream", "a quote that is not closed", None),
    ("found unexpected document separator", "a quote that is not closed", None),
    ("found unknown escape character", "an unknown escape", "Use single quotes, or write \\\\."),
    ("found undefined tag handle", "a tag that is not plain data", None),
    ("found a tab character", "a tab where YAML allows only spaces", "Indent with spaces."),
    ("expected a single document", "a second document in one file", None),
    ("expected the node content", "a value is missing", None),
)


def syntax_error(error: yaml.MarkedYAMLError, file: str) -> PolicyErrors:
    """PyYAML's error in our words, where the text is broken (not where its surroundings began)."""
    mark = error.problem_mark or error.context_mark
    where = Location(file, mark.line + 1, mark.column + 1) if mark else Location(file)
    problem = error.problem or "not YAML"
    said, hint = f"not YAML: {problem}", None
    for beginning, words, advice in _SYNTAX:
        if problem.startswith(beginning):
            said, hint = f"not YAML: {words}", advice
            break
    if error.context_mark and mark and error.context_mark.line != mark.line:
        what = "The block around it" if "does not fit" in said else "It"
        opened = f"{what} begins at line {error.context_mark.line + 1}."
        hint = f"{hint} {opened}" if hint else opened
    return fatal(said, where, None, None, hint)
