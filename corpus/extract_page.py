"""Text of one page, for people and for outside test suites: `mathpipe extract PAGE.html`, `-`, or a WARC with `--url`."""

from __future__ import annotations

import sys
from pathlib import Path

from mathpipe.corpus.extract import html_to_text
from mathpipe.corpus.payload import decode

GZIP = b"\x1f\x8b"


def text_of(source: str, url: str | None) -> str:
    """Text of the page in a file, on standard input (`-`), or of an archive's response with that URL.

    Raises:
        ValueError: an archive without URL, or without a page of that URL.
    """
    if url is None:
        body = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        if body.startswith((b"WARC/", GZIP)):
            raise ValueError(f"{source}: an archive, not a page; name one of its pages with --url")
        return html_to_text(decode(body, ""))
    from mathpipe.corpus import warc  # fsspec: a page in a file needs none

    with warc.open_archive(source) as stream:
        for response in warc.responses(stream):
            if response.payload is not None and response.url == url:
                return html_to_text(decode(response.payload.body, response.payload.charset))
    raise ValueError(f"{source}: no response for {url}")
