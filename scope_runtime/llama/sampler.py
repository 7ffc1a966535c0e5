"""How the next token is drawn: llama.cpp's own sampler chain, and its grammar."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from scope_runtime.errors import UsageError
from scope_runtime.llama import library
from scope_runtime.llama.context import Context
from scope_runtime.llama.grammar import check_grammar
from scope_runtime.llama.sampling import Sampling

_RANDOM_SEED = 0xFFFFFFFF
# llama_token_data
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """llama.cpp's sampler chain: greedy at temperature 0, else top-k, top-p, min-p, temperature and a seeded draw.

    Raises:
        UsageError: the grammar does not parse, or a biased token is none of the model's.
    """

    def __init__(self, context: Context, sampling: Sampling) -> None:
        api = context.llama.api
        self._api = api
        self._context = context
        self._chain: Any = None
        self._grammar: Any = None
        if sampling.grammar:
            self._grammar = _grammar(context, sampling.grammar)
        self._chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        try:
            for stage in _stages(context, sampling):
                api.llama_sampler_chain_add(self._chain, stage)
        except BaseException:
            self.close()
            raise

    def next(self, index: int = -1) -> int:
        """Draws from the logits of an output of the last batch, by default the last.

        Raises:
            UsageError: no token of this model lets the answer follow the grammar.
        """
        if self._grammar is None:
            return self._context.sample(self._chain, index)
        logits = self._context.output_logits(index)
        # The whole vocabulary against a grammar is slow. What is drawn without it mostly fits.
        token = self._draw(_candidates(logits))
        if not self._fits(token):
            allowed = _candidates(logits)
            self._apply(self._grammar, allowed)
            if not np.isfinite(allowed["logit"]).any():
                raise UsageError("no token of this model lets the answer follow the grammar")
            token = self._draw(allowed)
        self._api.llama_sampler_accept(self._chain, token)
        self._api.llama_sampler_accept(self._grammar, token)
        return token

    def _draw(self, candidates: npt.NDArray[Any]) -> int:
        selected = self._apply(self._chain, candidates)
        return int(candidates["id"][selected])

    def _fits(self, token: int) -> bool:
        alone = np.array([(token, 1.0, 0.0)], _CANDIDATE)
        self._apply(self._grammar, alone)
        return bool(np.isfinite(alone["logit"][0]))

    def _apply(self, sampler: Any, candidates: npt.NDArray[Any]) -> int:
        """Runs a sampler over candidates, in place; returns the place of the selected one."""
        array = self._api.llama_token_data_array(
            ctypes.cast(candidates.ctypes.data, self._api.llama_token_data_p),
            len(candidates),
            -1,
            False,
        )
        self._api.llama_sampler_apply(sampler, ctypes.byref(array))
        return int(array.selected)

    def close(self) -> None:
        """Frees the samplers. Safe to call twice."""
        for sampler in (self._chain, self._grammar):
            if sampler is not None:
                self._api.llama_sampler_free(sampler)
        self._chain = self._grammar = None


def _stages(context: Context, sampling: Sampling) -> list[Any]:
    api = context.llama.api
    stages = []
    if sampling.logit_bias:
        for token in sampling.logit_bias:
            if not 0 <= token < context.n_vocab:
                raise UsageError(
                    "logit_bias names a token that the model has not",
                    found=str(token),
                    expected=f"0 to {context.n_vocab - 1}",
                )
        biases = (api.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias.items())
        stages.append(api.llama_sampler_init_logit_bias(context.n_vocab, len(biases), biases))
    if sampling.frequency_penalty or sampling.presence_penalty:
        stages.append(
            api.llama_sampler_init_penalties(
                context.n_vocab,
                context.n_ctx,
                1.0,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    if sampling.temperature <= 0:
        return [*stages, api.llama_sampler_init_greedy()]
    stages += [
        api.llama_sampler_init_top_k(sampling.top_k),
        api.llama_sampler_init_top_p(sampling.top_p, 1),
    ]
    if sampling.min_p:
        stages.append(api.llama_sampler_init_min_p(sampling.min_p, 1))
    seed = _RANDOM_SEED if sampling.seed is None else sampling.seed
    return [
        *stages,
        api.llama_sampler_init_temp(sampling.temperature),
        api.llama_sampler_init_dist(seed),
    ]


def _grammar(context: Context, text: str) -> Any:
    check_grammar(text)
    library.last_log_lines()
    grammar = context.grammar_sampler(text)
    if not grammar:
        raise UsageError(
            "the grammar cannot be read",
            found=library.last_log_lines() or "no reason given",
            expected="GBNF with a rule named root",
        )
    return grammar


def _candidates(logits: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    out = np.zeros(len(logits), _CANDIDATE)
    out["id"] = np.arange(len(logits))
    out["logit"] = logits
    return out
