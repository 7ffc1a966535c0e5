"""What must not come through to a llama-server, and what must."""

from __future__ import annotations

import math
from typing import Any

import pytest

from scope_runtime.errors import ScopeError
from scope_runtime.serve.ask import Ask
from scope_runtime.serve.attached_limits import check
from scope_runtime.serve.attached_wire import TAKES
from scope_runtime.serve.parse import asks_of
from scope_runtime.serve.schemas import ChatRequest, CompletionRequest

ROUND = {
    "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    "allOf": [{"$ref": "#/$defs/a"}],
}
"""It ended llama-server, for everybody."""

PNG = "data:image/png;base64,iVBORw0KGgo="


def chat(**more: Any) -> Ask:
    asked = {"messages": [{"role": "user", "content": "hi"}], **more}
    (ask,) = asks_of(ChatRequest(**asked), {}, "r1", TAKES)
    return ask


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}


def shown(url: str, name: str = "image_url") -> list[dict[str, Any]]:
    part = {"type": name, name: {"url": url}}
    return [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}]


def many(n: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(n)}}


def nested(depth: int) -> Any:
    out: Any = {}
    for _ in range(depth):
        out = {"items": out}
    return out


def row(n: int, times: int) -> dict[str, Any]:
    """Each of the definitions is the next one, so many times."""
    return {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * times} for i in range(n)}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"messages": shown("http://169.254.169.254/")}, "none is fetched"),
        ({"messages": shown("HTTPS://example.com/a.png")}, "none is fetched"),
        ({"messages": shown("file:///etc/passwd")}, "none is fetched"),
        ({"messages": shown("http://127.0.0.1/a.wav", "input_audio")}, "none is fetched"),
        ({"repeat_last_n": 2**31 - 1}, "from 0 to 65536"),
        ({"dry_penalty_last_n": 1e9}, "from 0 to 65536"),
        ({"response_format": form({"$defs": row(24, 2)})}, "ways through a schema"),
        ({"response_format": form({"$defs": row(300, 1)})}, "different references"),
        (
            {
                "response_format": form(
                    {
                        "$defs": {
                            f"d{i}": {"a": nested(80), "$ref": f"#/$defs/d{i + 1}"}
                            for i in range(99)
                        }
                    }
                )
            },
            "more than 1000 deep",
        ),
        ({"response_format": form(ROUND)}, "leads to itself"),
        ({"response_format": form({"items": [ROUND["$defs"]["b"]], **ROUND})}, "leads to itself"),
        ({"response_format": {"type": "json_object", "schema": ROUND}}, "leads to itself"),
        ({"tools": [{"function": {"name": "f", "parameters": ROUND}}]}, "leads to itself"),
        (
            {"response_format": form({"allOf": [{"$ref": "#/allOf/ 0x"}]})},
            "leads to itself",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "cannot be 'messages'"),
        ({"chat_template_kwargs": {"tools": []}}, "cannot be 'tools'"),
        ({"chat_template_kwargs": {"bos_token": "x"}}, "cannot be 'bos_token'"),
        ({"chat_template_kwargs": {"eos_token": "x"}}, "cannot be 'eos_token'"),
        ({"samplers": ["top_k"] * 1000}, "at most 32 entries"),
        ({"repeat_penalty": math.nan}, "a number that JSON does not have"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half a character"),
        ({"tools": [nested(200)]}, "nested more than"),
        ({"grammar": "root ::= " + "(" * 30_000}, "nested too deeply"),
        ({"grammar": 'b ::= "a"{0,900}\nroot ::= b{0,900}'}, "repeats what may be empty"),
        ({"response_format": form({"pattern": "^((a{0,90}){0,90}){0,90}$"})}, "repeats too much"),
        ({"response_format": form({"pattern": "(" * 600})}, "repeats too much"),
        ({"response_format": form(many(201))}, "more than 200 optional"),
        ({"tools": [{"type": "function", "function": {"parameters": many(201)}}]}, "more than 200"),
    ],
)
def test_what_would_stop_the_server_or_have_it_fetch_is_refused(
    asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(ScopeError, match=says):
        check(chat(**asked))


def test_what_is_for_chats_is_not_let_be_elsewhere() -> None:
    wanted = CompletionRequest.model_validate({"prompt": "hi", "tools": [{"type": "function"}]})
    (ask,) = asks_of(wanted, {}, "r1", TAKES)
    with pytest.raises(ScopeError, match="'tools' is for chats"):
        check(ask)


def test_what_clients_send_comes_through() -> None:
    required = {**many(500), "required": [f"p{i}" for i in range(500)]}
    pattern = {"type": "string", "pattern": r"^([a-z]{1,60}\.){0,9}[\w(){2,9}]{2,60}\{{1,3}$"}
    check(chat(messages=shown(PNG), repeat_last_n=256, samplers=["top_k", "temperature"]))
    check(
        chat(response_format=form(required), tools=[{"function": {"parameters": many(200)}}] * 50)
    )
    check(chat(response_format=form({"properties": {"host": pattern}})))
    check(chat(tools=[{"function": {"parameters": nested(40)}}], grammar='root ::= "a"{0,2000}'))


def test_references_that_end_come_through() -> None:
    tree = {
        "$defs": {
            **row(50, 1),
            "tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/alias"}}},
            "alias": {"$ref": "#/$defs/tree"},
        },
        "anyOf": [{"$ref": "#/$defs/alias"}, {"$ref": "#/$defs/nobody"}],
    }
    check(chat(response_format=form(tree)))
