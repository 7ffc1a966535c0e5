"""What goes to a llama-server and what comes back: bodies and events, without one."""

from __future__ import annotations

from typing import Any

from scope_runtime.llama.answer import TokenScore
from scope_runtime.llama.sampling import Sampling
from scope_runtime.serve.ask import Ask
from scope_runtime.serve.attached_wire import TAKES, Wire
from scope_runtime.serve.parse import asks_of
from scope_runtime.serve.schemas import ChatRequest
from scope_runtime.serve.shapes import Chat, Completion, Told

TOOL = {"type": "function", "function": {"name": "look", "description": "<|im_end|>looks"}}


def chat(**more: Any) -> Ask:
    wanted = ChatRequest(messages=[{"role": "user", "content": "a<|im_end|>b"}], **more)
    (ask,) = asks_of(wanted, {}, "r1", TAKES)
    return ask


def body(ask: Ask, reusable: bool = False) -> dict[str, Any]:
    return Wire(["<|im_end|>"]).body(ask, ask.sampling, 2, reusable)


def test_slot_and_cache_are_the_gateways() -> None:
    sent = body(chat(id_slot=7, n_cache_reuse=256, lora=[{"id": 0}], cache_prompt=True))
    assert (sent["id_slot"], sent["cache_prompt"]) == (2, False)
    assert not {"n_cache_reuse", "lora", "n"} & sent.keys()
    assert body(chat(), reusable=True)["cache_prompt"] is True


def test_control_tokens_of_a_stranger_are_taken_out_everywhere() -> None:
    sent = body(chat(tools=[TOOL], tool_choice="auto"))
    assert sent["messages"] == [{"role": "user", "content": "ab"}]
    assert sent["tools"][0]["function"] == {"name": "look", "description": "looks"}
    assert sent["tool_choice"] == "auto"


def test_control_tokens_are_taken_out_where_a_template_would_make_them() -> None:
    """Parts are put side by side, keys are written out, and a call's arguments are read."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [{"type": "text", "text": "a<|im_"}, image, {"type": "text", "text": "end|>b"}]
    fine = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    function = {"name": "look", "arguments": '{"at": "\\u003c|im_end|>x", "<|im_end|>n": 1}'}
    plain = {"name": "look", "arguments": '{"at":"\\u00e9"}'}
    call = {"id": "c<|im_end|>1", "type": "function"}
    messages = [
        {"role": "user", "content": parts},
        {"role": "user", "content": fine},
        {"role": "assistant", "tool_calls": [call | {"function": function}]},
        {"role": "assistant", "tool_calls": [call | {"function": plain}]},
        {"role": "tool", "tool_call_id": "c<|im_end|>1", "content": "y"},
    ]
    wanted = ChatRequest.model_validate(
        {"messages": messages, "tools": [{"url": {"<|im_end|>k": "<|im_end|>v"}}]}
    )
    (ask,) = asks_of(wanted, {}, "r1", TAKES)
    sent = body(ask)
    assert sent["tools"] == [{"url": {"k": "v"}}]
    first, second, third, fourth, fifth = sent["messages"]
    assert first["content"] == [{"type": "text", "text": "ab"}, image]
    assert second["content"] == fine
    assert third["tool_calls"][0]["function"]["arguments"] == '{"at": "x", "n": 1}'
    assert fourth["tool_calls"][0]["function"]["arguments"] == plain["arguments"]
    assert (third["tool_calls"][0]["id"], fifth["tool_call_id"]) == ("c1", "c1")


def test_control_tokens_are_taken_out_of_what_else_a_template_is_told() -> None:
    kwargs = {
        "model_identity": "I am<|im_end|>",
        "<|im_end|>k": ["<|im_end|>"],
        "enable_thinking": False,
    }
    sent = body(chat(chat_template_kwargs=kwargs, reasoning_effort="high<|im_end|>"))
    told = {"model_identity": "I am", "k": [""], "enable_thinking": False}
    assert (sent["chat_template_kwargs"], sent["reasoning_effort"]) == (told, "high")


def test_a_schema_is_passed_on_where_it_is_known() -> None:
    schema = {"type": "object", "properties": {}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert body(chat(response_format=form))["response_format"] == form
    plain = Ask("the sea", None, Sampling(), {}, "r1", {"response_format": form})
    sent = body(plain)
    assert (sent["prompt"], sent["json_schema"]) == ("the sea", schema)
    assert "response_format" not in sent


def test_a_call_comes_in_pieces_and_is_told_whole() -> None:
    wire, told = Wire([]), Told()
    for function in (
        {"name": "look", "arguments": ""},
        {"arguments": '{"at"'},
        {"arguments": ":1}"},
    ):
        call = {"index": 0, "function": function}
        if "name" in function:
            call |= {"id": "c1", "type": "function"}
        event = {"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": None}]}
        part = wire.read(event, None)
        assert (part.text, part.finish) == ("", None)
        assert part.extra is not None
        told.add(part.extra)
    message = Chat().whole(0, told, scored=False)["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
    ]


def test_as_many_scores_as_were_asked_for() -> None:
    each = {"id": 5, "token": "a", "bytes": [97], "logprob": -0.5}
    event = {
        "content": "a",
        "tokens": [5],
        "completion_probabilities": [{**each, "top_logprobs": [each]}],
    }
    (score,) = Wire([]).read(event, 0).scores
    assert (score.token, score.data, score.logprob, score.top) == (5, b"a", -0.5, ())
    (score,) = Wire([]).read(event, 1).scores
    assert [top.token for top in score.top] == [5]


def test_where_tokens_begin_is_not_counted_again_for_each() -> None:
    """Counted from the start for each token, ten thousand of them kept everybody waiting for 20 s."""
    n_read = 0

    class Counted(bytes):
        def decode(self, *about: Any, **more: Any) -> str:
            nonlocal n_read
            n_read += 1
            return bytes(self).decode(*about, **more)

    shape, told = Completion(), Told()
    words = [b"a", "sea \u00e9".encode(), b"\xe6\xb5", b""] * 250
    offsets: list[int] = []
    for word in words:
        score = TokenScore(5, Counted(word), -0.5, ())
        choice = shape.piece(0, told, "", (score, score), scored=True)
        offsets += choice["logprobs"]["text_offset"]
        told.score((score, score))
    assert n_read <= 10 * len(words)
    lengths = [len(word.decode(errors="replace")) for word in words for _ in range(2)]
    assert offsets == [sum(lengths[:i]) for i in range(len(lengths))]
    whole = shape.whole(0, told, scored=True)
    assert whole["logprobs"]["text_offset"] == offsets
