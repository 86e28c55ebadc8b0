"""WARC files to text: every response is a page or a reject with a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

from mathpipe.corpus import urls
from mathpipe.corpus.extract import html_to_text
from mathpipe.pipeline.artifact import ContractError

ARCHIVES = "archives.json"
"""In a crawl artifact: the list of its archives."""
HTML_TYPES = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class Record:
    """One response: a page, or a reject where `reason` is not empty."""

    number: int
    """Position in the archive, over records of all types."""
    url: str
    text: str
    reason: str
    detail: str
    links: tuple[str, ...] = ()
    """Absolute targets of the page's hyperlinks, where they were asked for."""


def addresses(crawl: Path) -> list[str]:
    """Archives of a crawl artifact in order: absolute paths or fsspec URLs.

    Raises:
        ContractError: the artifact has no list of archives.
    """
    try:
        names = json.loads((crawl / ARCHIVES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ContractError(f"{crawl / ARCHIVES}: missing; run the crawl stage again") from None
    return [name if "://" in name else str((crawl / name).absolute()) for name in names]


def open_archive(address: str) -> BinaryIO:
    """A binary stream over a local file or an fsspec URL."""
    if "://" not in address:
        return Path(address).open("rb")
    import fsspec

    return cast(BinaryIO, fsspec.open(address, "rb").open())


def read_archive(address: str, min_chars: int, with_links: bool = False) -> Iterator[Record]:
    """Every response of an archive.

    Other records (requests, metadata, text conversions) are no pages and are passed over. An archive that cannot be read
    to its end gives the pages up to there and one reject.
    """
    number = -1
    with open_archive(address) as stream:
        try:
            for number, record in enumerate(ArchiveIterator(stream, auto_decode="all")):
                if record.record_type == WarcRecordType.response:
                    url = record.headers.get("WARC-Target-URI") or ""
                    yield Record(number, url, *read_record(record, url, min_chars))
        except OSError as error:
            yield Record(number + 1, "", "", "broken archive", f"{Path(address).name}: {error}")


def read_record(record: WarcRecord, url: str, min_chars: int) -> tuple[str, str, str]:
    """(text, reason, detail) of one response."""
    body = record.reader.read()
    headers = record.http_headers
    if headers is None or headers.status_code is None:
        return "", "broken record", "no HTTP header"
    if headers.status_code != 200:
        return "", "http status", str(headers.status_code)
    content_type = (record.http_content_type or "").lower()
    if content_type and content_type not in HTML_TYPES:
        return "", "content type", content_type
    if not content_type and b"<" not in body[:500]:
        return "", "content type", "none, and not HTML"
    is_encoded = headers.get("Content-Encoding") or headers.get("Transfer-Encoding")
    if not is_encoded and len(body) < record.content_length:
        return "", "broken record", f"{len(body)} of {record.content_length} bytes"
    try:
        urls.normalize(url)
    except ValueError as error:
        return "", "bad url", str(error)
    charset = record.http_charset or detect_encoding(body, from_html_meta=True) or "utf-8"
    text = html_to_text(bytes_to_str(body, charset))
    if len(text) < min_chars:
        return "", "too short", f"{len(text)} characters"
    return text, "", ""
