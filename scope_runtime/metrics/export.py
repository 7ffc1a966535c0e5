"""A registry with all that a runtime has to tell, and its text as Prometheus asks for it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder

from scope_runtime.metrics.collect import Reader, Readers
from scope_runtime.metrics.sink import MetricsSink


class Metrics:
    """One runtime's metrics.

    Args:
        registry: where they are registered; a fresh one by default. A registry takes one runtime.

    Attributes:
        sink: what events are to be given to.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.sink = MetricsSink(self.registry)
        self._readers = Readers(self.registry)

    def read(self, reader: Reader) -> None:
        """Asks this reader, too, at each scrape from here on."""
        self._readers.add(reader)

    def close(self) -> None:
        """Stops reading what will be freed; what events counted can still be scraped. Safe to call twice."""
        self._readers.close()


class _Told:
    """A registry without the times at which series were made: one more series each, that nobody asks for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


def exposition(registry: CollectorRegistry, accept: str | None) -> tuple[bytes, str]:
    """The metrics as OpenMetrics where the scraper takes it, else in Prometheus' text format.

    Args:
        accept: the scraper's Accept header.

    Returns:
        The text and its content type.
    """
    encode, content_type = choose_encoder(accept or "")
    return encode(_Told(registry)), content_type
