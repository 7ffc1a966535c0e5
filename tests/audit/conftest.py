"""Fixtures that audit tests share with those of the lifecycle."""

from tests.lifecycle.conftest import site

__all__ = ["site"]
