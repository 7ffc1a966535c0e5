"""What goes to a llama-server and what comes back, as the gateway's own words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scope_runtime.errors import UsageError
from scope_runtime.llama.answer import TokenScore
from scope_runtime.llama.sampling import Sampling
from scope_runtime.serve.ask import Ask
from scope_runtime.serve.attached_limits import CHATS
from scope_runtime.serve.controls import control_pattern, without_controls
from scope_runtime.serve.parse import FORM

_OURS = frozenset(("id_slot", "n_cache_reuse", "lora"))
"""What a client may say and does not decide: which slot, what is reused there, and how the model is changed."""

_DRAWS = (
    "typical_p top_n_sigma repeat_penalty repeat_last_n dry_multiplier dry_base dry_allowed_length dry_penalty_last_n "
    "dry_sequence_breakers xtc_probability xtc_threshold dynatemp_range dynatemp_exponent mirostat mirostat_tau "
    "mirostat_eta samplers min_keep ignore_eos"
)
TAKES = frozenset((*_DRAWS.split(), *CHATS, *_OURS, FORM, "messages"))

_TOLD_TEMPLATES = frozenset(("tools", "chat_template_kwargs", "reasoning_effort"))
"""What a chat's template may write into the prompt, as it does with the messages."""

_END = 2**31 - 1
_FINISH = {"eos": "stop", "word": "stop", "limit": "length", "none": "length"}


@dataclass(frozen=True, slots=True)
class Part:
    """What an event of the server says.

    Attributes:
        extra: of a chat, what is no text.
        tokens: ids of the text, where the server says them.
        n_answer: tokens of the answer so far; 0 where it is not said, as ``n_prompt`` and ``n_reused``.
        finish: how it ended, in the last but one event.
    """

    text: str = ""
    scores: tuple[TokenScore, ...] = ()
    extra: Mapping[str, Any] | None = None
    tokens: tuple[int, ...] = ()
    n_prompt: int = 0
    n_reused: int = 0
    n_answer: int = 0
    finish: str | None = None


def nothing(part: Part) -> Part:
    """Of an answer without tokens: llama-server draws one all the same."""
    finish = "length" if part.finish is not None else None
    return replace(part, text="", scores=(), extra=None, tokens=(), n_answer=0, finish=finish)


class Wire:
    """Asks as bodies, events as parts.

    Args:
        controls: texts of control tokens, which no message may bring.
    """

    def __init__(self, controls: Sequence[str]) -> None:
        self._controls = control_pattern(controls)

    @staticmethod
    def route(ask: Ask) -> str:
        return "/completion" if ask.messages is None else "/v1/chat/completions"

    @staticmethod
    def prompt_text(ask: Ask) -> str:
        """The prompt as one text, to be compared and, where policies want it, put on record."""
        if isinstance(ask.prompt, str):
            return ask.prompt
        if ask.prompt is not None:
            return " ".join(map(str, ask.prompt))
        told = {"tools": ask.passed.get("tools"), "messages": ask.messages}
        return json.dumps(
            {name: value for name, value in told.items() if value}, ensure_ascii=False
        )

    def body(self, ask: Ask, sampling: Sampling, slot: int, reusable: bool) -> dict[str, Any]:
        """The request for one answer in one slot."""
        most = -1 if sampling.max_tokens >= _END else sampling.max_tokens
        out: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "logit_bias": [[token, bias] for token, bias in sampling.logit_bias.items()],
            "stop": list(sampling.stop),
            **({"seed": sampling.seed} if sampling.seed is not None else {}),
            **({"grammar": sampling.grammar} if sampling.grammar else {}),
            **{name: value for name, value in ask.passed.items() if name not in _OURS},
            "stream": True,
            "timings_per_token": True,
            "id_slot": slot,
            "cache_prompt": reusable,
        }
        top = sampling.top_logprobs
        if ask.messages is None:
            form = out.pop(FORM, None)
            out |= _form(form) if form is not None else {}
            prompt = ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt or ())
            out |= {"prompt": prompt, "n_predict": most, "return_tokens": True}
            return out | ({"n_probs": max(top, 1)} if top is not None else {})
        out |= {"messages": [self._harmless(message) for message in ask.messages]}
        for name in _TOLD_TEMPLATES & out.keys():
            out[name] = self._harmless(out[name])
        out |= {"max_tokens": most, "stream_options": {"include_usage": True}}
        return out | ({"logprobs": True, "top_logprobs": max(top, 1)} if top is not None else {})

    def _harmless(self, value: Any) -> Any:
        if isinstance(value, str):
            return without_controls(value, self._controls)
        if isinstance(value, list):
            return self._joined([self._harmless(each) for each in value])
        if isinstance(value, dict):
            return {
                self._harmless(key): self._arguments(each)
                if key == "arguments"
                else self._harmless(each)
                for key, each in value.items()
            }
        return value

    def _joined(self, parts: list[Any]) -> list[Any]:
        """Parts of a message that make a control token together, which templates put side by side, as one."""
        texts = [
            part["text"] if isinstance(part, dict) and isinstance(part.get("text"), str) else None
            for part in parts
        ]
        whole = "".join(text for text in texts if text is not None)
        harmless = without_controls(whole, self._controls)
        if harmless == whole:
            return parts
        others = [part for part, text in zip(parts, texts, strict=True) if text is None]
        return [{"type": "text", "text": harmless}, *others]

    def _arguments(self, value: Any) -> Any:
        """Of a call, JSON in a text: templates get what its escapes stand for."""
        if not isinstance(value, str) or "\\" not in value:
            return self._harmless(value)
        try:
            told = json.loads(value)
            harmless = self._harmless(told)
        except ValueError:
            return self._harmless(value)  # no JSON: nobody reads it
        except RecursionError:
            raise UsageError("the arguments of a call are nested too deeply") from None
        return self._harmless(
            value if harmless == told else json.dumps(harmless, ensure_ascii=False)
        )

    def read(self, event: Mapping[str, Any], top: int | None) -> Part:
        """One event of either route, with so many of the likeliest tokens."""
        timings = event.get("timings") or {}
        counts: dict[str, Any] = {
            "n_reused": timings.get("cache_n", 0),
            "n_prompt": timings.get("cache_n", 0) + timings.get("prompt_n", 0),
            "n_answer": timings.get("predicted_n", 0),
        }
        if "choices" in event:
            return _of_chat(event, counts, top)
        finish = _FINISH.get(event.get("stop_type", ""), "stop") if event.get("stop") else None
        return Part(
            text=event.get("content", ""),
            scores=_scores(event.get("completion_probabilities"), top),
            tokens=() if finish is not None else tuple(event.get("tokens", ())),
            finish=finish,
            **counts,
        )


def _of_chat(event: Mapping[str, Any], counts: dict[str, Any], top: int | None) -> Part:
    if not event["choices"]:
        return Part(**counts)
    choice = event["choices"][0]
    delta = {name: value for name, value in choice.get("delta", {}).items() if value is not None}
    delta.pop("role", None)
    text = delta.pop("content", "")
    scores = _scores((choice.get("logprobs") or {}).get("content"), top)
    return Part(
        text=text, scores=scores, extra=delta or None, finish=choice.get("finish_reason"), **counts
    )


def _scores(places: Any, top: int | None) -> tuple[TokenScore, ...]:
    return tuple(
        TokenScore(
            place["id"],
            bytes(place["bytes"]),
            place["logprob"],
            tuple(
                TokenScore(each["id"], bytes(each["bytes"]), each["logprob"])
                for each in place["top_logprobs"][:top]
            ),
        )
        for place in places or ()
    )


def _form(form: Mapping[str, Any]) -> dict[str, Any]:
    """A ``response_format`` for the route that knows none."""
    if form["type"] == "json_object":
        return {"json_schema": {"type": "object"}}
    if form["type"] == "json_schema":
        return {"json_schema": (form.get("json_schema") or {}).get("schema", {})}
    return {}
