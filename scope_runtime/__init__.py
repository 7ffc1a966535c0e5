"""Scope Runtime: policy as code for the inside of a language model."""

from scope_runtime.errors import ScopeError
from scope_runtime.version import __version__

__all__ = ["Generation", "Runtime", "ScopeError", "__version__"]


def __getattr__(name: str) -> object:
    """Runtime loads llama.cpp, so it is imported only when asked for."""
    if name == "Runtime":
        from scope_runtime.runtime import Runtime

        return Runtime
    if name == "Generation":
        from scope_runtime.llama.engine import Generation

        return Generation
    raise AttributeError(f"module 'scope_runtime' has no attribute {name!r}")
