"""Samples of text: the three forms, and lines that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.texts import Text, read_texts
from scope_runtime.errors import UsageError


def test_plain_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffone\r\n\n  two \u2028 still two\n".encode())
    assert read_texts(path) == (Text("one"), Text("  two \u2028 still two"))


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '"one"\n{"text": "two", "id": 3}\n\n{"messages": [{"role": "user", "content": "three"}]}\n'
    )
    assert read_texts(path) == (
        Text("one"),
        Text("two"),
        Text(messages=({"role": "user", "content": "three"},)),
    )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.txt", b"\n\n", "no text in it"),
        ("t.txt", b"\xff", "no UTF-8"),
        ("t.jsonl", b'"a"\n{', r"t\.jsonl:2: no JSON"),
        ("t.jsonl", b"3", r"t\.jsonl:1: no text"),
        ("t.jsonl", b'{"messages": []}', "no text"),
        ("t.jsonl", b'{"messages": [{"role": "user"}]}', "no text"),
        ("t.jsonl", b"[" * 100_000, "no JSON"),
    ],
)
def test_refusals(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message):
        read_texts(path)
