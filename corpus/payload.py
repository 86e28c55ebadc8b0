"""What a response holds: HTTP status and headers, the payload without its encodings, the text behind its charset."""

from __future__ import annotations

import codecs
import io
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from fastwarc.stream_io import BrotliReader, ZstdReader
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})\b")
HEADER_END = re.compile(rb"\r?\n\r?\n")
CHARSET = re.compile(r"charset\s*=\s*[\"']?([-\w:.]+)", re.IGNORECASE)
CHUNK_SIZE = re.compile(rb"\r?\n?([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
META = re.compile(rb"<meta[^>]{0,300}?charset\s*=\s*[\"']?\s*([-\w:.]+)|<\?xml[^>]{0,100}?encoding\s*=\s*[\"']([-\w:.]+)", re.IGNORECASE)
META_BYTES = 4096
WIDER = {"gbk": "gb18030", "gb2312": "gb18030", "euc_kr": "cp949", "shift_jis": "cp932"}
"""What pages contain that name the left charset (WHATWG treats them so, but for its last step, which Python lacks)."""
SERVER_DEFAULT = "cp1252"
"""ISO-8859-1, as browsers read it: what servers name when nobody configured them."""



@dataclass(frozen=True)
class Payload:
    """A response without its wrapping."""

    status: int
    content_type: str
    """In lower case, without parameters; empty where none is given."""
    charset: str | None
    """As the header says."""
    body: bytes


def parse_http(block: bytes, identified: str, max_bytes: int) -> Payload:
    """Status, type and decoded body of a response's block, at most `max_bytes + 1` of it; header lines may end in LF alone.

    Args:
        identified: content type to assume where the header gives none.

    Raises:
        ValueError: no HTTP header, or a body that is neither in the encoding that its header names nor markup.
    """
    end, status = HEADER_END.search(block), STATUS.match(block)
    if not end or not status:
        raise ValueError("no HTTP header")
    headers: dict[str, str] = {}
    for line in block[: end.start()].decode("latin-1").splitlines()[1:]:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    content_type = headers.get("content-type") or identified
    charset = CHARSET.search(content_type)
    kind = re.split("[;,]", content_type)[0].strip().lower()
    return Payload(int(status[1]), kind, charset[1] if charset else None, _decoded(block[end.end() :], headers, max_bytes + 1))


def _decoded(body: bytes, headers: dict[str, str], max_bytes: int) -> bytes:
    """The body without its encodings, at most `max_bytes`; one that was decoded before it was stored stays as it is."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _dechunked(body)
    for name in reversed(re.findall(r"[\w-]+", headers.get("content-encoding", "").lower())):
        try:
            body = DECODERS[name](body, max_bytes) if name in DECODERS else body
        except (OSError, zlib.error) as error:
            if b"<" not in body[:500]:
                raise ValueError(f"Content-Encoding {name}: {error}") from None
    return body


def _dechunked(body: bytes) -> bytes:
    """The chunks' contents, up to where they end; the same bytes where there are no chunks."""
    parts, at = [], 0
    while found := CHUNK_SIZE.match(body, at):
        at = found.end() + int(found[1], 16)
        if body[at : at + 1] not in (b"\r", b"\n", b""):
            return body
        parts.append(body[found.end() : at])
    return b"".join(parts) if parts else body


def _deflated(body: bytes, max_bytes: int) -> bytes:
    wbits = zlib.MAX_WBITS if body[:1] in (b"\x78", b"\x58", b"\x08") else -zlib.MAX_WBITS  # both are seen as `deflate`
    return zlib.decompressobj(wbits).decompress(body, max_bytes)


DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": lambda body, size: zlib.decompressobj(31).decompress(body, size),
    "x-gzip": lambda body, size: zlib.decompressobj(31).decompress(body, size),
    "deflate": _deflated,
    "br": lambda body, size: BrotliReader(io.BytesIO(body)).read(size),
    "zstd": lambda body, size: ZstdReader(io.BytesIO(body)).read(size),
}


def decode(body: bytes, header: str | None) -> str:
    """Text of a page; bytes that mean nothing become U+FFFD.

    What is valid UTF-8 is UTF-8, whatever is declared. Otherwise a single declaration, or two that agree, are believed as
    long as the bytes can be read so; where header and meta tag disagree, the statistics of the bytes (uchardet) go first.

    >>> decode("Привет".encode("cp1251"), "windows-1251")
    'Привет'
    """
    if not re.search(rb"\x1b[$(]|\x00", body[:META_BYTES]):  # ISO-2022 is ASCII to UTF-8, UTF-16 is ASCII with zeros
        try:
            return body.decode("utf-8-sig")
        except UnicodeDecodeError:
            pass
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return body.decode("utf-16", errors="replace")
    meta = META.search(body[:META_BYTES])
    declared = list(dict.fromkeys(filter(None, (_name(header), _name((meta[1] or meta[2]).decode("ascii", "replace") if meta else None)))))
    guess = _name(detect_encoding(body, html5_compatible=False)) or "utf-8"
    is_doubtful = len(declared) > 1 or (declared == [SERVER_DEFAULT] and not meta)
    names = [guess, *declared] if is_doubtful else [*declared, guess]
    return min((body.decode(name, errors="replace") for name in dict.fromkeys(names)), key=lambda text: text.count("\ufffd"))


def _name(label: str | None) -> str | None:
    """Python's codec for a charset label of the web; None for what is none."""
    if not label:
        return None
    name = map_encoding_to_html5(label, False) or label.lower()
    try:
        name = codecs.lookup(WIDER.get(name, name)).name
        "".encode(name)  # not bytes to bytes, as `hex` is
    except LookupError:
        return None
    return WIDER.get(name, name)
