"""What a lifecycle has to say: as data for the control channel, as text for Prometheus."""

from __future__ import annotations

from typing import Any

from scope_runtime.lifecycle.follow import Follower
from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.policy.model import Policy
from scope_runtime.select import ProgramSource


def status_data(lifecycle: Lifecycle, follower: Follower) -> dict[str, Any]:
    """What is in force, since when nothing else is, and why not."""
    current, switch, last = lifecycle.current, lifecycle.switch, lifecycle.last
    trouble = follower.trouble
    return {
        "revision": lifecycle.revision,
        "loaded": current.revision,
        "acknowledged": lifecycle.acknowledged,
        "source": str(lifecycle.source.path),
        "policies": [_policy(policy, current) for policy in current.policies],
        "off": None
        if switch is None
        else {"actor": switch.actor, "reason": switch.reason, "time": switch.time},
        "held": lifecycle.held,
        "success": last is None or last.error is None,
        "last_reload": None
        if last is None
        else {
            "time": last.time,
            "trigger": last.trigger,
            "error": None if last.error is None else last.error.fields(),
            "text": None if last.error is None else str(last.error),
        },
        "reloads": {"ok": lifecycle.counts.ok, "refused": lifecycle.counts.refused},
        "hints": follower.hints,
        "trouble": None if trouble is None else str(trouble),
        "kept": [
            {"revision": kept.revision, "time": kept.time, "policies": list(kept.policies)}
            for kept in (lifecycle.state.kept() if lifecycle.state else ())
        ],
    }


def _policy(policy: Policy, source: ProgramSource) -> dict[str, Any]:
    return {
        "name": policy.name,
        "owner": policy.owner,
        "generation": policy.generation,
        "mode": str(policy.mode),
        "revision": source.revisions[policy.name],
        "rules": len(policy.rules),
        "exceptions": len(policy.exceptions),
    }


def plan_data(now: ProgramSource, then: ProgramSource) -> dict[str, Any]:
    """What a reload would change, policy by policy."""
    before, after = now.revisions, then.revisions
    return {
        "revision": now.revision,
        "planned": then.revision,
        "changes": now.revision != then.revision,
        "added": sorted(set(after) - set(before)),
        "removed": sorted(set(before) - set(after)),
        "changed": sorted(name for name in before if after.get(name, before[name]) != before[name]),
    }


def metrics_text(lifecycle: Lifecycle) -> str:
    """The lifecycle's metrics in Prometheus' text format."""
    last, counts = lifecycle.last, lifecycle.counts
    families: list[tuple[str, str, str, list[tuple[str, float]]]] = [
        (
            "scope_policy_reload_success",
            "gauge",
            "Whether the latest attempt to load the policies went well.",
            [("", float(last is None or last.error is None))],
        ),
        (
            "scope_policy_reloads_total",
            "counter",
            "Attempts to load the policies, by result.",
            [('{result="ok"}', counts.ok), ('{result="refused"}', counts.refused)],
        ),
        (
            "scope_policy_last_reload_timestamp_seconds",
            "gauge",
            "When the policies were last tried to load.",
            [("", 0.0 if last is None else last.time)],
        ),
        (
            "scope_steering_off",
            "gauge",
            "Whether all steering is switched off.",
            [("", float(lifecycle.switch is not None))],
        ),
        (
            "scope_policy_held",
            "gauge",
            "Whether an older revision was chosen over what lies at the source.",
            [("", float(lifecycle.held))],
        ),
        (
            "scope_policy_info",
            "gauge",
            "The policies that are loaded.",
            [
                (f'{{policy="{name}",revision="{revision}"}}', 1.0)
                for name, revision in sorted(lifecycle.current.revisions.items())
            ],
        ),
    ]
    lines = []
    for name, kind, words, samples in families:
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{labels} {value:.15g}" for labels, value in samples]
    return "\n".join(lines) + "\n"
