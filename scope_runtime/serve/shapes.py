"""Answers in the two shapes of OpenAI's API, whole and in pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from scope_runtime.llama.answer import TokenScore
from scope_runtime.serve.ask import Began, Done

# ``abort`` has no name of its own there; ``content_filter`` is what clients take for "ended by the server".
_FINISH = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "abort": "content_filter",
    "cancelled": "stop",
}


def finish_of(done: Done) -> str:
    """OpenAI's word for how an answer ended."""
    return _FINISH[done.finish_reason]


@dataclass(slots=True)
class Told:
    """One answer so far.

    Attributes:
        n_scored: characters of the tokens that ``scores`` are of.
    """

    text: str = ""
    scores: list[TokenScore] = field(default_factory=list)
    n_scored: int = 0
    began: Began | None = None
    done: Done | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def score(self, scores: Sequence[TokenScore]) -> None:
        """Adds what came with a piece."""
        self.scores += scores
        self.n_scored += sum(len(_text(score)) for score in scores)

    def add(self, fields: Mapping[str, Any]) -> None:
        """Puts what came in pieces together: texts are continued, calls by their index."""
        for name, value in fields.items():
            if name != "tool_calls":
                self.extra[name] = self.extra.get(name, "") + (value or "")
                continue
            calls = self.extra.setdefault(name, [])
            for call in value:
                while len(calls) <= call["index"]:
                    calls.append({"function": {"name": "", "arguments": ""}})
                known, about = calls[call["index"]], call.get("function", {})
                known |= {key: call[key] for key in ("id", "type") if call.get(key)}
                for key in ("name", "arguments"):
                    known["function"][key] += about.get(key) or ""


class Shape(Protocol):
    """How a route tells answers.

    Attributes:
        whole_name, chunk_name: OpenAI's ``object``.
    """

    prefix: str
    whole_name: str
    chunk_name: str

    def whole(self, index: int, told: Told, scored: bool) -> dict[str, Any]:
        """One of ``choices``."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream begins an answer with, if anything."""

    def piece(
        self, index: int, before: Told, text: str, scores: Sequence[TokenScore], scored: bool
    ) -> dict[str, Any]:
        """The next piece of an answer of which ``before`` was told."""

    def extra(self, index: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Of a stream, what is no text."""

    def end(self, index: int, finish: str) -> dict[str, Any]:
        """What a stream ends an answer with."""


class Chat:
    """``/v1/chat/completions``."""

    prefix = "chatcmpl-"
    whole_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def whole(self, index: int, told: Told, scored: bool) -> dict[str, Any]:
        content = told.text if told.text or not told.extra else None
        message = {"role": "assistant", "content": content, "refusal": None, **told.extra}
        finish = finish_of(told.done) if told.done else None
        return {
            "index": index,
            "message": message,
            "logprobs": self._scores(told.scores) if scored else None,
            "finish_reason": finish,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._choice(index, {"role": "assistant", "content": ""}, None, None)

    def piece(
        self, index: int, before: Told, text: str, scores: Sequence[TokenScore], scored: bool
    ) -> dict[str, Any]:
        told = self._scores(scores) if scored else None
        return self._choice(index, {"content": text}, told, None)

    def extra(self, index: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        return self._choice(index, dict(fields), None, None)

    def end(self, index: int, finish: str) -> dict[str, Any]:
        return self._choice(index, {}, None, finish)

    @staticmethod
    def _choice(index: int, delta: Any, logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    @staticmethod
    def _scores(scores: Sequence[TokenScore]) -> dict[str, Any]:
        def plain(score: TokenScore) -> dict[str, Any]:
            return {
                "token": _text(score),
                "logprob": score.logprob,
                "bytes": list(score.data),
            }

        content = [plain(score) | {"top_logprobs": list(map(plain, score.top))} for score in scores]
        return {"content": content, "refusal": None}


class Completion:
    """``/v1/completions``."""

    prefix = "cmpl-"
    whole_name = "text_completion"
    chunk_name = "text_completion"

    def whole(self, index: int, told: Told, scored: bool) -> dict[str, Any]:
        logprobs = self._scores(told.scores, 0) if scored else None
        finish = finish_of(told.done) if told.done else None
        return self._choice(index, told.text, logprobs, finish)

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def piece(
        self, index: int, before: Told, text: str, scores: Sequence[TokenScore], scored: bool
    ) -> dict[str, Any]:
        logprobs = self._scores(scores, before.n_scored) if scored else None
        return self._choice(index, text, logprobs, None)

    def extra(self, index: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        raise TypeError("a completion is text alone")

    def end(self, index: int, finish: str) -> dict[str, Any]:
        return self._choice(index, "", None, finish)

    @staticmethod
    def _choice(index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    @staticmethod
    def _scores(scores: Sequence[TokenScore], offset: int) -> dict[str, Any]:
        tokens = [_text(score) for score in scores]
        offsets = list(accumulate(map(len, tokens), initial=offset))[:-1]
        return {
            "tokens": tokens,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [{_text(top): top.logprob for top in score.top} for score in scores],
            "text_offset": offsets,
        }


def _text(score: TokenScore) -> str:
    return score.data.decode(errors="replace")


def usage(told: Sequence[Told], n: int) -> dict[str, Any]:
    """Tokens of a request; a prompt that is answered ``n`` times is counted once."""
    done = [each.done for each in told if each.done is not None]
    n_prompt = sum(each.n_prompt for each in done[::n])
    n_answer = sum(each.n_answer for each in done)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_answer,
        "total_tokens": n_prompt + n_answer,
        "prompt_tokens_details": {"cached_tokens": sum(each.n_reused for each in done[::n])},
    }


def scope_data(told: Sequence[Told], request_ids: Sequence[str], explain: bool) -> dict[str, Any]:
    """What was done to the answers: of one as it is, of several one by one under ``choices``."""
    each = [_scope_of(one, name, explain) for one, name in zip(told, request_ids, strict=True)]
    if len(each) == 1:
        return each[0]
    distinct = {span["revision"]: None for one in each for span in one["revisions"]}
    return {"revisions": [{"revision": revision} for revision in distinct], "choices": each}


def _scope_of(told: Told, request_id: str, explain: bool) -> dict[str, Any]:
    done, began = told.done, told.began
    spans = done.revisions if done else ()
    out: dict[str, Any] = {
        "request_id": request_id,
        "revisions": [{"revision": s.revision, "from_position": s.from_position} for s in spans],
        "interventions": began.interventions if began else 0,
        "finish_reason": done.finish_reason if done else None,
    }
    if explain and done:
        out["report"] = [event.record() for event in done.report]
    return out
