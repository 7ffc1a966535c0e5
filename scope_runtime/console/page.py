"""The page itself: files without a secret, served without a key, under headers that let nothing else in."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from scope_runtime.serve.errors import ApiError

FOLDER = Path(__file__).with_name("page")
PREFIX = "/console/"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INLINE = re.compile(rb'<script type="importmap">(.*?)</script>', re.DOTALL)
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_OWN = frozenset({"same-origin", "none"})
_READING = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    media_type: str
    etag: str


def read_page(folder: Path = FOLDER) -> dict[str, _File]:
    """Every file of the page by its path under ``/console/``; the index is ``""``."""
    found = {}
    for path in sorted(folder.rglob("*")):
        media_type = _TYPES.get(path.suffix)
        if media_type is None or not path.is_file():
            continue
        body = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        found["" if name == "index.html" else name] = _File(body, media_type, etag)
    return found


def content_security_policy(index: bytes) -> str:
    """What the page may do: run our files, ask this listener, and nothing else. The import map is named by its hash."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(inline).digest()).decode()}'"
        for inline in _INLINE.findall(index)
    )
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' {hashes}".rstrip(),
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


class Page:
    """Serves the page under ``/console/``; every other request goes on to ``app``, unless a foreign page sent it.

    Args:
        keyless: nobody is asked for a key; so a browser must have come by a name of this machine.
    """

    def __init__(self, app: ASGIApp, *, keyless: bool, folder: Path = FOLDER) -> None:
        self._app = app
        self._keyless = keyless
        self._files = read_page(folder)
        self._headers = {
            "content-security-policy": content_security_policy(self._files[""].body),
            "cache-control": "no-cache",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "permissions-policy": "camera=(), geolocation=(), microphone=()",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        path, reading = scope["path"], scope["method"] in _READING
        response: Response
        if path in ("/", PREFIX.rstrip("/")) and reading:
            response = RedirectResponse(PREFIX, 308, headers=self._headers)
        elif path.startswith(PREFIX) and reading:
            response = self._file(path.removeprefix(PREFIX), headers)
        elif foreign(headers, keyless=self._keyless):
            response = ApiError(403, "Another site's page may not ask here.").response()
        else:
            await self._app(scope, receive, send)
            return
        await response(scope, receive, send)

    def _file(self, name: str, headers: Headers) -> Response:
        file = self._files.get(name)
        if file is None:
            missing = ApiError(404, "The console has no such file.", code="unknown_url")
            return missing.response()
        about = {**self._headers, "etag": file.etag}
        if headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=about)
        return Response(file.body, media_type=file.media_type, headers=about)


def foreign(headers: Headers, *, keyless: bool) -> bool:
    """Whether a browser says that another site's page sent this request.

    A key in a header is nothing that such a page has. Where no key is asked for, this is what stands between it and
    the switch; a name that leads here from elsewhere (rebinding) counts as another site too.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in _OWN:
        return True
    host = headers.get("host", "")
    if origin is not None and urlsplit(origin).netloc != host:
        return True
    browser = site is not None or origin is not None
    return keyless and browser and _name(host) not in _LOOPBACK


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
