"""A server of bundles, over HTTP or HTTPS with an authority of its own."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Server(ThreadingHTTPServer):
    """Holds one bundle under /fleet.bundle, with ETags; holds an answer back until there is a new one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http"
        self.held = b""
        self.changed = threading.Condition()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.waiting = threading.Event()
        self.answer_with: tuple[int, dict[str, str], bytes] | None = None

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/fleet.bundle"

    def hold(self, data: bytes) -> None:
        with self.changed:
            self.held = data
            self.changed.notify_all()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _etag(self) -> str:
        return f'"{hashlib.sha256(self.server.held).hexdigest()[:8]}"'

    def do_GET(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.requests.append(("GET", headers))
        if self.server.answer_with is not None:
            return self._send(*self.server.answer_with)
        with self.server.changed:
            if headers.get("if-none-match") == self._etag() and "prefer" in headers:
                self.server.waiting.set()
                self.server.changed.wait_for(
                    lambda: headers["if-none-match"] != self._etag(), timeout=60
                )
        if headers.get("if-none-match") == self._etag():
            return self._send(304, {"ETag": self._etag()}, b"")
        return self._send(200, {"ETag": self._etag()}, self.server.held)

    def do_PUT(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.requests.append(("PUT", headers))
        data = self._body(headers)
        if headers.get("authorization") != "Bearer secret":
            return self._send(401, {}, b"")
        self.server.hold(data)
        return self._send(201, {}, b"")

    def _body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return self.rfile.read(int(headers["content-length"]))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(folder: Path | None = None) -> Iterator[Server]:
    """Runs a server; with a folder over HTTPS, by the authority that is then in ``folder/ca.pem``."""
    with Server() as running:
        if folder is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates(folder))
            running.socket = context.wrap_socket(running.socket, server_side=True)
            running.scheme = "https"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


def certificates(folder: Path) -> Path:
    """Makes an authority (``ca.pem``) and a certificate for 127.0.0.1 with its key; returns the latter's file."""
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)

    def signed(name: x509.Name, key: ec.EllipticCurvePublicKey, extra: list[Any]) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension, critical in extra:
            builder = builder.add_extension(extension, critical=critical)
        made = builder.sign(authority, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM)

    identifier = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    of_authority = [(x509.BasicConstraints(True, 0), True), (usage, True), (identifier, False)]
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    (folder / "ca.pem").write_bytes(signed(issuer, authority.public_key(), of_authority))
    chain = folder / "server.pem"
    chain.write_bytes(
        server.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed(subject, server.public_key(), [(address, False), (issued_by, False)])
    )
    return chain
