"""What probes and Prometheus ask: ``/health``, ``/ready``, ``/metrics``. They change nothing and tell no secrets."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Header
from fastapi.responses import Response
from prometheus_client import CollectorRegistry

from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.metrics import exposition


def add_probes(app: FastAPI, lifecycle: Lifecycle, registry: CollectorRegistry) -> None:
    """Adds the three routes."""

    @app.get("/health")
    def health() -> dict[str, object]:
        # Alive whatever becomes of policies and log: a restart mends neither.
        return {"status": "alive"} | _audit(lifecycle)

    @app.get("/ready")
    def ready(response: Response) -> dict[str, object]:
        loaded = bool(lifecycle.current.policies) or lifecycle.options.fail == "open"
        stale = lifecycle.feed is not None and lifecycle.feed.status().stale
        serving = lifecycle.audit is None or lifecycle.audit.status.serving
        ready = loaded and serving and not stale
        response.status_code = 200 if ready else 503
        last = lifecycle.last
        said = {
            "ready": ready,
            "stale": stale,
            "revision": lifecycle.revision,
            # What lies at the source is not what runs; `scope status` says why.
            "refused": last is not None and last.error is not None,
            "off": lifecycle.switch is not None,
        }
        return said | _audit(lifecycle)

    @app.get("/metrics")
    def metrics(accept: Annotated[str | None, Header()] = None) -> Response:
        text, content_type = exposition(registry, accept)
        return Response(text, headers={"Content-Type": content_type})


def _audit(lifecycle: Lifecycle) -> dict[str, object]:
    return {"audit": lifecycle.audit.status.probe_fields()} if lifecycle.audit is not None else {}


def probes_app(lifecycle: Lifecycle, registry: CollectorRegistry) -> FastAPI:
    """The three routes and nothing else: what may be served beyond the process's owner."""
    app = FastAPI(title="Scope Runtime", docs_url=None, redoc_url=None, openapi_url=None)
    add_probes(app, lifecycle, registry)
    return app
