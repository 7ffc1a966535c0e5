"""Alerts over all requests, and whom they concern: docs/alerts.md. The sink itself is ``manager.AlertManager``."""

from scope_runtime.alerts.options import AlertError, AlertOptions, Receiver, Secret

__all__ = ["AlertError", "AlertOptions", "Receiver", "Secret"]
