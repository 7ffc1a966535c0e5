from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from scope_runtime.policy import parse_policy
from scope_runtime.policy.reference import PAGE, main, render, yaml_blocks
from scope_runtime.policy.schema import schema

HEAD = "apiVersion: scope/v1\nkind: SteeringPolicy\nmetadata: {name: p}\nspec:\n"


def test_the_page_is_what_the_schema_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render()
    assert main(["--check"]) == 0


def test_a_stale_page_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scope_runtime.policy.reference.render", lambda: "something else")
    assert main(["--check"]) == 1


@pytest.mark.parametrize("block", list(yaml_blocks(render())), ids=lambda block: block[:20])
def test_every_example_on_the_page_loads(block: str) -> None:
    if "apiVersion" not in block:
        block = HEAD + "".join(f"  {line}\n" for line in block.splitlines())
    parse_policy(block, file="policy.yaml", files=False)


def test_the_schema_is_a_schema_and_describes_every_key() -> None:
    Draft202012Validator.check_schema(schema())
    bare = [path for path, node in _properties(schema(), "") if not node.get("description")]
    assert bare == []


def test_everything_that_can_be_wrong_has_words_for_what_is_expected() -> None:
    untitled = [path for path, node in _properties(schema(), "") if not _titled(node)]
    assert untitled == []


def _properties(node: Any, path: str) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(node, list):
        return [found for i, item in enumerate(node) for found in _properties(item, f"{path}/{i}")]
    if not isinstance(node, dict):
        return []
    here = []
    if isinstance(node.get("properties"), dict) and "/then" not in path:
        here = [(f"{path}/{key}", _whole(value)) for key, value in node["properties"].items()]
    return here + [f for key, item in node.items() for f in _properties(item, f"{path}/{key}")]


def _whole(node: dict[str, Any]) -> dict[str, Any]:
    target = schema()["$defs"].get(node.get("$ref", "").rpartition("/")[2], {})
    return {**target, **node}


def _titled(node: dict[str, Any]) -> bool:
    return bool(node.get("title"))
