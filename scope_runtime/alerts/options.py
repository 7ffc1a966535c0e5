"""How alerts are kept and who is told: ``spec.alerts`` of ``scope.yaml`` (docs/alerts.md)."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scope_runtime.errors import Location, ScopeError
from scope_runtime.files import open_regular, read_exactly

OWN_LABELS = ("alertname", "policy", "severity")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MOST_SECRET_BYTES = 64 << 10


class AlertError(ScopeError):
    """Alerts that cannot be kept, or a receiver that cannot be told."""


@dataclass(frozen=True, slots=True)
class Held:
    """Where something that nobody else may read is. Read whenever it is used, so that it may be rotated.

    Attributes:
        file, env: a file, or a variable of the environment; one of them.
    """

    file: Path | None = None
    env: str | None = None

    def read(self, what: str) -> str:
        """What is there, without the space around it.

        Args:
            what: what is looked for, for the error.

        Raises:
            AlertError: nothing is there, or nothing that a request may carry.
        """
        found = self._found(what)
        if not found.isascii() or not found.isprintable() or not found:
            raise self.error(f"not {what}", "nothing" if not found else "control characters", what)
        return found

    def _found(self, what: str) -> str:
        if self.env is not None:
            found = os.environ.get(self.env)
            if found is None:
                raise self.error("no such variable in the environment", self.env, what)
            return found.strip()
        if self.file is None:
            raise self.error(f"no place for {what}", "neither a file nor a variable", what)
        with open_regular(self.file, AlertError) as file:
            data = read_exactly(file, 0, _MOST_SECRET_BYTES)
        return data.decode("ascii", errors="replace").strip()

    def error(self, message: str, found: str, expected: str) -> AlertError:
        """An error that names the place and never what is there."""
        where = Location(str(self.file)) if self.file is not None else None
        return AlertError(message, location=where, found=found, expected=expected)


@dataclass(frozen=True, slots=True)
class Secret(Held):
    """What a receiver knows us by.

    Attributes:
        user: for basic authentication; None sends the secret as a bearer token.
    """

    user: str | None = None

    def header(self) -> str:
        """The Authorization header's value.

        Raises:
            AlertError: there is no secret there, or none that a header may carry.
        """
        secret = self.read("a receiver's secret")
        if self.user is None:
            return f"Bearer {secret}"
        return "Basic " + base64.b64encode(f"{self.user}:{secret}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Receiver:
    """Somebody who is told, by HTTP.

    Attributes:
        name: in records, metrics and messages; the address is in none of them, as it may be a secret itself.
        url: where to post; or where the address is, if it is a secret itself.
        secret: sent as ``Authorization``.
        severities, policies: only alerts of these; empty: of all.
        send_resolved: say too when an alert is over.
        timeout_s: for each step of one attempt: to connect, to send, to be answered.
        ca_file: certificates to trust instead of the system's.
        max_alerts: most alerts in one notification; the rest is counted in ``truncatedAlerts``. 0: all.
        max_per_minute: most notifications made in any minute; what changes meanwhile goes into the next.
    """

    name: str
    url: str | Held
    secret: Secret | None = None
    severities: frozenset[str] = frozenset()
    policies: frozenset[str] = frozenset()
    send_resolved: bool = True
    timeout_s: float = 10.0
    ca_file: Path | None = None
    max_alerts: int = 0
    max_per_minute: int = 60

    def __repr__(self) -> str:
        return f"Receiver({self.name!r})"

    def __post_init__(self) -> None:
        """Raises: AlertError."""
        if isinstance(self.url, str):
            self._check(self.url)

    def address(self) -> str:
        """Where to post.

        Raises:
            AlertError: no address is where it should be, or none that may be posted to.
        """
        if isinstance(self.url, str):
            return self.url
        found = self.url.read("a receiver's address")
        self._check(found)
        return found

    def check(self) -> None:
        """Raises: AlertError: the address or the secret is not there."""
        self.address()
        if self.secret is not None:
            self.secret.header()

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise self._error("not an address", "a malformed one") from None
        if parts.scheme not in ("http", "https") or not host:
            # What stands before a colon may be a secret in the wrong file.
            scheme = (
                "its beginning" if isinstance(self.url, Held) else f"the scheme {parts.scheme!r}"
            )
            raise self._error("not an address of a receiver", scheme)
        if parts.username is not None or parts.password is not None:
            raise self._error("a secret in the address", "user and password", "secret: {file: …}")
        if self.secret is not None and parts.scheme == "http" and host not in _LOOPBACK:
            found = "an http:// address" if isinstance(self.url, Held) else host
            raise self._error("a secret is not sent over plain HTTP", found, "https://")

    def wants(self, labels: Mapping[str, str]) -> bool:
        """Whether alerts with these labels concern this receiver."""
        return (not self.severities or labels.get("severity") in self.severities) and (
            not self.policies or labels.get("policy") in self.policies
        )

    def _error(self, message: str, found: str, expected: str = "http:// or https://") -> AlertError:
        return AlertError(f"receiver {self.name}: {message}", found=found, expected=expected)


@dataclass(frozen=True, slots=True)
class AlertOptions:
    """How a process keeps its alerts.

    Attributes:
        window_s: a pause between two firings that is none: a rule counts as firing until it has been quiet so long.
        for_s: an alert is pending until its rule has gone on firing for so long.
        keep_firing_for_s: an alert goes on firing for so long after its rule no longer does.
        request_labels: labels of requests that tell alerts apart; each value is an alert of its own.
        external_labels: labels that every alert gets, such as which instance it is.
        dose_excess: whether the dose limit's acting is an alert too.
        drift: whether drift is.
        max_alerts: from this many on, request labels no longer tell alerts apart.
        group_by: labels whose values decide which alerts share a notification.
        group_wait_s: how long a new group waits for more alerts.
        group_interval_s: how long after a notification changes of its group wait for the next.
        repeat_interval_s: how often a notification is repeated while its alerts fire.
        retry_min_s, retry_max_s: pause after the first failure; it doubles with each up to the latter.
        max_age_s: notifications that could not be delivered for so long go to the dead letters.
        queue: most notifications that wait for one receiver; beyond it the oldest goes to the dead letters.
        external_url: where people find this process: ``externalURL`` of notifications.
        state: file in which all this outlives the process; None forgets it.
        dead_letter: file that takes what cannot be delivered, a line each; None only counts it.
        receivers: who is told.
    """

    window_s: float = 60.0
    for_s: float = 0.0
    keep_firing_for_s: float = 0.0
    request_labels: tuple[str, ...] = ()
    external_labels: Mapping[str, str] = field(default_factory=dict)
    dose_excess: bool = True
    drift: bool = True
    max_alerts: int = 1000
    group_by: tuple[str, ...] = ("policy",)
    group_wait_s: float = 1.0
    group_interval_s: float = 60.0
    repeat_interval_s: float = 4 * 3600.0
    retry_min_s: float = 1.0
    retry_max_s: float = 300.0
    max_age_s: float = 24 * 3600.0
    queue: int = 1000
    external_url: str = ""
    state: Path | None = None
    dead_letter: Path | None = None
    receivers: tuple[Receiver, ...] = ()

    def __post_init__(self) -> None:
        """Raises: AlertError."""
        names = [receiver.name for receiver in self.receivers]
        for name in names:
            if names.count(name) > 1:
                raise AlertError(
                    "two receivers have one name", key="spec.alerts.receivers", found=name
                )
        for key in ("request_labels", "external_labels"):
            for name in getattr(self, key):
                if name in OWN_LABELS:
                    raise AlertError(
                        "a label that every alert has already", key=f"spec.alerts.{key}", found=name
                    )


def alert_options(section: Mapping[str, Any], folder: Path) -> AlertOptions:
    """``spec.alerts`` as the schema lets it pass; paths are relative to the file's folder.

    Raises:
        AlertError: names, labels or addresses that cannot be.
    """

    def path(name: str | None) -> Path | None:
        return None if name is None else folder / name

    given = dict(section)
    for key in ("state", "dead_letter"):
        given[key] = path(given.get(key))
    for key in ("request_labels", "group_by"):
        if key in given:
            given[key] = tuple(given[key])
    given["receivers"] = tuple(
        _receiver(each, folder, f"spec.alerts.receivers.{index}")
        for index, each in enumerate(given.get("receivers", ()))
    )
    return AlertOptions(**{key: _seconds(key, value) for key, value in given.items()})


def _receiver(raw: Mapping[str, Any], folder: Path, key: str) -> Receiver:
    given = dict(raw)
    secret = given.pop("secret", None)
    if secret is not None:
        file = secret.get("file")
        given["secret"] = Secret(
            folder / file if file is not None else None, secret.get("env"), secret.get("user")
        )
    for name in ("url_file", "url_env"):
        if name in given:
            place = given.pop(name)
            given["url"] = Held(file=folder / place) if name == "url_file" else Held(env=place)
    if "ca_file" in given:
        given["ca_file"] = folder / given["ca_file"]
    for name in ("severities", "policies"):
        given[name] = frozenset(given.get(name, ()))
    try:
        return Receiver(**{name: _seconds(name, value) for name, value in given.items()})
    except AlertError as error:
        error.key = f"{key}.url"
        raise


def _seconds(key: str, value: Any) -> Any:
    """Whole seconds are written as integers."""
    return float(value) if key.endswith("_s") else value
