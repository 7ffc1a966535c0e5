"""The console's own routes, beside the control channel's: thin covers of what commands do too.

GET  /-/audit /-/audit/verify      records of the log (scope audit query), and whether it is whole (verify)
GET  /-/rules                      every rule that is loaded, layer by layer (scope diff, from no policy)
GET  /-/traffic                    what rules did in the latest requests
"""

from __future__ import annotations

from collections import deque
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from scope_runtime.audit.query import make_query
from scope_runtime.audit.read import read
from scope_runtime.audit.segments import LogFiles
from scope_runtime.audit.verify import verify
from scope_runtime.console.traffic import traffic
from scope_runtime.diff import diff_data, policy_diff
from scope_runtime.errors import UsageError
from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.serve.errors import ApiError

MOST_RECORDS = 1000


def add_console(app: FastAPI, lifecycle: Lifecycle) -> None:
    """Adds the routes to the control channel's."""

    @app.exception_handler(ApiError)
    def refused(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.get("/-/rules")
    def rules() -> dict[str, Any]:
        return diff_data(policy_diff(lifecycle.nothing, lifecycle.current))

    @app.get("/-/traffic")
    def recent_traffic() -> dict[str, Any]:
        return traffic(lifecycle.events())

    @app.get("/-/audit")
    def audit(
        since: str | None = None,
        until: str | None = None,
        request: str | None = None,
        rule: str | None = None,
        policy: str | None = None,
        kind: str | None = None,
        last: int = 100,
    ) -> dict[str, Any]:
        files = log_files(lifecycle)
        asked = (since, until, request, rule, policy, kind)
        query = make_query(*(each or None for each in asked))
        n_found, kept = 0, deque[dict[str, Any]](maxlen=min(max(last, 1), MOST_RECORDS))
        for record in read(files, query):
            n_found += 1
            kept.append(record)
        return {"path": str(files.path), "n_found": n_found, "records": list(reversed(kept))}

    @app.get("/-/audit/verify")
    def verify_audit() -> dict[str, Any]:
        return verify(log_files(lifecycle)).fields()


def log_files(lifecycle: Lifecycle) -> LogFiles:
    """The files of the process' audit log. Raises UsageError where it keeps none."""
    if lifecycle.audit is None:
        raise UsageError("this process keeps no audit log", hint="Start it with --audit FILE")
    return LogFiles(lifecycle.audit.path)
