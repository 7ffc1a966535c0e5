"""A runtime's configuration in words: every key, its value or its default, and what a change of it needs."""

from __future__ import annotations

import json
from typing import Any

from scope_runtime.lifecycle.config import RuntimeConfig, settings


def config_data(config: RuntimeConfig) -> dict[str, Any]:
    """The configuration as JSON-ready data; ``said`` is false where the value is the default."""
    return {
        "file": str(config.file),
        "keys": [
            {
                "key": setting.key,
                "value": setting.value,
                "said": setting.said,
                "change": setting.change,
                "meaning": setting.meaning,
            }
            for setting in settings(config)
        ],
    }


def print_config(config: RuntimeConfig) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.print(f"{config.file}", style="bold", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("key", "value", "", "a change needs"):
        table.add_column(title, overflow="fold")
    for setting in settings(config):
        table.add_row(
            setting.key,
            "" if setting.value is None else _written(setting.value),
            "" if setting.said else "not said" if setting.value is None else "default",
            setting.change,
        )
    console.print(table)
    console.print()


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
