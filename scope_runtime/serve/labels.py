"""Labels of a request: its key's, and those that it may bring in a header."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from scope_runtime.serve.errors import ApiError

MAX_HEADER_CHARS = 4096
_PAIR = re.compile(r"([A-Za-z0-9._/-]{1,63})=([^,=\x00-\x1f\x7f]{1,255})")


def labels_of(
    mine: Mapping[str, str], header: str | None, allowed: Sequence[str], name: str
) -> dict[str, str]:
    """The key's labels with those of a header like ``team=search,env=prod``.

    Args:
        mine: the key's; a request cannot change them.
        allowed: names that the header may set.
        name: the header's, for errors.

    Raises:
        ApiError: 400 for what is no list of pairs, 403 for a label that the request may not set.
    """
    out = dict(mine)
    for pair in _pairs(header, name):
        key, value = pair
        if mine.get(key, value) != value:
            raise ApiError(
                403, f"The label {key} is set by your API key.", code="label_is_set", param=name
            )
        if key not in allowed and key not in mine:
            raise ApiError(
                403,
                f"The label {key} cannot be set by a request; this server takes "
                f"{', '.join(allowed) or 'none'}.",
                code="label_not_allowed",
                param=name,
            )
        out[key] = value
    return out


def _pairs(header: str | None, name: str) -> list[tuple[str, str]]:
    if header is None or not header.strip():
        return []
    out: dict[str, str] = {}
    for part in header.split(",") if len(header) <= MAX_HEADER_CHARS else [""]:
        match = _PAIR.fullmatch(part.strip())
        if match is None or match[1] in out:
            raise ApiError(
                400,
                f"The header {name} is not a list of labels like team=search,env=prod.",
                code="invalid_labels",
                param=name,
            )
        out[match[1]] = match[2]
    return list(out.items())
