"""Whether a context has room: in this machine's memory, and within what the model was trained for.

llama.cpp takes the memory of a whole context at once; where there is less, the system ends the process without a word.
"""

from __future__ import annotations

from pathlib import Path

from scope_runtime.errors import UsageError
from scope_runtime.llama.checks import ModelInfo

DEFAULT_CTX = 4096
_GIB = 2**30
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def check_room(info: ModelInfo, n_tokens: int) -> None:
    """Holds the keys and values of so many tokens against the memory that is free.

    Passes where the model's header does not say what they take, or the system not what is free.

    Raises:
        UsageError: there is less.
    """
    free = free_bytes()
    if info.kv_bytes is None or free is None:
        return
    wanted = info.kv_bytes * n_tokens
    if wanted > free:
        raise UsageError(
            "the context does not fit into memory",
            found=f"{n_tokens:,} tokens, for which llama.cpp takes {wanted / _GIB:,.1f} GiB",
            expected=f"at most {free // info.kv_bytes:,}, for the {free / _GIB:,.1f} GiB that are free",
            hint="Ask for less context, or for fewer answers side by side",
        )


def context_tokens(info: ModelInfo, asked: int | None) -> int:
    """Tokens of context: as many as asked for, else what the model was trained with, at most `DEFAULT_CTX`."""
    return asked if asked is not None else min(DEFAULT_CTX, info.n_ctx_train or DEFAULT_CTX)


def beyond_training(info: ModelInfo, n_ctx: int | None) -> str | None:
    """What is to be said of a context that was asked for and is longer than the model was trained with."""
    if info.n_ctx_train is None or n_ctx is None or n_ctx <= info.n_ctx_train:
        return None
    return (
        f"a context of {n_ctx:,} tokens is longer than the {info.n_ctx_train:,} that the model was trained with: "
        "beyond those its answers may be nonsense"
    )


def free_bytes() -> int | None:
    """Memory that this process can still get, of the machine and of its control group; None: not known."""
    known = [n for n in (_of_machine(), _of_group()) if n is not None]
    return min(known) if known else None


def _of_machine() -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def _of_group() -> int | None:
    """What is left below the limit of a container; what its files take in the page cache can be given back."""
    try:
        own = _CGROUP.read_text().splitlines()[-1].partition("::")[2]
        folder = _CGROUPS / own.lstrip("/")
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else max(0, int(limit) - used + int(stat["file"]))
    except (OSError, ValueError, KeyError, IndexError):
        return None
