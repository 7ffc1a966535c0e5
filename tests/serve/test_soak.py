"""Behaviours 11, 12 and 27 under load: no failed request, and every answer is what its record says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.serve.conftest import serving
from tests.serve.soak import Seen, faults, furnished, soak


def test_behaviours_11_12_and_27_hold_while_policies_reload_and_clients_hang_up(
    tmp_path: Path,
) -> None:
    with serving(furnished(tmp_path / "site")) as server:
        seen = asyncio.run(soak(server, 80))
        assert server.stop() == 0
        records = server.records()
    assert seen.failed == []
    assert len(seen.answers) + seen.n_hung_up == 80
    assert seen.n_hung_up > 0
    assert not faults(seen, records).any, faults(seen, records)
    assert sum(record["what"] == "swapped" for record in records) > 1
    # Each of the two tenants with and without the team's policy, at least.
    assert len({str(r["left_out"]) for r in records if r["what"] == "summary"}) >= 4


def test_the_soak_sees_what_must_not_be() -> None:
    def summary(name: str, n_reused: int, *spans: tuple[str, int], **more: Any) -> dict[str, Any]:
        revisions = [{"revision": revision, "from_position": at} for revision, at in spans]
        about = {"what": "summary", "request_id": name, "sequence": 0, "n_reused": n_reused}
        return {**about, "revisions": revisions, **more}

    records = [
        {"what": "swapped", "revision": "one"},
        {"what": "swapped", "revision": "two"},
        summary("a", 0, ("one", 0), ("two", 5)),
        summary("b", 5, ("one", 0), ("two", 5)),
        summary("c", 6, ("one", 0)),
        summary("d", 3, ("one", 0), left_out={"p/r": "selector"}),
        summary("e", 0, ("one", 0), ("two", 0)),
        summary("f", 0, ("three", 0)),
        summary("g", 0, ("one", 0)),
        summary("g", 0, ("one", 0)),
    ]
    one = {"revisions": [{"revision": "one", "from_position": 0}]}
    seen = Seen(answers={"c": one, "a": one, "g": one}, n_reused={"c": 6, "a": 0, "g": 0})
    found = faults(seen, records)
    assert found.foreign == ["c", "d"]
    assert found.overlapping == ["e"]
    assert found.unknown == ["f"]
    assert found.untrue == ["a", "g"]
