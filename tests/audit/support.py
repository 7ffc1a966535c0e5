"""What the audit tests take from those of the lifecycle."""

from tests.lifecycle.conftest import Site, until

__all__ = ["Site", "until"]
