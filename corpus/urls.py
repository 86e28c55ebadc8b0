"""URLs as identities: which two spellings are the same page, and which host a page belongs to."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

TRACKING = (
    "utm_", "fbclid", "gclid", "dclid", "gbraid", "wbraid", "msclkid", "yclid", "igshid", "mc_cid", "mc_eid", "mkt_tok", "_hsenc", "_hsmi",
    "sessionid", "session_id", "phpsessid", "jsessionid", "aspsessionid", "cftoken",
)  # fmt: skip
"""Query parameters (what their names begin with) that name a visit, not a page."""
SESSION = re.compile(r";(?:jsessionid|phpsessid|sessionid|sid)=[^/;]*|/\(S\([0-9a-z]{24}\)\)(?=/)", re.IGNORECASE)
"""The same inside a path, as Java and ASP.NET write it."""
INDEX_PAGE = re.compile(r"(?:index|default)\.(?:s?html?|xhtml|php\d?|aspx?|jsp|cgi)", re.IGNORECASE)
SAFE = ":@!$&'()*+,;=~-._"
DEFAULT_PORTS = (None, 80, 443)


def normalize(url: str) -> str:
    """The one spelling under which pages are compared: no scheme, `www.`, default port, fragment, index page, session or
    tracking parameter; host in ASCII; query in order; percent-escapes in one form; `.` and `..` resolved.

    With a scheme in front it normalizes to itself.

    >>> normalize("HTTP://www.Example.org.:80/b/../a;jsessionid=1F/index.html?utm_source=x&b=2&a=1#top")
    'example.org/a/?a=1&b=2'

    Raises:
        ValueError: not an absolute http(s) URL.
    """
    parts = urlsplit(url.strip())
    host = host_of(url)
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"not an http(s) URL: {url!r}")
    port = "" if parts.port in DEFAULT_PORTS else f":{parts.port}"
    pairs = parse_qsl(parts.query, keep_blank_values=True, errors="surrogateescape")
    query = sorted(pair for pair in pairs if not pair[0].lower().startswith(TRACKING))
    return f"{host}{port}{_path(parts.path)}" + (f"?{urlencode(query, errors='surrogateescape')}" if query else "")


def _path(path: str) -> str:
    segments = [quote(unquote(part, errors="surrogateescape"), safe=SAFE, errors="surrogateescape") for part in path.split("/")]
    kept: list[str] = []
    for segment in SESSION.sub("", "/".join(segments)).split("/")[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if not kept or segment in (".", ".."):
        kept.append("")
    elif INDEX_PAGE.fullmatch(segment):
        kept[-1] = ""
    return "/" + "/".join(kept)


def host_of(url: str) -> str:
    """Host in lower case and ASCII (punycode), without `www.` and final dot: the domain that rounds judge ("the same base
    URL", section 2.1).

    >>> host_of("https://WWW.Bücher.example/core/")
    'xn--bcher-kva.example'
    """
    host = urlsplit(url.strip()).hostname or ""
    host = host if host.isascii() else host.encode("idna").decode()
    return f"[{host}]" if ":" in host else re.sub(r"^(?:www\.)+(?=.)", "", host.rstrip("."))


def prefixes(url: str, depth: int) -> list[str]:
    """Host and path prefixes of a URL, shortest first, at most `depth` folders deep.

    >>> prefixes("http://www.a.org/x/y/p.html?q=1", 3)
    ['a.org/', 'a.org/x/', 'a.org/x/y/']
    """
    host, _, path = normalize(url).partition("?")[0].partition("/")
    folders = path.split("/")[:-1][:depth]
    return [f"{host}/" + "".join(f"{folder}/" for folder in folders[:n]) for n in range(len(folders) + 1)]
