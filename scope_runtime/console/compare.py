"""Two texts as the model reads them under what is in force, by whole SAE layers: ``scope compare`` for the page."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from scope_runtime.console.drafts import Body
from scope_runtime.errors import UsageError
from scope_runtime.inspect.compare import compare
from scope_runtime.inspect.data import comparison_data
from scope_runtime.inspect.sample import Pool
from scope_runtime.llama.checks import check_model
from scope_runtime.pack_types import layer_name
from scope_runtime.sae import SaeLayers
from scope_runtime.serve.ask import Engine

MAX_CHARS = 20_000
DIGITS = 4
_TEXT = Annotated[str, Field(min_length=1, max_length=MAX_CHARS)]


class CompareBody(Body):
    """What is compared.

    Attributes:
        chat: take the texts as users' messages, through the model's template.
        at: how a text's tokens become one number.
        top: features to list.
    """

    a: _TEXT
    b: _TEXT
    chat: bool = False
    at: Literal["mean", "max", "last"] = "max"
    top: Annotated[int, Field(ge=1, le=50)] = 12


class Comparing:
    """Compares texts by the SAE layers that the process was given; they are opened when they are first needed.

    Args:
        spec: ``PATH`` or ``PATH:LAYERS``; None: there are none.
    """

    def __init__(self, spec: str | None) -> None:
        self._spec = spec
        self._lock = (
            threading.Lock()
        )  # one at a time: each takes the model for itself, and all its threads
        self._saes: SaeLayers | None = None

    def about(self, engine: Engine) -> dict[str, Any]:
        """What texts would be compared by, or why they cannot be."""
        reads = engine.reads
        if reads.why_not is not None:
            return {"sae": None, "why": reads.why_not}
        if self._spec is None:
            return {"sae": None, "why": "No SAE was given: start with --sae PATH[:LAYERS]."}
        with self._lock:
            saes = self._opened(reads.model)
        layers = [*map(layer_name, saes.layers)]
        return {"sae": saes.path, "kind": saes.kind, "layers": layers, "reads": reads.words}

    def compare(self, engine: Engine, asked: CompareBody) -> dict[str, Any]:
        """What ``scope compare --json`` says, and the activations over the tokens of both texts.

        Raises:
            ScopeError: there is no SAE, it does not fit, the engine does not read, or a text is too long.
        """
        with self._lock:
            return self._compared(self._opened(engine.reads.model), engine, asked)

    def _compared(self, saes: SaeLayers, engine: Engine, asked: CompareBody) -> dict[str, Any]:
        with engine.reading() as reader:
            texts = {
                name: reader.text(text, saes.layers, name="text 0", chat=asked.chat)
                for name, text in (("A", asked.a), ("B", asked.b))
            }
        found = compare(
            [texts["A"]], [texts["B"]], saes, paired=False, at=Pool(asked.at), top=asked.top
        )
        columns = {"a": found.activations_a[0], "b": found.activations_b[0]}
        return {
            **comparison_data(found),
            "tokens": {name.lower(): list(text.pieces) for name, text in texts.items()},
            "activations": {
                name: [[float(f"{z:.{DIGITS}g}") for z in column] for column in values.T.tolist()]
                for name, values in columns.items()
            },
        }

    def _opened(self, model: Path) -> SaeLayers:
        if self._spec is None:
            raise UsageError("no SAE was given", hint="Start with --sae PATH[:LAYERS]")
        if self._saes is None:
            saes = SaeLayers.open(self._spec)
            saes.check_fits(check_model(model))
            self._saes = saes
        return self._saes
