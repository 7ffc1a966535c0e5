"""Where a llama-server lives that a gateway started, so that the next gateway finds it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from scope_runtime.attached.arguments import ServerCommand


def server_folder(state: Path | None, command: ServerCommand) -> Path:
    """In the state directory; without one, in the user's own for running things, one for each model and program."""
    if state is not None:
        return state / "llama-server"
    told = f"{command.program}\0{command.model.absolute()}"
    name = hashlib.sha256(told.encode()).hexdigest()[:16]
    given = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(given) if given else Path(tempfile.gettempdir())
    owner = "" if given else f"-{os.geteuid()}"
    return base / f"scope-runtime{owner}-{name}"
