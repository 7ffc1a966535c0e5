"""The layout of policies: what is written, that nothing is lost, and that it settles."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scope_runtime.errors import PolicyErrors
from scope_runtime.policy.format import comments, formatted
from scope_runtime.policy.load import parse_policy
from tests.conftest import ROOT
from tests.policy.strategies import Tree, policies

UGLY = """\
# what it is for


apiVersion:   scope/v1       # the version
kind: "SteeringPolicy"
metadata:
     name: ugly     # its name
     description: a # that is no comment: "# nor this"
     owner: 'it''s # ours'
spec:
  mode:   "enforce"
  limits: {dose: {max:  7.50e-1}}
  features:
        a: {pack:   p.gguf,layer: 0x3,   id: 007}   # first
        # about b
        b: {vector:  v.gguf}
  rules:
  - {name: one, mute: [a,
      a]}
        # about two
  - name: two

    amplify: b

    alpha: +.5
  # - name: three, switched off
  exceptions:
  # none so far
    []



# the end"""

PRETTY = """\
# what it is for

apiVersion: scope/v1  # the version
kind: "SteeringPolicy"
metadata:
  name: ugly  # its name
  description: a  # that is no comment: "# nor this"
  owner: 'it''s # ours'
spec:
  mode: "enforce"
  limits: {dose: {max: 7.50e-1}}
  features:
    a: {pack: p.gguf, layer: 0x3, id: 007}  # first
    # about b
    b: {vector: v.gguf}
  rules:
    - {name: one, mute: [a, a]}
    # about two
    - name: two

      amplify: b

      alpha: +.5
  # - name: three, switched off
  exceptions:
  # none so far
      []

# the end
"""


def test_the_layout() -> None:
    assert formatted(UGLY, "p.yaml") == PRETTY


def test_the_shipped_policies_are_laid_out() -> None:
    for path in sorted((ROOT / "policies").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        assert formatted(text, path.name) == text


def test_comments_are_what_stands_outside_of_values() -> None:
    assert comments("a: 1 # x\n# y\nb: '# no'\nc: |\n  # no\n# z") == ["# x", "# y", "# z"]


def test_a_block_of_text_keeps_its_lines() -> None:
    text = "a: |\n    one\n\n\n      # two\n\nb: >-\n    three\n    four\n"
    assert formatted(text, "p") == "a: |\n  one\n\n\n    # two\n\nb: >-\n  three\n  four\n"


def test_values_of_one_line_keep_their_spelling() -> None:
    long = "words " * 40 + "end"
    text = f"a: \"\\u4e00 \\t\"\nb: {long}\nc: ['it''s', {long}]\n"
    assert formatted(text, "p") == text


def test_a_value_that_is_left_out_is_left_alone() -> None:
    text = "a: {b:   1, c}\nd:   [{e, f:   2}]\n"
    laid_out = formatted(text, "p")
    assert yaml.safe_load(laid_out) == yaml.safe_load(text)
    assert "b: 1" in laid_out
    assert formatted(laid_out, "p") == laid_out


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "a: .inf\n", "a: [1\n", "", "a: &x 1\n"])
def test_what_is_not_read_is_not_laid_out(text: str) -> None:
    with pytest.raises(PolicyErrors):
        formatted(text, "p.yaml")


def dumped(tree: Tree, style: int) -> str:
    """The same policy as four people would write it, no value over several lines."""
    if style == 0:
        return json.dumps(tree)
    flow, indent = ((None, 2), (False, 4), (True, 7))[style - 1]
    text: str = yaml.safe_dump(
        tree,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=flow,
        indent=indent,
        width=1_000_000,
    )
    return text


@st.composite
def commented(draw: st.DrawFn, text: str) -> str:
    """The text with comments and blank lines between its lines."""
    out = []
    for line in text.splitlines():
        note = draw(st.sampled_from(["", "", "# a", "      # deep", "\n\n\n", "#: b # c\n\n  # d"]))
        out += [note] if note else []
        out.append(line)
    return "\n".join(out)


@settings(max_examples=60)
@given(policies(), st.integers(0, 3), st.data())
def test_any_policy_keeps_its_meaning_and_its_comments_and_settles(
    tree: Tree, style: int, data: st.DataObject
) -> None:
    text = data.draw(commented(dumped(tree, style)))
    try:
        before = parse_policy(text, file="p.yaml", files=False)
    except PolicyErrors:  # what is text in PyYAML's YAML 1.1 may be a number in ours
        return
    after = formatted(text, "p.yaml")
    assert parse_policy(after, file="p.yaml", files=False).canonical == before.canonical
    assert formatted(after, "p.yaml") == after
    # Told apart by PyYAML's own scanner, in another way than the formatter's.
    assert sorted(loose_comments(after)) == sorted(loose_comments(text))


def loose_comments(text: str) -> list[str]:
    """Whole-line comments of a text without block scalars."""
    covered = {
        line
        for token in yaml.scan(text, Loader=yaml.SafeLoader)
        for line in range(token.start_mark.line, token.end_mark.line + 1)
        if isinstance(token, yaml.ScalarToken)
    }
    return [
        line.strip()
        for number, line in enumerate(text.splitlines())
        if number not in covered and line.strip().startswith("#")
    ]
