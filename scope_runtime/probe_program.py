"""The program that a hook proves itself with: one row added at each layer, at every token."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scope_runtime.policy.model import Op
from scope_runtime.program import DELTA_ADD, NONE, OPS, FloatArray, Layout, serialise
from scope_runtime.types import ModelShape

_INT32 = np.iinfo(np.int32)


def adding(shape: ModelShape, rows: Mapping[int, FloatArray]) -> bytes:
    """The blob; rows: layer (-1: the embedding) to (n_embd,). Its rules are the layers, ascending."""
    layout = Layout(shape.n_embd, shape.n_layer)
    for number, (layer, row) in enumerate(sorted(rows.items())):
        layout.rules.append(
            {
                "op": OPS[Op.AMPLIFY],
                "pos_from": _INT32.min,
                "pos_to": _INT32.max,
                "condition": NONE,
                "switch_on": NONE,
                "alert": NONE,
            }
        )
        layout.points.append({"layer": layer, "first_delta": number, "n_deltas": 1})
        layout.deltas.append(
            {
                "rule": number,
                "kind": DELTA_ADD,
                "feature": NONE,
                "rank": 1,
                "off_row": layout.row(row),
            }
        )
    return serialise(layout)
