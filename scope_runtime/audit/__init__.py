"""Evidence: where events are kept, and how it is shown that they are all there."""

from scope_runtime.audit.log import AuditLog
from scope_runtime.audit.memory import MemoryLog
from scope_runtime.audit.options import AuditOptions, OnFailure

__all__ = ["AuditLog", "AuditOptions", "MemoryLog", "OnFailure"]
