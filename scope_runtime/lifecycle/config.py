"""``scope.yaml``: how one process runs a model under policies. Read and checked as a policy is, by its own schema."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope_runtime.alerts.options import AlertError, AlertOptions, alert_options
from scope_runtime.audit.options import DAY_S, AuditOptions, OnFailure
from scope_runtime.bundle.places import is_server
from scope_runtime.errors import Location, PolicyError, PolicyErrors, ScopeError
from scope_runtime.lifecycle.address import Address
from scope_runtime.lifecycle.types import BundleOptions, Options
from scope_runtime.policy.schema import schema, schema_findings
from scope_runtime.policy.yaml12 import (
    MAX_FILE_BYTES,
    Document,
    KeyPath,
    Mark,
    decode,
    key_text,
    parse,
)
from scope_runtime.telemetry.options import TelemetryOptions
from scope_runtime.types import Pooling

SCHEMA_PATH = Path(__file__).with_name("runtime.schema.json")
FILE_NAME = "scope.yaml"


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """``spec.drift``: live traffic against a baseline; see docs/drift.md. None: not said."""

    baseline: Path
    requests: int | None
    hours: float | None
    looks: int | None
    min_requests: int | None
    false_alarm_rate: float | None
    psi: float | None


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """A ``scope.yaml``, paths made relative to where it lies. None: not said."""

    file: Path
    model: Path
    n_ctx: int | None
    n_parallel: int
    n_threads: int | None
    n_gpu_layers: int
    embeddings: Pooling | None
    policy: Path | BundleOptions
    policy_root: Path | None
    state: Path | None
    control: Path | None
    audit: AuditOptions | None
    metrics: Address | None
    telemetry: TelemetryOptions | None
    alerts: AlertOptions
    options: Options
    drift: DriftConfig | None
    tree: Any
    marks: Mapping[KeyPath, Mark]

    def where(self, key: str) -> Location:
        """Where the value of a key stands; the file where it was not said."""
        mark = self.marks.get(tuple(key.split(".")))
        return mark.value if mark else Location(str(self.file))

    def changed_for_restart(self, other: RuntimeConfig) -> tuple[str, ...]:
        """Keys that differ and that a running process cannot take up."""
        return tuple(
            key
            for key, how in changes()
            if how == "restart" and _at(self.tree, key) != _at(other.tree, key)
        )


def changes() -> tuple[tuple[str, str], ...]:
    """Every key with what a change of it needs: ``reload`` or ``restart``."""
    whole = schema(SCHEMA_PATH)["properties"]["spec"]
    return tuple((key, node["x-change"]) for key, node in _nodes(whole, "spec"))


def _nodes(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, inner in node.get("properties", {}).items():
        if "x-change" in inner:
            yield f"{path}.{key}", inner
        yield from _nodes(inner, f"{path}.{key}")


def load_config(path: str | os.PathLike[str]) -> RuntimeConfig:
    """Reads and checks a configuration.

    Raises:
        PolicyErrors: everything that is wrong with it, in file order.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        unreadable = PolicyError(
            "the configuration cannot be read",
            location=Location(str(file)),
            found=error.strerror or str(error),
        )
        raise PolicyErrors((unreadable,)) from None
    document = parse(decode(data, str(file)), str(file))
    errors: list[ScopeError] = [error for _, error in document.errors]
    errors += [f.error for f in schema_findings(document, SCHEMA_PATH)]
    if errors:
        raise PolicyErrors(tuple(sorted(errors, key=_place)))
    return _config(file, document)


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a configuration; ``value`` is its default where ``said`` is false.

    Attributes:
        change: what a change of it needs: ``reload`` or ``restart``.
        meaning: what the schema says of it.
    """

    key: str
    value: object
    said: bool
    change: str
    meaning: str


def settings(config: RuntimeConfig) -> tuple[Setting, ...]:
    """Every key that a configuration can have, in the schema's order."""
    return tuple(
        Setting(
            key,
            node.get("default") if (said := _at(config.tree, key)) is None else said,
            said is not None,
            node["x-change"],
            node["description"],
        )
        for key, node in _nodes(schema(SCHEMA_PATH)["properties"]["spec"], "spec")
    )


def _place(error: ScopeError) -> tuple[int, int]:
    where = error.location
    return (where.line, where.column) if where else (0, 0)


def _config(file: Path, document: Document) -> RuntimeConfig:
    spec = document.tree["spec"]
    model, policy = spec["model"], spec["policy"]

    def beside(name: str | None) -> Path | None:
        return None if name is None else file.parent / name

    standard = Options()
    return RuntimeConfig(
        file=file,
        model=file.parent / model["path"],
        n_ctx=model.get("ctx"),
        n_parallel=model.get("parallel", 1),
        n_threads=model.get("threads"),
        n_gpu_layers=model.get("gpu_layers", 0),
        embeddings=Pooling(model["embeddings"]) if "embeddings" in model else None,
        policy=_bundles(file, policy["bundle"])
        if "bundle" in policy
        else file.parent / policy["path"],
        policy_root=beside(policy.get("root")),
        state=beside(policy.get("state")),
        control=beside(spec.get("control", {}).get("socket")),
        metrics=Address.parse(spec["metrics"]["listen"]) if "metrics" in spec else None,
        telemetry=_telemetry(spec.get("opentelemetry"), beside),
        audit=_audit(spec.get("audit"), beside),
        alerts=_alerts(file, document),
        options=Options(
            poll_s=float(policy.get("poll_s", standard.poll_s)),
            debounce_ms=float(policy.get("debounce_ms", standard.debounce_ms)),
            compile_nice=policy.get("compile_nice", standard.compile_nice),
            fail=policy.get("fail", standard.fail),
            keep=policy.get("keep", standard.keep),
        ),
        drift=_drift(file, spec.get("drift")),
        tree=document.tree,
        marks=document.marks,
    )


def _audit(
    raw: dict[str, Any] | None, beside: Callable[[str | None], Path | None]
) -> AuditOptions | None:
    if raw is None:
        return None
    path = beside(raw["path"])
    given: dict[str, Any] = {
        name: raw[name]
        for name in ("origin", "rotate_bytes", "compress", "queue_records")
        if name in raw
    }
    if "checkpoint_s" in raw:
        given["checkpoint_s"] = float(raw["checkpoint_s"])
    if "rotate_days" in raw:
        given["rotate_s"] = raw["rotate_days"] * DAY_S
    if "retention_days" in raw:
        kept = raw["retention_days"]
        given["retention_s"] = None if kept == "forever" else kept * DAY_S
    return AuditOptions(
        path or raw["path"],
        OnFailure(raw.get("on_failure", OnFailure.STOP)),
        key=beside(raw.get("key")),
        **given,
    )


def _drift(file: Path, found: dict[str, Any] | None) -> DriftConfig | None:
    if found is None:
        return None
    window = found.get("window", {})
    return DriftConfig(
        baseline=file.parent / found["baseline"],
        requests=window.get("requests"),
        hours=window.get("hours"),
        looks=window.get("looks"),
        min_requests=found.get("min_requests"),
        false_alarm_rate=found.get("false_alarm_rate"),
        psi=found.get("psi"),
    )


def _bundles(file: Path, said: dict[str, Any]) -> BundleOptions:
    standard = BundleOptions("")
    where = said["from"]
    if where.startswith("oci:"):
        where = f"oci:{file.parent / where.removeprefix('oci:')}"
    elif not is_server(where):
        where = str(file.parent / where)
    return BundleOptions(
        where,
        tuple(file.parent / key for key in said.get("keys", ())),
        file.parent / said["ca"] if "ca" in said else None,
        said.get("token_env", standard.token_env),
        float(said.get("poll_s", standard.poll_s)),
        float(said.get("wait_s", standard.wait_s)),
        said.get("stale_after_s", standard.stale_after_s),
    )


def _telemetry(
    raw: dict[str, Any] | None, beside: Callable[[str | None], Path | None]
) -> TelemetryOptions | None:
    if raw is None:
        return None
    headers = raw.get("headers_from", {})
    return TelemetryOptions(
        raw["endpoint"],
        headers_file=beside(headers.get("file")),
        headers_env=headers.get("env"),
        service=raw.get("service", "scope-runtime"),
        interval_s=float(raw.get("interval_s", 60.0)),
    )


def _alerts(file: Path, document: Document) -> AlertOptions:
    try:
        return alert_options(document.tree["spec"].get("alerts", {}), file.parent)
    except AlertError as error:
        path = tuple(int(part) if part.isdigit() else part for part in (error.key or "").split("."))
        mark = document.marks.get(path)
        error.location = mark.value if mark else Location(str(file))
        error.key = key_text(path)
        raise PolicyErrors((error,)) from None


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
