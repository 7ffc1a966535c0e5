"""Alerts over all requests, and whom they concern: docs/alerts.md."""

from scope_runtime.alerts.book import ReceiverCounts
from scope_runtime.alerts.manager import AlertManager
from scope_runtime.alerts.options import AlertError, AlertOptions, Receiver, Secret

__all__ = ["AlertError", "AlertManager", "AlertOptions", "Receiver", "ReceiverCounts", "Secret"]
