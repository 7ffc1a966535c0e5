"""The life of the policies in a running model: follow, reload, keep, switch off, roll back."""

from scope_runtime.lifecycle.hosted import Hosted
from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.lifecycle.source import Source
from scope_runtime.lifecycle.state import State, StateError, Switch
from scope_runtime.lifecycle.types import BundleOptions, Cause, Options, Outcome, StaleRevision

__all__ = [
    "BundleOptions",
    "Cause",
    "Hosted",
    "Lifecycle",
    "Options",
    "Outcome",
    "Source",
    "StaleRevision",
    "State",
    "StateError",
    "Switch",
]
