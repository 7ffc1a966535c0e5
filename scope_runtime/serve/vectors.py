"""``/v1/embeddings``: texts in, vectors out, each computed under the request's policies."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from starlette.responses import Response
from starlette.types import Receive

from scope_runtime.llama.embedding import Vector
from scope_runtime.serve.ask import AskVectors, Embeds, TextVector
from scope_runtime.serve.errors import ApiError, json_bytes, no_embeddings
from scope_runtime.serve.gateway import Gateway
from scope_runtime.serve.keys import Holder
from scope_runtime.serve.parse import texts_of
from scope_runtime.serve.respond import headers_of, unless_gone
from scope_runtime.serve.schemas import EmbeddingRequest, taken
from scope_runtime.serve.shapes import Told, scope_data


async def vectors(
    gateway: Gateway,
    wanted: EmbeddingRequest,
    labels: Mapping[str, str],
    holder: Holder,
    request_id: str,
    receive: Receive,
) -> Response:
    """Computes all texts of a request, one after the other, in one place of the queue.

    Raises:
        ApiError: this server computes none, a text does not fit, or a policy ended it.
        ClientGone: nobody waits any more.
    """
    engine = gateway.engine
    taken(wanted.model_extra or {})
    if not isinstance(engine, Embeds):
        raise no_embeddings("Its engine does not.")
    texts = tuple(texts_of(wanted.input))
    names = (
        (request_id,) if len(texts) == 1 else tuple(f"{request_id}.{i}" for i in range(len(texts)))
    )
    job = gateway.job(engine.embed, [AskVectors(texts, labels, names)], labels, holder)
    told: list[Told] = []
    data: list[bytes] = []

    async def collect() -> None:
        async for of in job.items():
            made = of.item
            told.append(Told(began=made.began, done=made.done))
            # One at a time: to write thousands of vectors out in one go would keep everybody waiting.
            data.append(json_bytes(_told(made, len(data), wanted)))

    try:
        await unless_gone(receive, collect())
    finally:
        await job.close()
    rest = {
        "model": gateway.model,
        "usage": _usage(told),
        "scope": scope_data(told, names, wanted.scope is not None and wanted.scope.explain),
    }
    body = b'{"object":"list","data":[' + b",".join(data) + b"]," + json_bytes(rest)[1:]
    first = told[0]
    return Response(
        body, media_type="application/json", headers=headers_of(first.began, first.done)
    )


def _told(made: TextVector, index: int, wanted: EmbeddingRequest) -> dict[str, Any]:
    vector = _short(made, index, wanted.dimensions)
    if wanted.encoding_format == "base64":
        # Little-endian 32-bit floats: what OpenAI's client asks for.
        embedding: Any = base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    else:
        embedding = [float(number) for number in vector]
    return {"object": "embedding", "index": index, "embedding": embedding}


def _usage(told: Sequence[Told]) -> dict[str, int]:
    n_tokens = sum(each.done.n_prompt for each in told if each.done is not None)
    return {"prompt_tokens": n_tokens, "total_tokens": n_tokens}


def _short(made: TextVector, index: int, n: int | None) -> Vector:
    """The vector's first ``n`` numbers, at length 1 again; None: all.

    Raises:
        ApiError: a policy ended the text, or it has not so many numbers.
    """
    if made.done.finish_reason == "abort":
        raise ApiError(
            400, "A policy ended this text.", code="content_filter", param=f"input[{index}]"
        )
    if n is None or n == made.vector.size:
        return made.vector
    if n > made.vector.size:
        raise ApiError(
            400,
            f"This model's embeddings have {made.vector.size} dimensions.",
            code="invalid_value",
            param="dimensions",
        )
    first = made.vector[:n]
    length = float(np.linalg.norm(first))
    return first / np.float32(length) if length else first
