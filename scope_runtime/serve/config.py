"""``spec.serve`` of a ``scope.yaml`` as options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scope_runtime.errors import Location, PolicyError, PolicyErrors, UsageError
from scope_runtime.lifecycle.address import Address
from scope_runtime.lifecycle.config import RuntimeConfig
from scope_runtime.serve.options import ServeOptions, admin_place


def serve_options(config: RuntimeConfig) -> ServeOptions:
    """The section, paths made relative to where the file lies; what is not said is the default.

    Raises:
        PolicyErrors: ``admin`` is no place to listen at.
    """
    section: dict[str, Any] = dict(config.tree["spec"].get("serve", {}))
    beside = config.file.parent
    if "listen" in section:
        section["listen"] = Address.parse(section["listen"])
    if "admin" in section:
        section["admin"] = _admin(section["admin"], config, beside)
    if "keys" in section:
        section["keys"] = beside / section["keys"]
    if "sae" in section:
        section["sae"] = str(beside / section["sae"])
    if "labels" in section:
        section["labels"] = tuple(section["labels"])
    return ServeOptions(**section)


def _admin(text: str, config: RuntimeConfig, beside: Path) -> Address | Path:
    try:
        return admin_place(text, beside)
    except UsageError as error:
        mark = config.marks.get(("spec", "serve", "admin"))
        where = mark.value if mark is not None else Location(str(config.file))
        raise PolicyErrors(
            (
                PolicyError(
                    error.message,
                    location=where,
                    key="spec.serve.admin",
                    found=error.found,
                    expected="HOST:PORT, :PORT or unix:PATH",
                ),
            )
        ) from None
