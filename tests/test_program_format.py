"""The program blob against the C header: the layouts by compiling it, the contents by reading them back."""

from __future__ import annotations

import hashlib
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from scope_runtime import program as p

INCLUDE = Path(p.__file__).parent / "native" / "include"
STRUCTS = {
    "scope_rule": p.RULE,
    "scope_point": p.POINT,
    "scope_feature": p.FEATURE,
    "scope_encoder": p.ENCODER,
    "scope_trigger": p.TRIGGER,
    "scope_delta_op": p.DELTA,
}


@pytest.fixture(scope="module")
def c_layout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """sizeof and offsetof of every struct and field, from a C compiler."""
    lines = []
    for struct, dtype in STRUCTS.items():
        lines.append(f'printf("{struct} %zu\\n", sizeof({struct}));')
        lines += [
            f'printf("{struct}.{name} %zu\\n", offsetof({struct}, {name}));' for name in dtype.names
        ]
    lines.append('printf("scope_program_header %zu\\n", sizeof(scope_program_header));')
    for name in ("digest", "n_embd", "on_excess", "dose_max", "off_rules", "off_encoders"):
        lines.append(
            f'printf("scope_program_header.{name} %zu\\n", offsetof(scope_program_header, {name}));'
        )
    source = tmp_path_factory.mktemp("layout") / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <scope_program.h>\n"
        f"int main(void) {{ {' '.join(lines)} return 0; }}\n"
    )
    binary = source.with_suffix("")
    subprocess.run(["cc", f"-I{INCLUDE}", str(source), "-o", str(binary)], check=True)
    out = subprocess.run([str(binary)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in out.splitlines())}


@pytest.mark.parametrize("struct", STRUCTS)
def test_tables_have_the_headers_layout(struct: str, c_layout: dict[str, int]) -> None:
    dtype = STRUCTS[struct]
    assert dtype.itemsize == c_layout[struct]
    for name in dtype.names:
        assert dtype.fields[name][1] == c_layout[f"{struct}.{name}"], name


def test_the_header_has_the_headers_layout(c_layout: dict[str, int]) -> None:
    assert p.HEADER.size == c_layout["scope_program_header"]
    blob = p.serialise(p.Layout(n_embd=7, n_layer=3, on_excess=2, dose_max=0.5))

    def u32(field: str) -> int:
        at = c_layout[f"scope_program_header.{field}"]
        return int.from_bytes(blob[at : at + 4], "little")

    assert (u32("n_embd"), u32("on_excess")) == (7, 2)
    at = c_layout["scope_program_header.dose_max"]
    assert np.frombuffer(blob[at : at + 4], "<f4")[0] == np.float32(0.5)
    assert u32("off_rules") == p.HEADER.size


def layout() -> p.Layout:
    out = p.Layout(n_embd=4, n_layer=2)
    row = np.arange(4, dtype=np.float32)
    out.rules.append({"op": 0, "condition": p.NONE, "switch_on": p.NONE, "alert": p.NONE})
    out.points.append({"layer": 1, "n_deltas": 1})
    out.deltas.append({"kind": p.DELTA_ADD, "feature": p.NONE, "rank": 1, "off_row": out.row(row)})
    return out


def test_rows_are_stored_once_and_aligned() -> None:
    out = layout()
    again = out.row(np.arange(4, dtype=np.float64))
    assert again == 0
    assert len(out.rows) == 1
    blob = p.serialise(out)
    starts = p.HEADER.unpack(blob[: p.HEADER.size])[-7:]
    delta = np.frombuffer(blob, p.DELTA, 1, starts[5])[0]
    assert delta["off_row"] % 64 == 0
    assert np.frombuffer(blob, "<f4", 4, int(delta["off_row"])).tolist() == [0, 1, 2, 3]


def test_checksum_and_digest_cover_the_body() -> None:
    blob = p.serialise(layout())
    fields = p.HEADER.unpack(blob[: p.HEADER.size])
    assert fields[3] == len(blob)
    assert fields[4] == zlib.crc32(blob[p.HEADER.size :])
    blank = bytearray(blob)
    blank[24:64] = bytes(40)
    assert fields[5] == hashlib.sha256(blank).digest()


def test_the_same_layout_gives_the_same_bytes() -> None:
    assert p.serialise(layout()) == p.serialise(layout())
