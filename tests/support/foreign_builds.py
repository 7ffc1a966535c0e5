"""Builds of llama-server in which a call does not pass through a preloaded library, as in LTO or ``-Bsymbolic`` ones.

The name by which the libraries find a function is changed in all of them, to another one of the same hash: they go on
finding it, and whoever interposes it by its own name does not.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.stock_server import server_path

BATCHES = b"_ZN16llm_graph_result10set_inputsEPK12llama_ubatch"
CALLBACK = b"ggml_backend_sched_set_eval_callback"
MEMORY = b"llama_memory_seq_rm"


def foreign_build(folder: Path, name: bytes) -> Path:
    """A copy of the stock server in which nobody can interpose this; returns the program."""
    made = shutil.copytree(server_path().parent, folder, symlinks=True)
    known, other = (b"\0" + each + b"\0" for each in (name, _same_hash(name)))
    for file in made.iterdir():
        if not file.is_symlink() and known in (data := file.read_bytes()):
            file.write_bytes(data.replace(known, other))
    return made / "llama-server"


def _same_hash(name: bytes) -> bytes:
    """Another name: the hash of DT_GNU_HASH is ``h * 33 + c`` for one byte after the other."""
    return name[:-2] + bytes((name[-2] + 1, name[-1] - 33))
