"""One attempt against a real server: what is judged how, what is never sent, never said, never followed."""

from __future__ import annotations

import datetime
import email.utils
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from scope_runtime.alerts.options import AlertError, Held, Receiver, Secret, alert_options
from scope_runtime.alerts.send import MOST_ANSWER_BYTES, Attempt, Verdict, send
from tests.support.webhook import Hook, webhook

NOW = 1_800_000_000.0
BODY = {"version": "4", "status": "firing"}


@pytest.fixture
def hook() -> Iterator[Hook]:
    with webhook() as serving:
        yield serving


def post(hook: Hook, **keys: Any) -> Attempt:
    return send(Receiver("desk", hook.url, **keys), BODY, "id-1", now=NOW)


def test_a_delivery(hook: Hook) -> None:
    assert post(hook) == Attempt(Verdict.DELIVERED, 200, "200 OK")
    (got,) = hook.got
    assert got.body == BODY
    assert got.headers["Content-Type"] == "application/json"
    assert got.headers["Idempotency-Key"] == "id-1"
    assert "Authorization" not in got.headers


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (204, Verdict.DELIVERED),
        (400, Verdict.REFUSED),
        (401, Verdict.REFUSED),
        (404, Verdict.REFUSED),
        (410, Verdict.REFUSED),
        (429, Verdict.RETRY),
        (500, Verdict.RETRY),
        (503, Verdict.RETRY),
        (599, Verdict.RETRY),
    ],
)
def test_what_an_answer_means(hook: Hook, status: int, verdict: Verdict) -> None:
    hook.status, hook.answer = status, b""
    found = post(hook)
    assert (found.verdict, found.status) == (verdict, status)


def test_a_redirect_is_not_followed(hook: Hook) -> None:
    with webhook() as elsewhere:
        for status in (301, 302, 303, 307, 308):
            hook.status, hook.answer_headers = status, {"Location": elsewhere.url}
            found = post(hook)
            assert found.verdict is Verdict.REFUSED
            assert found.words.endswith("redirects are not followed")
        assert elsewhere.got == []


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("130", 130.0),
        ("0", 0.0),
        (email.utils.formatdate(NOW + 60, usegmt=True), 60.0),
        (email.utils.formatdate(NOW - 60, usegmt=True), 0.0),
        ("soon", None),
        ("-5", None),
        ("²", None),
    ],
)
def test_retry_after(hook: Hook, value: str, seconds: float | None) -> None:
    if not value.isascii():
        value = value.encode().decode("latin-1")
    hook.status, hook.answer_headers = 503, {"Retry-After": value}
    assert post(hook).retry_after_s == seconds


def test_what_a_receiver_says_is_told_in_part(hook: Hook) -> None:
    hook.status, hook.answer_headers = 400, {"Content-Type": "text/plain"}
    hook.answer = b"no such\x1b[31m channel " + b"x" * 1000
    words = post(hook).words
    assert words.startswith("400 Bad Request: no such [31m channel xxx")
    assert len(words) < 250


def test_an_answer_without_end_is_not_read_to_its_end(hook: Hook) -> None:
    """A gigabyte is promised; a few kilobytes come. Whoever read on would wait for the rest and time out."""
    hook.answer_headers = {"Content-Length": str(1 << 30)}
    hook.answer = b"x" * (MOST_ANSWER_BYTES + 4096)
    assert post(hook, timeout_s=30.0).verdict is Verdict.DELIVERED


def test_nobody_there_is_tried_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/secret-path"
        found = send(Receiver("desk", address), BODY, "id", now=NOW)
    assert (found.verdict, found.status) == (Verdict.RETRY, None)
    assert "refused" in found.words
    assert "secret-path" not in found.words


def test_a_receiver_that_never_answers_is_tried_again() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        found = send(Receiver("desk", address, timeout_s=0.2), BODY, "id", now=NOW)
    assert (found.verdict, found.words.split(":")[0]) == (Verdict.RETRY, "ReadTimeout")


# -- secrets


def test_a_secret_is_a_bearer_token_and_read_at_each_use(hook: Hook, tmp_path: Path) -> None:
    file = tmp_path / "token"
    for token in ("first", "second"):
        file.write_text(f"{token}\n")
        post(hook, secret=Secret(file=file))
    sent = [got.headers["Authorization"] for got in hook.got]
    assert sent == ["Bearer first", "Bearer second"]


def test_a_secret_with_a_user_is_basic(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of RFC 7617, section 2."""
    monkeypatch.setenv("SCOPE_TEST_SECRET", "open sesame")
    post(hook, secret=Secret(env="SCOPE_TEST_SECRET", user="Aladdin"))
    assert hook.got[0].headers["Authorization"] == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


def test_a_secret_that_is_gone_is_waited_for(hook: Hook, tmp_path: Path) -> None:
    found = post(hook, secret=Secret(file=tmp_path / "gone"))
    assert found.verdict is Verdict.RETRY
    assert "no such file" in found.words
    assert hook.got == []


@pytest.mark.parametrize("content", ["", "\n", "a\x00b", "a\nInjected: yes", "ü"])
def test_what_is_no_secret_is_not_sent(hook: Hook, tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    found = post(hook, secret=Secret(file=file))
    assert found.verdict is Verdict.RETRY
    assert "not a receiver's secret" in found.words
    assert "Injected" not in found.words
    assert hook.got == []


def test_a_receiver_that_echoes_the_secret_does_not_get_it_on_record(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOPE_TEST_SECRET", "hunter2-hunter2")
    hook.status, hook.answer_headers = 403, {"Content-Type": "text/plain"}
    hook.answer = b"bad token hunter2-hunter2"
    secret = Secret(env="SCOPE_TEST_SECRET")
    found = post(hook, secret=secret)
    assert found.words == "403 Forbidden: bad token …"
    assert "hunter2" not in repr((secret, found))


def test_an_address_may_be_a_secret_and_is_not_shown() -> None:
    assert repr(Receiver("desk", "https://example.com/T0/B0/key")) == "Receiver('desk')"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://example.com/", "not an address of a receiver"),
        ("file:///etc/passwd", "not an address of a receiver"),
        ("https:///path", "not an address of a receiver"),
        ("https://user:hunter2@example.com/", "a secret in the address"),
        ("http://[::1", "not an address"),
        ("https://example.com:99999/", "not an address"),
    ],
)
def test_addresses_that_are_none(url: str, said: str) -> None:
    with pytest.raises(AlertError, match=said) as refused:
        Receiver("desk", url)
    assert "hunter2" not in str(refused.value)


def test_a_secret_goes_over_plain_http_to_the_loopback_alone() -> None:
    secret = Secret(env="X")
    with pytest.raises(AlertError, match="not sent over plain HTTP"):
        Receiver("desk", "http://example.com/", secret)
    Receiver("desk", "http://127.0.0.1:1/", secret)
    Receiver("desk", "https://example.com/", secret)


def test_an_address_in_a_file_is_read_at_each_use_and_never_said(tmp_path: Path) -> None:
    file = tmp_path / "address"
    receiver = Receiver("desk", Held(file=file))
    with webhook() as first, webhook() as second:
        for hook in (first, second):
            file.write_text(f"{hook.url}\n")
            assert send(receiver, BODY, "id", now=NOW).verdict is Verdict.DELIVERED
            assert len(hook.got) == 1
        second.status, second.answer_headers = 404, {"Content-Type": "text/plain"}
        path = second.url.rpartition("/")[2]
        second.answer = f"nothing at /{path}".encode()
        found = send(receiver, BODY, "id", now=NOW)
    assert path
    assert found.words == "404 Not Found: nothing at /…"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ("", "not a receiver's address"),
        ("xoxb-hunter2:1", "not an address of a receiver"),
        ("https://user:hunter2@example.com/", "a secret in the address"),
    ],
)
def test_what_is_no_address_is_waited_for(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "address").write_text(content)
    receiver = Receiver("desk", Held(file=tmp_path / "address"))
    found = send(receiver, BODY, "id", now=NOW)
    assert (found.verdict, found.status) == (Verdict.RETRY, None)
    assert said in found.words
    assert "hunter2" not in found.words
    with pytest.raises(AlertError, match=said):
        receiver.check()


def test_a_secret_goes_to_no_plain_address_out_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCOPE_TEST_ADDRESS", "http://example.com/hunter2")
    monkeypatch.setenv("SCOPE_TEST_SECRET", "swordfish")
    receiver = Receiver("desk", Held(env="SCOPE_TEST_ADDRESS"), Secret(env="SCOPE_TEST_SECRET"))
    found = send(receiver, BODY, "id", now=NOW)
    assert found.verdict is Verdict.RETRY
    assert "not sent over plain HTTP" in found.words
    assert "example.com" not in found.words


# -- TLS


def certificate(folder: Path) -> Path:
    """Of a server on the loopback that no authority vouches for, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a receiver")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_a_server_must_prove_who_it_is(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with webhook(context) as hook:
        found = post(hook)
        assert found.verdict is Verdict.RETRY
        assert "certificate verify failed" in found.words
        assert hook.got == []
        assert post(hook, ca_file=pem).verdict is Verdict.DELIVERED
        missing = post(hook, ca_file=tmp_path / "missing.pem")
        assert missing.verdict is Verdict.RETRY
        assert "no certificates there" in missing.words


# -- out of scope.yaml


def test_options_out_of_a_section(tmp_path: Path) -> None:
    options = alert_options(
        {
            "state": "a.json",
            "for_s": 5,
            "group_by": ["policy", "alertname"],
            "receivers": [
                {"name": "a", "url": "https://a.example", "secret": {"file": "t"}, "timeout_s": 3},
                {"name": "b", "url": "https://b.example", "severities": ["critical"]},
                {"name": "c", "url_file": "u"},
                {"name": "d", "url_env": "WHERE"},
            ],
        },
        tmp_path,
    )
    assert options.state == tmp_path / "a.json"
    assert (options.for_s, options.group_by) == (5.0, ("policy", "alertname"))
    first, second, third, fourth = options.receivers
    assert (third.url, fourth.url) == (Held(file=tmp_path / "u"), Held(env="WHERE"))
    assert first.secret == Secret(file=tmp_path / "t")
    assert second.severities == {"critical"}
    assert alert_options({}, tmp_path).receivers == ()
