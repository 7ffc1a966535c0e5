"""Chats in other words: what is asked becomes a chat, and what is answered is what clients of those APIs read."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import anthropic.types
import httpx
import openai.types.responses
import pydantic
import pytest

from scope_runtime.errors import ScopeError
from scope_runtime.events import RevisionSpan
from scope_runtime.llama.answer import Piece
from scope_runtime.serve import messages, responses
from scope_runtime.serve.app import public_app
from scope_runtime.serve.ask import Ask, Began, Done, Extra, Item
from scope_runtime.serve.attached_limits import check
from scope_runtime.serve.attached_wire import TAKES
from scope_runtime.serve.errors import ApiError
from scope_runtime.serve.gateway import Gateway
from scope_runtime.serve.keys import KeyRing, digest
from scope_runtime.serve.options import ServeOptions
from scope_runtime.serve.parse import asks_of
from tests.serve.conftest import KEYS, USER

PNG = "iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "look", "description": "looks", "input_schema": SCHEMA}
FUNCTION = {"type": "function", "name": "look", "description": "looks", "parameters": SCHEMA}
CHAT_TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "looks", "parameters": SCHEMA},
}

TALK = [
    {"role": "user", "content": "What is in Suzhou?"},
    {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "Hm.",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "look", "arguments": '{"city": "Suzhou"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "Gardens."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "And here?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        ],
    },
]
"""As a chat."""

AS_MESSAGES = [
    {"role": "user", "content": [{"type": "text", "text": "What is in Suzhou?"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"city": "Suzhou"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "And here?", "cache_control": {"type": "ephemeral"}},
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": PNG},
            },
            {
                "type": "tool_result",
                "tool_use_id": "c1",
                "content": [{"type": "text", "text": "Gardens."}],
            },
        ],
    },
]
AS_ITEMS = [
    {"role": "user", "content": "What is in Suzhou?"},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "I look."}],
    },
    {
        "type": "function_call",
        "call_id": "c1",
        "name": "look",
        "arguments": '{"city": "Suzhou"}',
    },
    {"type": "function_call_output", "call_id": "c1", "output": "Gardens."},
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "And here?"},
            {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"},
        ],
    },
]


def messages_ask(**asked: Any) -> Ask:
    wanted = messages.MessagesRequest.model_validate({"max_tokens": 9, **asked})
    (ask,) = asks_of(messages.chat_of(wanted), {}, "r1", TAKES)
    return ask


def responses_ask(**asked: Any) -> Ask:
    wanted = responses.ResponsesRequest.model_validate(asked)
    (ask,) = asks_of(responses.chat_of(wanted), {}, "r1", TAKES)
    return ask


def test_a_talk_is_the_same_chat_in_all_words() -> None:
    told = {"role": "system", "content": "Be brief."}
    system = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    of_messages = messages_ask(messages=AS_MESSAGES, system=system)
    of_items = responses_ask(input=AS_ITEMS, instructions="Be brief.", max_output_tokens=9)
    for ask in (of_messages, of_items):
        assert list(ask.messages or ()) == [told, *TALK]
        assert ask.sampling.max_tokens == 9
        check(ask)


def test_tools_and_forms_come_through() -> None:
    other = {**TOOL, "name": "other"}
    any_of = messages_ask(
        messages=AS_MESSAGES[:1], tools=[TOOL, other], tool_choice={"type": "any"}
    )
    assert [each["function"]["name"] for each in any_of.passed["tools"]] == ["look", "other"]
    assert any_of.passed["tool_choice"] == "required"
    one = messages_ask(
        messages=AS_MESSAGES[:1], tools=[TOOL, other], tool_choice={"type": "tool", "name": "look"}
    )
    named = {"type": "function", "name": "look"}
    same = responses_ask(
        input="hi", tools=[FUNCTION, {**FUNCTION, "name": "other"}], tool_choice=named
    )
    for ask in (one, same):
        assert (ask.passed["tools"], ask.passed["tool_choice"]) == ([CHAT_TOOL], "required")
    form = {"type": "json_schema", "schema": SCHEMA}
    asks = [
        messages_ask(messages=AS_MESSAGES[:1], output_config={"format": form}),
        responses_ask(input="hi", text={"format": {**form, "name": "n"}}),
    ]
    for ask in asks:
        assert ask.passed["response_format"]["json_schema"]["schema"] == SCHEMA
    assert messages_ask(messages=AS_MESSAGES[:1], thinking={"type": "disabled"}).passed == {
        "chat_template_kwargs": {"enable_thinking": False}
    }
    thinking = {"type": "enabled", "budget_tokens": 1024}
    assert messages_ask(messages=AS_MESSAGES[:1], thinking=thinking).passed == {
        "chat_template_kwargs": {"enable_thinking": True},
        "thinking_budget_tokens": 1024,
    }
    assert messages_ask(messages=AS_MESSAGES[:1], stop_sequences=["x"]).sampling.stop == ("x",)
    assert responses_ask(input="hi", reasoning={"effort": "low"}).passed == {
        "reasoning_effort": "low"
    }


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash_20250124'"),
        ({"tools": [{"input_schema": {}}]}, "needs a name"),
        ({"tool_choice": {"type": "tool", "name": "look"}}, "names no tool"),
        ({"container": "c"}, "'container'"),
        ({"n": 3}, "'n' is not one of this route's"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "'document'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "text is no text"),
        ({"thinking": {"type": "wild"}}, "'wild'"),
        ({"thinking": {"type": "enabled", "budget_tokens": "x"}}, "a number of tokens"),
        ({"output_config": {"format": {"type": "xml"}}}, "Input should be"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": []}]}]},
            "tool_use_id",
        ),
    ],
)
def test_what_is_not_carried_out_is_refused_in_messages(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ApiError, match=says):
        messages_ask(**{"messages": AS_MESSAGES[:1], **asked})


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"tools": [{"type": "web_search"}]}, "'web_search'"),
        ({"previous_response_id": "resp_1"}, "'previous_response_id'"),
        ({"conversation": "conv_1"}, "'conversation'"),
        ({"background": True}, "'background'"),
        ({"truncation": "auto"}, "'truncation'"),
        ({"include": ["message.output_text.logprobs"]}, "'include'"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "'item_reference'"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "'input_file'"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "is no text"),
        ({"messages": []}, "'messages' is not one of this route's"),
    ],
)
def test_what_is_not_carried_out_is_refused_in_responses(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ApiError, match=says):
        responses_ask(**{"input": "hi", **asked})


@pytest.mark.parametrize(
    "ask",
    [
        lambda url: messages_ask(messages=[{"role": "user", "content": [_image(url)]}]),
        lambda url: messages_ask(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c", "content": [_image(url)]}
                    ],
                }
            ]
        ),
        lambda url: responses_ask(
            input=[{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
        ),
        lambda url: responses_ask(
            input=[
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [{"type": "input_image", "image_url": url}],
                }
            ]
        ),
    ],
    ids=["messages", "messages result", "responses", "responses result"],
)
def test_nothing_is_fetched_for_a_client(ask: Any) -> None:
    for url in ("http://169.254.169.254/", "file:///etc/passwd"):
        with pytest.raises(ScopeError, match="none is fetched"):
            check(ask(url))


def _image(url: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "url", "url": url}}


# -- answers

SPAN = RevisionSpan("sha256:abc", 0)
ANSWER: list[Item] = [
    Began("sha256:abc", 1),
    Extra({"reasoning_content": "Hm, "}),
    Extra({"reasoning_content": "well."}),
    Piece("I "),
    Piece("look."),
    Extra({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "look"}}]}),
    Extra({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}),
    Extra({"tool_calls": [{"index": 0, "function": {"arguments": '"Suzhou"}'}}]}),
    Extra({"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "other"}}]}),
    Done("tool_calls", (SPAN,), (), 20, 5, 7),
]


class Engine:
    """Answers what a test wants."""

    slots = 1
    takes = TAKES

    def __init__(self, items: Sequence[Item | Exception]) -> None:
        self.items = items

    async def answer(self, ask: Ask) -> AsyncGenerator[Item, None]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item

    async def close(self) -> None: ...


def answer_of(items: Sequence[Item | Exception], route: str, **asked: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        gateway = Gateway(ServeOptions(), "tiny", KeyRing(None))
        gateway.serve(Engine(items))
        transport = httpx.ASGITransport(public_app(gateway), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            head = {"x-request-id": "r1"}
            return await client.post(f"/v1/{route}", json=asked, headers=head)

    return asyncio.run(run())


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    out = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        told = json.loads(data.removeprefix("data: "))
        assert name == f"event: {told['type']}"
        out.append(told)
    return out


IN_MESSAGES = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
OUTPUT = [
    {"type": "thinking", "thinking": "Hm, well.", "signature": ""},
    {"type": "text", "text": "I look.", "citations": None},
    {"type": "tool_use", "id": "c1", "name": "look", "input": {"city": "Suzhou"}},
    {"type": "tool_use", "id": "c2", "name": "other", "input": {}},
]


def test_messages_tell_thoughts_text_and_calls() -> None:
    response = answer_of(ANSWER, "messages", **IN_MESSAGES)
    assert response.headers["x-scope-revision"] == "sha256:abc"
    assert response.headers["x-scope-interventions"] == "1"
    body = response.json()
    read = anthropic.types.Message.model_validate(body)
    assert body["content"] == OUTPUT
    assert read.stop_reason == "tool_use"
    assert (read.usage.input_tokens, read.usage.cache_read_input_tokens) == (15, 5)
    assert body["scope"]["revisions"] == [{"revision": "sha256:abc", "from_position": 0}]

    streamed = answer_of(ANSWER, "messages", stream=True, **IN_MESSAGES)
    events = events_of(streamed)
    adapter = pydantic.TypeAdapter(anthropic.types.RawMessageStreamEvent)
    snapshot: Any = None
    for event in events:
        adapter.validate_python(event)
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert events[-1]["scope"] == body["scope"]
    assert events[-2]["usage"] == body["usage"]
    snapshot = _told_again(events)
    assert snapshot == OUTPUT


def _told_again(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Blocks as a client puts them together."""
    out: list[dict[str, Any]] = []
    jsons: dict[int, str] = {}
    stopped = 0
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(out) == stopped
            out.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            block, delta = out[event["index"]], event["delta"]
            if delta["type"] == "input_json_delta":
                jsons[event["index"]] = jsons.get(event["index"], "") + delta["partial_json"]
            else:
                key = delta["type"].removesuffix("_delta")
                block[key] += delta[key]
        elif event["type"] == "content_block_stop":
            stopped += 1
    for index, text in jsons.items():
        out[index]["input"] = json.loads(text)
    return out


def test_responses_tell_thoughts_text_and_calls() -> None:
    response = answer_of(ANSWER, "responses", input="hi")
    assert response.headers["x-scope-revision"] == "sha256:abc"
    body = response.json()
    read = openai.types.responses.Response.model_validate(body)
    assert read.output_text == "I look."
    assert [each.type for each in read.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert body["output"][0]["content"][0]["text"] == "Hm, well."
    call = body["output"][2]
    assert (call["call_id"], call["arguments"]) == ("c1", '{"city":"Suzhou"}')
    assert body["status"] == "completed"
    assert body["usage"]["input_tokens_details"] == {
        "cached_tokens": 5,
        "cache_write_tokens": 0,
    }

    events = events_of(answer_of(ANSWER, "responses", input="hi", stream=True))
    adapter = pydantic.TypeAdapter(openai.types.responses.ResponseStreamEvent)
    for number, event in enumerate(events):
        adapter.validate_python(event)
        assert event["sequence_number"] == number
    assert events[-1]["type"] == "response.completed"
    same = ("output", "usage", "scope", "status")
    assert [events[-1]["response"][key] for key in same] == [body[key] for key in same]
    assert events[-1]["scope"] == body["scope"]
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert done == body["output"]
    texts = {
        kind: "".join(e["delta"] for e in events if e["type"] == f"response.{kind}.delta")
        for kind in ("reasoning_text", "output_text", "function_call_arguments")
    }
    assert texts == {
        "reasoning_text": "Hm, well.",
        "output_text": "I look.",
        "function_call_arguments": '{"city":"Suzhou"}',
    }


@pytest.mark.parametrize(
    ("finish", "stop_reason", "status", "reason"),
    [
        ("stop", "end_turn", "completed", None),
        ("length", "max_tokens", "incomplete", "max_output_tokens"),
        ("abort", "refusal", "incomplete", "content_filter"),
    ],
)
def test_how_an_answer_ended(finish: str, stop_reason: str, status: str, reason: Any) -> None:
    items: list[Item] = [ANSWER[0], Piece("x"), Done(finish, (SPAN,), (), 2, 0, 1)]
    assert answer_of(items, "messages", **IN_MESSAGES).json()["stop_reason"] == stop_reason
    body = answer_of(items, "responses", input="hi").json()
    assert body["status"] == status
    assert (body["incomplete_details"] or {}).get("reason") == reason
    (*_, last) = events_of(answer_of(items, "responses", input="hi", stream=True))
    assert last["type"] == f"response.{status}"


LOST = ApiError(502, "The engine behind this server is not there.", code="engine_lost")


def test_errors_have_the_shape_of_their_api() -> None:
    whole = answer_of([LOST], "messages", **IN_MESSAGES)
    about = {"param": None, "code": "engine_lost", "message": LOST.message}
    assert whole.status_code == 502
    assert whole.json() == {"type": "error", "error": {"type": "api_error", **about}}
    (*_, last) = events_of(answer_of([*ANSWER[:4], LOST], "messages", stream=True, **IN_MESSAGES))
    assert last == whole.json()
    plain = answer_of([LOST], "responses", input="hi")
    assert plain.json() == {"error": {"type": "server_error", **about}}
    (*_, end) = events_of(answer_of([*ANSWER[:4], LOST], "responses", input="hi", stream=True))
    assert end["type"] == "error"
    assert end["error"] == plain.json()["error"]
    nowhere = answer_of(ANSWER, "messages/count_tokens", **IN_MESSAGES)
    assert nowhere.json()["error"]["type"] == "not_found_error"
    refused = answer_of(ANSWER, "messages", max_tokens=1)
    assert (refused.status_code, refused.json()["type"]) == (400, "error")
    assert refused.json()["error"]["param"] == "messages"


def test_a_key_comes_as_anthropics_clients_send_it(tmp_path: Any) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS, encoding="utf-8")

    async def run() -> list[httpx.Response]:
        gateway = Gateway(ServeOptions(keys=keys), "tiny", KeyRing(keys))
        gateway.serve(Engine(ANSWER))
        transport = httpx.ASGITransport(public_app(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return [
                await client.post("/v1/messages", json=IN_MESSAGES, headers=head)
                for head in ({"x-api-key": USER}, {"x-api-key": digest(USER)}, {})
            ]

    known, unknown, none = asyncio.run(run())
    assert known.status_code == 200
    for refused in (unknown, none):
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"


def test_a_body_that_is_no_json_is_told_in_the_shape_of_its_api() -> None:
    """Read as a form, it never comes to the route."""

    async def run() -> httpx.Response:
        gateway = Gateway(ServeOptions(), "tiny", KeyRing(None))
        gateway.serve(Engine(ANSWER))
        transport = httpx.ASGITransport(public_app(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post("/v1/messages", data={"max_tokens": "9"})

    refused = asyncio.run(run())
    assert (refused.status_code, refused.json()["type"]) == (415, "error")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {"tools": [FUNCTION | {"more": math.inf}]},
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "look", "x": math.nan}},
    ],
    ids=["tools", "tool_choice"],
)
def test_what_the_answer_could_not_say_again_is_refused(asked: Any, stream: bool) -> None:
    """Said again, it ended a stream at its head."""
    wanted = responses.ResponsesRequest.model_validate({"input": "hi", "stream": stream, **asked})
    with pytest.raises(ApiError, match="is no JSON"):
        responses.chat_of(wanted)


@pytest.mark.parametrize("content", [None, 5, {"type": "input_text", "text": "hi"}])
def test_content_that_is_no_list_is_not_taken_for_nothing(content: Any) -> None:
    with pytest.raises(ApiError, match="Content is text or parts"):
        responses_ask(input=[{"role": "user", "content": content}])


@pytest.mark.parametrize("value", ["NaN", "[" * 5000])
def test_a_models_call_that_is_no_json_is_told_without_it(value: str) -> None:
    call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": f'{{"at":{value}}}'}}
    told = answer_of(
        [ANSWER[0], Extra({"tool_calls": [call]}), ANSWER[-1]], "messages", **IN_MESSAGES
    )
    assert told.status_code == 200
    (block,) = told.json()["content"]
    assert (block["type"], block["input"]) == ("tool_use", {})
