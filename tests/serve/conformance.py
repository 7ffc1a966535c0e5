"""What an OpenAI client may expect of the server, whatever engine is behind it. Each check takes an endpoint.

python -m tests.serve.conformance http://127.0.0.1:8080/v1 MODEL [KEY]
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import anthropic
import openai
import pytest
from huggingface_hub import InferenceClient

PROMPT = "the sea is"
MESSAGES = [{"role": "user", "content": "Tell me about the sea."}]


@dataclass(frozen=True)
class Endpoint:
    """Where to ask."""

    base_url: str
    model: str
    key: str = "none"

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base_url, api_key=self.key, max_retries=0, timeout=60)

    def anthropic(self) -> anthropic.Anthropic:
        base = self.base_url.removesuffix("/v1")
        return anthropic.Anthropic(base_url=base, api_key=self.key, max_retries=0, timeout=60)

    def hugging_face(self) -> InferenceClient:
        return InferenceClient(base_url=self.base_url, api_key=self.key, timeout=60)


def check_models(at: Endpoint) -> None:
    with at.openai() as client:
        assert [model.id for model in client.models.list()] == [at.model]
        assert client.models.retrieve(at.model).id == at.model


def check_chat(at: Endpoint) -> None:
    with at.openai() as client:
        answer = client.chat.completions.create(
            model=at.model, messages=MESSAGES, max_completion_tokens=12, temperature=0
        )
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 12
    assert answer.model_extra["scope"]["revisions"][0]["revision"].startswith("sha256:")


def check_chat_stream(at: Endpoint) -> None:
    asked = {"model": at.model, "messages": MESSAGES, "max_tokens": 16, "temperature": 0}
    with at.openai() as client:
        whole = client.chat.completions.create(**asked)
        chunks = list(
            client.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
        )
    *parts, last = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.model_extra["scope"]["revisions"] == whole.model_extra["scope"]["revisions"]


def check_completion_stream(at: Endpoint) -> None:
    asked = {"model": at.model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    with at.openai() as client:
        whole = client.completions.create(**asked)
        *parts, last = client.completions.create(**asked, stream=True)
    assert "".join(part.choices[0].text for part in (*parts, last)) == whole.choices[0].text
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.model_extra["scope"]["revisions"]


def check_stop(at: Endpoint) -> None:
    with at.openai() as client:
        asked = {"model": at.model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
        text = client.completions.create(**asked).choices[0].text
        stop = text[5:8]
        (choice,) = client.completions.create(**asked, stop=[stop, "never met"]).choices
    assert choice.finish_reason == "stop"
    assert choice.text == text[: text.index(stop)]


def check_seed(at: Endpoint) -> None:
    with at.openai() as client:

        def text(seed: int) -> str:
            answer = client.completions.create(
                model=at.model, prompt=PROMPT, max_tokens=16, temperature=1, seed=seed
            )
            return answer.choices[0].text

        assert text(7) == text(7)
        assert len({text(seed) for seed in range(5)}) > 1


def check_many(at: Endpoint) -> None:
    with at.openai() as client:
        answer = client.completions.create(
            model=at.model,
            prompt=[PROMPT, "a small city"],
            n=2,
            max_tokens=8,
            temperature=1,
            seed=3,
        )
        alone = client.completions.create(
            model=at.model, prompt=PROMPT, max_tokens=8, temperature=1, seed=3
        )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == alone.choices[0].text
    assert len(answer.model_extra["scope"]["choices"]) == 4


def check_chat_logprobs(at: Endpoint) -> None:
    with at.openai() as client:
        answer = client.chat.completions.create(
            model=at.model,
            messages=MESSAGES,
            max_tokens=5,
            temperature=0,
            logprobs=True,
            top_logprobs=3,
        )
    (choice,) = answer.choices
    content = choice.logprobs.content
    assert b"".join(bytes(each.bytes) for each in content).decode() == choice.message.content
    for each in content:
        top = [one.logprob for one in each.top_logprobs]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert math.isclose(each.logprob, top[0], abs_tol=1e-4)  # greedy
        assert sum(map(math.exp, top)) <= 1.0001


def check_completion_logprobs(at: Endpoint) -> None:
    with at.openai() as client:
        answer = client.completions.create(
            model=at.model, prompt=PROMPT, max_tokens=5, temperature=0, logprobs=2
        )
    (choice,) = answer.choices
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert told.text_offset[0] == 0
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs)
    assert all(len(top) == 2 for top in told.top_logprobs)


def check_json_schema(at: Endpoint) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "sea": {"enum": ["calm", "wild"]}},
        "required": ["n", "sea"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    with at.openai() as client:
        answer = client.chat.completions.create(
            model=at.model, messages=MESSAGES, max_tokens=256, seed=1, response_format=form
        )
    read = json.loads(answer.choices[0].message.content)
    assert set(read) == {"n", "sea"}
    assert type(read["n"]) is int
    assert read["sea"] in ("calm", "wild")


def check_errors(at: Endpoint) -> None:
    def refused(kind: type[openai.APIStatusError], **changes: object) -> openai.APIStatusError:
        asked = {"model": at.model, "messages": MESSAGES, "max_tokens": 2, **changes}
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**asked)
        assert caught.value.body["message"]
        return caught.value

    with at.openai() as client:
        assert refused(openai.NotFoundError, model="no-such-model").code == "model_not_found"
        assert refused(openai.BadRequestError, messages=[]).param == "messages"
        assert refused(openai.BadRequestError, temperature=-1).param == "temperature"
        assert refused(openai.BadRequestError, extra_body={"wat": 1}).param == "wat"
        long = [{"role": "user", "content": "sea " * 20_000}]
        refused(openai.BadRequestError, messages=long)


def check_responses(at: Endpoint) -> None:
    asked = {"model": at.model, "input": "Tell me about the sea.", "temperature": 0}
    with at.openai() as client:
        answer = client.responses.create(**asked, max_output_tokens=12)
        chat = client.chat.completions.create(
            model=at.model, messages=MESSAGES, max_tokens=12, temperature=0
        )
        events = list(client.responses.create(**asked, max_output_tokens=12, stream=True))
        form = {"type": "json_schema", "name": "sea", "schema": {"enum": ["calm", "wild"]}}
        with client.responses.stream(**asked, text={"format": form}) as stream:
            final = stream.get_final_response()
    assert final.status == "completed"
    assert json.loads(final.output_text) in ("calm", "wild")
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert (answer.usage.output_tokens, answer.model) == (12, at.model)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == answer.output_text
    last = events[-1]
    assert last.type == "response.incomplete"
    told = answer.model_extra["scope"]["revisions"]
    assert told[0]["revision"].startswith("sha256:")
    assert last.model_extra["scope"]["revisions"] == told
    assert last.response.model_extra["scope"]["revisions"] == told


def check_responses_of_a_talk(at: Endpoint) -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "What is the sea?"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Water."}]},
        {"role": "user", "content": "And the moon?"},
    ]
    same = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the sea?"},
        {"role": "assistant", "content": "Water."},
        {"role": "user", "content": "And the moon?"},
    ]
    with at.openai() as client:
        answer = client.responses.create(
            model=at.model, input=items, max_output_tokens=8, temperature=0
        )
        chat = client.chat.completions.create(
            model=at.model, messages=same, max_tokens=8, temperature=0
        )
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=at.model, input="hi", previous_response_id="resp_1")
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="no-such-model", input="hi")
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert caught.value.param == "previous_response_id"


def check_messages(at: Endpoint) -> None:
    asked = {"model": at.model, "max_tokens": 12, "system": "Be brief."}
    asked["extra_body"] = {"temperature": 0}
    talk = [{"role": "user", "content": [{"type": "text", "text": "Tell me about the sea."}]}]
    with at.openai() as client:
        system = {"role": "system", "content": "Be brief."}
        chat = client.chat.completions.create(
            model=at.model, messages=[system, *MESSAGES], max_tokens=12, temperature=0
        )
    with at.anthropic() as client:
        answer = client.messages.create(**asked, messages=talk)
        with client.messages.stream(**asked, messages=talk) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        *_, last = client.messages.create(**asked, messages=talk, stream=True)
    (block,) = answer.content
    assert block.text == chat.choices[0].message.content == text == final.content[0].text
    assert answer.stop_reason == final.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == final.usage.output_tokens == 12
    n_prompt = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert n_prompt == chat.usage.prompt_tokens
    assert last.type == "message_stop"
    told = answer.model_extra["scope"]["revisions"]
    assert told[0]["revision"].startswith("sha256:")
    assert last.model_extra["scope"]["revisions"] == told


def check_messages_errors(at: Endpoint) -> None:
    talk = [{"role": "user", "content": "hi"}]
    asked = {"model": at.model, "max_tokens": 2, "messages": talk}
    with at.anthropic() as client:
        with pytest.raises(anthropic.NotFoundError) as caught:
            client.messages.create(**{**asked, "model": "no-such-model"})
        assert caught.value.body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.create(**{**asked, "max_tokens": 0})
        assert caught.value.body["error"]["type"] == "invalid_request_error"
        with pytest.raises(anthropic.BadRequestError, match="web_search"):
            client.messages.create(**asked, tools=[{"type": "web_search_1", "name": "web_search"}])
        with pytest.raises(anthropic.BadRequestError, match="'n'"):
            client.messages.create(**asked, extra_body={"n": 2})


def check_nothing_to_say(at: Endpoint) -> None:
    with at.openai() as client:
        answer = client.completions.create(model=at.model, prompt=PROMPT, max_tokens=0)
        *_, last = client.completions.create(
            model=at.model, prompt=PROMPT, max_tokens=0, stream=True
        )
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("", "length")
    assert answer.usage.completion_tokens == 0 < answer.usage.prompt_tokens
    assert last.choices[0].finish_reason == "length"


def check_concurrency(at: Endpoint) -> None:
    prompts = [f"{PROMPT} number {i}" for i in range(8)]
    with at.openai() as client, ThreadPoolExecutor(8) as threads:

        def text(prompt: str) -> str:
            answer = client.completions.create(
                model=at.model, prompt=prompt, max_tokens=12, temperature=0
            )
            return answer.choices[0].text

        alone = [text(prompt) for prompt in prompts]
        assert list(threads.map(text, prompts)) == alone


def check_second_client(at: Endpoint) -> None:
    client = at.hugging_face()
    asked = {"messages": MESSAGES, "model": at.model, "max_tokens": 10, "temperature": 0}
    whole = client.chat_completion(**asked, logprobs=True, top_logprobs=2)
    text = whole.choices[0].message.content
    assert text
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    pieces = client.chat_completion(**asked, stream=True)
    assert text == "".join(
        piece.choices[0].delta.content or "" for piece in pieces if piece.choices
    )


CHECKS: dict[str, Callable[[Endpoint], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


def main(base_url: str, model: str, key: str = "none") -> int:
    """Runs every check, a line each; how many failed."""
    failed = 0
    for name, check in CHECKS.items():
        try:
            check(Endpoint(base_url, model, key))
            sys.stdout.write(f"ok      {name}\n")
        except Exception as error:
            failed += 1
            sys.stdout.write(f"failed  {name}: {type(error).__name__}: {error}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
