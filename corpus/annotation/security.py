"""What keeps the page safe: strict headers, known host names, same-origin POSTs with a token, login by token.

Referrer-Policy is `same-origin`, since under `no-referrer` browsers send `Origin: null` with a form; links to crawled pages
carry `rel="noreferrer noopener"`.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
FRAME_POLICY = "default-src 'none'; style-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'; sandbox"
"""Of the frame with a crawled page's text: nothing runs in it, nothing loads but its style sheet."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": PAGE_POLICY,
}
MAX_FORM_BYTES, MAX_IMPORT_BYTES = 64 << 10, 64 << 20
CSRF, TOKEN, WHO = "mathpipe_csrf", "mathpipe_token", "mathpipe_who"
"""Cookies: the value that a form must repeat, an annotator's token, the name that an annotator gave without login."""


class Guard:
    """ASGI middleware: refuses foreign hosts and origins and large bodies, puts the headers on every response."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], public_url: str) -> None:
        self.app, self.public_origin = app, origin_of(public_url)
        self.hosts = {host.lower().strip("[]") for host in hosts} | ({str(self.public_origin[1])} if self.public_origin else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.public_origin and self.public_origin[0] == "https":
            scope = {**scope, "scheme": "https"}  # what the proxy passes on came to it by TLS: cookies are Secure

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if scope["path"].startswith("/static/"):
                    headers["Cache-Control"] = "no-cache"  # kept by the browser, but asked for again
                add_headers(headers)
            await send(message)

        refused = self.refusal(scope)
        await (refused or self.app)(scope, receive, send_guarded)

    def refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host_name(host) not in self.hosts and not is_own_address(host_name(host), scope):
            return PlainTextResponse(f"this server is not {host_name(host)!r}; open it under the address that it printed", 400)
        if scope["method"] in ("GET", "HEAD"):
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if (origin is not None and not self.is_ours(origin, host)) or site not in (None, "same-origin", "none"):
            return PlainTextResponse("refused: this form was not sent from this page", 403)
        size = headers.get("content-length", "")
        limit = MAX_IMPORT_BYTES if scope["path"].endswith("/import") else MAX_FORM_BYTES
        if not size.isdecimal():
            return PlainTextResponse("refused: a form needs its length", 411)
        return PlainTextResponse(f"refused: more than {limit:,} bytes", 413) if len(size) > 18 or int(size) > limit else None

    def is_ours(self, origin: str, host: str) -> bool:
        """Whether a form was sent from this server's page: under the name that was called, or that of the proxy before it."""
        try:
            is_public = self.public_origin is not None and origin_of(origin) == self.public_origin
            return is_public or urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:
            return False


def add_headers(headers: MutableHeaders) -> None:
    """Those that every response has, where it has none of its own."""
    for name, value in HEADERS.items():
        headers.setdefault(name, value)


def origin_of(url: str) -> tuple[str, str | None, int | None] | None:
    """Scheme, host and port of an address; None for an empty one.

    >>> origin_of("https://A.org/x") == origin_of("https://a.org:443"), origin_of("http://a.org") == origin_of("https://a.org")
    (True, False)
    """
    parts = urlsplit(url)
    return (parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)) if url else None


def is_own_address(name: str, scope: Scope) -> bool:
    """Whether a name is the IP address at which the connection arrived: no other site's name can be that."""
    try:
        asked, own = ipaddress.ip_address(name), ipaddress.ip_address((scope.get("server") or ("",))[0])
    except ValueError:
        return False
    return asked in (own, getattr(own, "ipv4_mapped", None))


def host_name(host: str) -> str:
    """The name of a Host header, without its port.

    >>> host_name("LocalHost:8765"), host_name("[::1]:80")
    ('localhost', '::1')
    """
    name, colon, port = host.lower().rpartition(":")
    return (name if colon and port.isdecimal() else host.lower()).strip("[]")


def csrf_of(request: Request) -> str:
    """The value that this browser's forms must repeat; a new one where it has none."""
    return request.cookies.get(CSRF) or secrets.token_urlsafe(24)


def check_csrf(request: Request, sent: str) -> None:
    """Raise HTTPException 403 unless the form repeats the cookie."""
    known = request.cookies.get(CSRF, "")
    if not known or not hmac.compare_digest(known.encode(), sent.encode("utf-8", "replace")):
        raise HTTPException(403, "this form is no longer valid: load the page again and repeat")


def set_cookie(response: Response, request: Request, name: str, value: str) -> None:
    """A cookie that scripts cannot read and other sites cannot send."""
    response.set_cookie(name, value, max_age=180 * 86_400, path="/", httponly=True, samesite="strict", secure=request.url.scheme == "https")
