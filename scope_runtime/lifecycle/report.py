"""What a lifecycle has to say, as data for the control channel."""

from __future__ import annotations

from typing import Any

from scope_runtime.diff import diff_data, policy_diff
from scope_runtime.lifecycle.follow import Follower
from scope_runtime.lifecycle.manager import Lifecycle
from scope_runtime.lifecycle.types import FeedStatus
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
        "effect": lifecycle.effect,
        "source": str(lifecycle.source.path)
        if lifecycle.feed is None
        else lifecycle.feed.status().where,
        "bundle": None if lifecycle.feed is None else _bundle(lifecycle.feed.status()),
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
        "audit": None if lifecycle.audit is None else lifecycle.audit.status.fields(),
        "kept": [
            {"revision": kept.revision, "time": kept.time, "policies": list(kept.policies)}
            for kept in (lifecycle.state.kept() if lifecycle.state else ())
        ],
    }


def _bundle(status: FeedStatus) -> dict[str, Any]:
    return {
        "digest": status.digest,
        "signed_by": status.signed_by,
        "verified": status.verified,
        "last_good": status.last_good or None,
        "error": None if status.error is None else status.error.fields(),
        "text": None if status.error is None else str(status.error),
        "stale": status.stale,
        "fetches": {"ok": status.ok, "failed": status.failed},
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
    """What a reload would change, policy by policy, and rule by rule as ``scope diff`` says it."""
    before, after = now.revisions, then.revisions
    return {
        "revision": now.revision,
        "planned": then.revision,
        "changes": now.revision != then.revision,
        "added": sorted(set(after) - set(before)),
        "removed": sorted(set(before) - set(after)),
        "changed": sorted(name for name in before if after.get(name, before[name]) != before[name]),
        "diff": diff_data(policy_diff(now, then)),
    }
