"""How the next token is drawn: llama.cpp's own sampler chain."""

from __future__ import annotations

from scope_runtime.llama.context import Context


class Sampler:
    """llama.cpp's sampler chain: greedy at temperature 0, else top-k, top-p, temperature and a seeded draw."""

    def __init__(
        self, context: Context, temperature: float, seed: int | None, top_k: int, top_p: float
    ) -> None:
        api = context.llama.api
        self._api = api
        self._context = context
        self._chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        if temperature <= 0:
            stages = [api.llama_sampler_init_greedy()]
        else:
            stages = [
                api.llama_sampler_init_top_k(top_k),
                api.llama_sampler_init_top_p(top_p, 1),
                api.llama_sampler_init_temp(temperature),
                api.llama_sampler_init_dist(0xFFFFFFFF if seed is None else seed),
            ]
        for stage in stages:
            api.llama_sampler_chain_add(self._chain, stage)

    def next(self) -> int:
        """Draws from the last decoded token's logits."""
        return self._context.sample(self._chain)

    def close(self) -> None:
        if self._chain is not None:
            self._api.llama_sampler_free(self._chain)
            self._chain = None
