"""Evidence: where events are kept."""

from scope_runtime.audit.log import JsonlLog, MemoryLog

__all__ = ["JsonlLog", "MemoryLog"]
