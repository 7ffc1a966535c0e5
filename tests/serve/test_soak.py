"""Behaviours 11 and 27 under load: no failed request, and every answer's spans are those of its record."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.serve.conftest import serving
from tests.serve.soak import furnished, soak


def test_behaviours_11_and_27_hold_while_policies_reload_and_clients_hang_up(
    tmp_path: Path,
) -> None:
    with serving(furnished(tmp_path / "site")) as server:
        seen = asyncio.run(soak(server, 80))
        assert server.stop() == 0
        records = server.records()
    assert seen.failed == []
    assert len(seen.answers) + seen.n_hung_up == 80
    assert seen.n_hung_up > 0
    assert seen.wrong(records) == []
    assert sum(record["what"] == "swapped" for record in records) > 1
