"""``scope audit``: every command, as a person calls it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from scope_runtime.audit import AuditLog, AuditOptions
from scope_runtime.audit.proof import Proof
from scope_runtime.audit.query import parse_time
from scope_runtime.audit.read import Query, Tail, read
from scope_runtime.audit.segments import LogFiles
from scope_runtime.cli.audit_read import line_of
from scope_runtime.cli.main import main
from scope_runtime.errors import UsageError
from tests.support.audit_logs import KEY, event, make_log, request


@pytest.fixture
def log(tmp_path: Path) -> LogFiles:
    (tmp_path / "k.pub").write_text(KEY.public.text + "\n")
    return make_log(tmp_path, 20, rotate_bytes=4000)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["audit", *map(str, arguments)])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_verify_says_sound_or_names_the_record(
    log: LogFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    key = log.path.with_name("k.pub")
    code, out, _ = call(capsys, "verify", log.path.parent, "--public-key", key)
    assert code == 0
    assert "sound, 43 records in 3 segments, 43 of 43 signed by example.com/audit" in out
    assert call(capsys, "verify", log.segments()[0], "-k", KEY.public.text)[0] == 0
    code, out, _ = call(capsys, "verify", log.path, "-k", key, "--json")
    assert json.loads(out)["logs"][0]["n_records"] == 43
    first = log.segments()[0]
    first.write_bytes(first.read_bytes().replace(b'"n_fired":3', b'"n_fired":0'))
    code, out, err = call(capsys, "verify", log.path, "-k", key)
    assert (code, out) == (1, "")
    assert err == f"error: {first}:8: record 7 was changed\n"
    code, out, _ = call(capsys, "verify", log.path, "-k", key, "--json")
    assert code == 1
    assert json.loads(out)["logs"][0]["bad"] == {
        "index": 7,
        "file": str(first),
        "line": 8,
        "what": "was changed",
    }


def test_verify_used_wrongly(
    log: LogFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((tmp_path / "none.jsonl",), "no such file or directory"),
        ((tmp_path / "empty",), "no log in the directory"),
        ((log.path, "-k", tmp_path / "none"), "expected a public key or a file of one"),
        ((log.path, "--checkpoint", tmp_path / "none"), "no such file"),
    ):
        code, _, err = call(capsys, "verify", *arguments)
        assert code == 2
        assert words in err
    other = "example.com/audit+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    code, _, err = call(capsys, "verify", log.path, "-k", other)
    assert code == 1
    assert "its id does not fit" in err


def test_a_checkpoint_kept_elsewhere(
    log: LogFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    kept.write_text(log.checkpoint.read_text())
    arguments = ("verify", log.path, "-k", KEY.public.text, "--checkpoint", kept)
    assert call(capsys, *arguments)[0] == 0
    kept.write_text(kept.read_text().replace("\n43\n", "\n44\n"))
    code, _, err = call(capsys, *arguments)
    assert code == 1
    assert err == f"error: {kept}: is not signed by the public key\n"


def test_keygen_and_a_log_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, public = tmp_path / "audit.key", tmp_path / "audit.key.pub"
    code, out, _ = call(capsys, "keygen", key, "--name", "example.com/mine")
    assert code == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().strip() not in out
    log = AuditLog(AuditOptions(tmp_path / "log.jsonl", key=key))
    log.write([event(1)])
    log.close()
    assert call(capsys, "verify", log.path, "-k", public)[0] == 0
    code, _, err = call(capsys, "keygen", key)
    assert (code, err) == (2, f"error: the file exists already; found {key}\n")
    code, _, err = call(capsys, "keygen", tmp_path / "other", "--name", "a b")
    assert code == 2
    assert "a key cannot have this name; found 'a b'" in err


def test_a_proof_of_one_record(
    log: LogFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in (0, 7, 42):
        proof = tmp_path / "r.tlog-proof"
        assert call(capsys, "prove", log.path, index, "--out", proof)[0] == 0
        code, out, _ = call(capsys, "verify", proof, "-k", KEY.public.text)
        assert (code, out) == (0, f"{proof}: record {index} is in example.com/audit\n")
        text = proof.read_text()
        assert text == call(capsys, "prove", log.path, index)[1]
        line = json.loads(Proof.parse(text).line)
        assert line["chain"]["index"] == index
        proof.write_text(text.replace(f"\nindex {index}\n", f"\nindex {index + 1}\n"))
        assert call(capsys, "verify", proof, "-k", KEY.public.text)[0] == 1
        proof.write_text(text.replace("\n43\n", "\n44\n"))
        assert call(capsys, "verify", proof, "-k", KEY.public.text)[0] == 1
    code, _, err = call(capsys, "prove", log.path, 43)
    assert code == 2
    assert "expected an index from 0 to 42" in err
    proof.write_text("c2sp.org/tlog-proof@v1\nnonsense\n")
    assert call(capsys, "verify", proof)[0] == 1


def test_query_by_time_request_rule_and_policy(
    log: LogFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    def n(*arguments: object) -> int:
        code, out, _ = call(capsys, "query", log.path, *arguments)
        assert code == 0
        return len([json.loads(line) for line in out.splitlines()])

    assert n() == 43
    assert n("--kind", "request") == 40
    assert n("--request", "r7") == 2
    assert n("--rule", "mute-drift") == 20
    assert n("--policy", "english-only") == 20
    assert n("--policy", "other") == 0
    since = ("--since", "1970-01-01T00:16:45Z", "--until", "1970-01-01T00:16:50")
    assert n(*since) == 10
    assert n(*since, "--rule", "mute-drift", "--request", "r6") == 1
    code, _, err = call(capsys, "query", log.path, "--kind", "x")
    assert (code, "unknown kind; found x" in err) == (2, True)


def test_a_policy_is_found_by_what_happened_to_it() -> None:
    swapped = {"time": 1, "kind": "policy", "name": "p", "revision": "a", "previous": "b"}
    asked = {"time": 1, "revisions": [{"revision": "c", "from_position": 0}]}
    for name in "pab":
        assert Query(policy=name).takes(swapped)
        assert not Query(policy=name).takes(asked)
    assert Query(policy="c").takes(asked)


def test_show_and_tail(log: LogFiles, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "show", log.path, "--request", "r7")
    assert code == 0
    assert out.splitlines() == [
        "    15  1970-01-01 00:16:47.000  request/rule  request_id=r7  policy=english-only  "
        "rule=mute-drift  mode=enforce  n_fired=7  dose=0.7",
        "    16  1970-01-01 00:16:47.000  request/summary  request_id=r7  n_tokens=70  "
        "finish_reason=stop",
    ]
    code, out, _ = call(capsys, "show", log.path, 16)
    assert json.loads(out)["request_id"] == "r7"
    code, out, _ = call(capsys, "tail", log.path, "-n", 3)
    assert [line.split()[0] for line in out.splitlines()] == ["40", "41", "42"]
    code, _, err = call(capsys, "show", log.path, 99)
    assert (code, "there is no record 99" in err) == (2, True)


def test_what_a_record_says_does_not_reach_the_terminal_as_control() -> None:
    assert "\x1b" not in line_of({"time": 0, "request_id": "\x1b[2J"})


def test_tail_follows_over_rotations(tmp_path: Path) -> None:
    log = AuditLog(AuditOptions(tmp_path / "log.jsonl", rotate_bytes=2000))
    log.write(request(0))
    tail, seen = Tail(LogFiles(log.path)), []
    for n in range(1, 30):
        log.write(request(n))
        seen += [r["request_id"] for r in tail.new() if r["what"] == "summary"]
    log.close()
    tail.close()
    assert seen == [f"r{n}" for n in range(1, 30)]
    assert len(LogFiles(log.path).closed()) > 3


def test_tail_follow_prints_what_comes(log: LogFiles) -> None:
    scope = Path(sys.executable).with_name("scope")
    with subprocess.Popen(
        [scope, "audit", "tail", log.path, "-n", "1", "--follow"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split()[0] == "42"
        make_log(log.path.parent, 1)
        assert [process.stdout.readline().split()[0] for _ in range(2)] == ["43", "44"]
        process.terminate()


def test_export(log: LogFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = list(read(log))
    table, lines, parquet = (tmp_path / name for name in ("t.csv", "t.jsonl", "t.parquet"))
    for out in (table, lines, parquet):
        assert call(capsys, "export", log.path, "--out", out)[1] == f"{out}: 43 records\n"
    assert [json.loads(line) for line in lines.read_text().splitlines()] == whole
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [json.loads(each["record"]) for each in rows] == whole
    assert rows[15]["dose_max"] == "0.7000000000000001"
    found = pyarrow.parquet.read_table(parquet).to_pylist()
    assert [json.loads(each["record"]) for each in found] == whole
    assert found[15]["dose_max"] == pytest.approx(0.7)
    assert (found[15]["index"], found[16]["n_tokens"], found[16]["rule"]) == (15, 70, None)
    assert call(capsys, "export", log.path, "--out", table, "--request", "r7")[0] == 0
    assert len(table.read_text().splitlines()) == 3
    code, _, err = call(capsys, "export", log.path, "--out", tmp_path / "t.xlsx")
    assert (code, "expected .jsonl, .csv or .parquet" in err) == (2, True)


def test_times() -> None:
    now = time.time()
    assert parse_time("90s", now) == now - 90
    assert parse_time("1.5h", now) == now - 5400
    assert parse_time("7d", now) == now - 7 * 86400
    assert parse_time("1970-01-02", now) == 86400
    assert parse_time("1970-01-01T01:00+01:00", now) == 0
    with pytest.raises(UsageError, match="this is no time; found yesterday"):
        parse_time("yesterday", now)
