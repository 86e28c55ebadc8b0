"""Bytes of a page to text, when its header, its meta tag and its bytes may each say something else."""

from __future__ import annotations

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

META = re.compile(rb"<meta[^>]{0,300}?charset\s*=\s*[\"']?\s*([-\w:.]+)|<\?xml[^>]{0,100}?encoding\s*=\s*[\"']([-\w:.]+)", re.IGNORECASE)
META_BYTES = 4096
WIDER = {"gbk": "gb18030", "gb2312": "gb18030", "euc_kr": "cp949", "shift_jis": "cp932"}
"""What pages contain that name the left charset (WHATWG treats them so, but for its last step, which Python lacks)."""
SERVER_DEFAULT = "cp1252"
"""ISO-8859-1, as browsers read it: what servers name when nobody configured them."""


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
