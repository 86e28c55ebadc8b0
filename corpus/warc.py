"""WARC files to text: every response is a page or a reject with a reason, and a broken record costs itself alone.

fastwarc reads fast and stops at the first fault: a damaged gzip member, an empty one, a wrong Content-Length and garbage
between records each lose the rest of the archive, some of them silently. So the last record it gave is read again by itself,
from its own gzip member, which says whether it is whole and where the next one begins.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from mathpipe.corpus import urls
from mathpipe.corpus.extract import html_to_text, hyperlinks
from mathpipe.corpus.payload import Payload, decode, parse_http
from mathpipe.pipeline.artifact import ContractError

ARCHIVES = "archives.json"
"""In a crawl artifact: the list of its archives."""
HTML_TYPES = ("text/html", "application/xhtml+xml")
NOT_HTML = (b"%PDF", b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"PK\x03\x04", b"\x1f\x8b")
"""How bodies begin whose header calls them HTML all the same."""
PASSED_OVER = (WarcRecordType.warcinfo, WarcRecordType.request, WarcRecordType.metadata)
"""Records about responses; every other type is a response or a reject."""
MAX_RECORD_BYTES = 32 * 2**20
GZIP, PLAIN = b"\x1f\x8b\x08", b"WARC/"
CHUNK = 2**16
SMALL_CHUNK = 2**9
"""What is read at once from a member that may be damaged: all before the damage counts."""


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


@dataclass
class Response:
    """One record as stored: a response, or what should have been one where `reason` is not empty."""

    start: int
    """Where its gzip member begins (uncompressed archives: where it begins itself)."""
    url: str = ""
    payload: Payload | None = None
    reason: str = ""
    detail: str = ""
    is_passed_over: bool = False


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


def check_archive(address: str) -> None:
    """Look at the first bytes, decompressed.

    Raises:
        ValueError: not a WARC file, or not there.
    """
    try:
        with open_archive(address) as stream:
            start = stream.read(CHUNK)
        found = zlib.decompressobj(31).decompress(start, len(PLAIN)) if start.startswith(GZIP[:2]) else start[: len(PLAIN)]
    except FileNotFoundError:
        raise ValueError(f"{address}: no such file (crawl.paths, relative to {Path.cwd()}); give existing WARC files or globs") from None
    except zlib.error as error:
        raise ValueError(f"{address}: not readable as gzip ({error}); delete it or take it out of crawl.paths") from None
    if found != PLAIN:
        raise ValueError(f"{address}: not a WARC file (begins with {found!r}, expected {PLAIN!r}); delete it or take it out of crawl.paths")


def read_archive(address: str, min_chars: int, with_links: bool = False, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Record]:
    """Every response of an archive, as text or as a reject; memory is bounded by one record.

    Records about responses (requests, metadata) are passed over; conversions, as in WET files, and other types are rejects.
    """
    with open_archive(address) as stream:
        for number, response in enumerate(responses(stream, max_bytes)):
            if not response.is_passed_over:
                yield to_record(number, response, min_chars, with_links)


def to_record(number: int, response: Response, min_chars: int, with_links: bool) -> Record:
    """The page of a response, or why it is none."""
    payload = response.payload
    if payload is None:
        return Record(number, response.url, "", response.reason, response.detail)
    reason, detail = refusal(response.url, payload)
    if reason:
        return Record(number, response.url, "", reason, detail)
    html = decode(payload.body, payload.charset)
    text = html_to_text(html)
    if len(text) < min_chars:
        return Record(number, response.url, "", "too short", f"{len(text)} characters")
    links = tuple(hyperlinks(html, response.url)) if with_links else ()
    return Record(number, response.url, text, "", "", links)


def refusal(url: str, payload: Payload) -> tuple[str, str]:
    """(reason, detail) of a response that is no page, else two empty strings."""
    if payload.status != 200:
        return "http status", str(payload.status)
    if payload.content_type and payload.content_type not in HTML_TYPES:
        return "content type", payload.content_type
    start = payload.body[:500].lstrip()
    if not payload.content_type and b"<" not in start:
        return "content type", "none, and not HTML"
    if start.startswith(NOT_HTML):
        return "content type", f"{payload.content_type or 'none'}, but begins with {start[:4]!r}"
    try:
        urls.normalize(url)
    except ValueError as error:
        return "bad url", str(error)
    return "", ""


def responses(stream: BinaryIO, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Response]:
    """Every record of an archive in order, of whatever type, broken ones with a reason."""
    is_plain = stream.read(len(PLAIN)) == PLAIN
    start: int | None = 0
    while start is not None:
        stream.seek(start)
        last: Response | None = None
        is_alone, error = True, None
        try:
            for record in ArchiveIterator(stream, parse_http=False):
                if last is not None:
                    yield last
                    is_alone = record.stream_pos > last.start
                last = read_response(record, max_bytes)
        except OSError as found:
            error = damage(found)
        if last and (is_plain or not (is_alone and _begins(stream, last.start, GZIP))):  # many records in one stream
            yield last if error is None else broken(last, error)
            start = _next_record(stream, last.start + 1, is_plain) if last.reason or error else None
        elif is_plain:
            yield broken(Response(start), error)
            start = _next_record(stream, start + 1, is_plain)
        else:
            start = yield from _member(stream, last.start if last else start, max_bytes)


def _member(stream: BinaryIO, start: int, max_bytes: int) -> Generator[Response, None, int | None]:
    """Records of the gzip member that begins at `start`; returns where to go on, or None at the end of the archive."""
    stream.seek(start)
    member, last = Member(stream), None
    try:
        for record in ArchiveIterator(member, parse_http=False, stream_detect=False):
            if last is not None:
                yield last
            last = Response(start, _url(record))  # names the reject where the payload cannot be read
            last = dataclasses.replace(read_response(record, max_bytes), start=start)
        while member.read(CHUNK):  # what follows the record; the checksum comes last
            pass
    except (OSError, EOFError, zlib.error) as found:
        yield broken(last or Response(start), damage(found))
        return _next_record(stream, start + 1, is_plain=False)
    if last is not None:
        yield last
    end = stream.tell() - len(member.inflate.unused_data)
    return end if _begins(stream, end, b"", 1) else None


class Member(io.RawIOBase):
    """A stream over one gzip member and no further.

    Raises:
        EOFError: the file ends before the member does.
        zlib.error: the member is damaged.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.inflate, self.num_read = stream, zlib.decompressobj(31), 0

    def tell(self) -> int:
        """Bytes read so far."""
        return self.num_read

    def read(self, size: int = CHUNK) -> bytes:
        """At most `size` bytes, none at the end of the member."""
        while not self.inflate.eof:
            found = self.inflate.unconsumed_tail or self.stream.read(SMALL_CHUNK)
            if not found:
                raise EOFError("the archive ends within this record")
            if data := self.inflate.decompress(found, size if size > 0 else 0):
                self.num_read += len(data)
                return data
        return b""


def _begins(stream: BinaryIO, at: int, magic: bytes, size: int = 0) -> bool:
    """Whether `magic` stands at this place, and whether at least `size` bytes do."""
    stream.seek(at)
    found = stream.read(max(size, len(magic)))
    return found.startswith(magic) and len(found) >= size


def _next_record(stream: BinaryIO, at: int, is_plain: bool) -> int | None:
    """Where the next record (its gzip member, unless the archive is uncompressed) begins, at or after `at`."""
    magic = b"\n" + PLAIN if is_plain else GZIP
    window = b""
    stream.seek(at)
    while more := stream.read(CHUNK):
        window += more
        found = window.find(magic)
        while found >= 0:
            place = at + found + (1 if is_plain else 0)
            if is_plain or _inflates_to_warc(stream, place):
                return place
            found = window.find(magic, found + 1)
        keep = len(magic) - 1
        at, window = at + len(window) - keep, window[-keep:]
        stream.seek(at + keep)
    return None


def _inflates_to_warc(stream: BinaryIO, at: int) -> bool:
    stream.seek(at)
    try:
        return zlib.decompressobj(31).decompress(stream.read(CHUNK), len(PLAIN)) == PLAIN
    except zlib.error:
        return False


def damage(error: Exception) -> Exception:
    """The same error where it says that the archive is damaged; raises it where it says that a disk or a network failed."""
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):  # fastwarc's own have no number
        raise error
    return error


def broken(response: Response, error: Exception | None) -> Response:
    """The same record as a reject."""
    detail = response.detail or str(error or "no record here")
    return dataclasses.replace(response, payload=None, reason="broken record", detail=detail, is_passed_over=False)


def read_response(record: WarcRecord, max_bytes: int) -> Response:
    """A record with its payload in memory.

    Raises:
        OSError: the archive is damaged here.
    """
    response = Response(record.stream_pos, _url(record))
    if record.record_type in PASSED_OVER:
        response.is_passed_over = True
        return response
    if record.record_type != WarcRecordType.response:
        return dataclasses.replace(response, reason="record type", detail=record.headers.get("WARC-Type") or "none")
    size = record.content_length
    if size > max_bytes:
        return dataclasses.replace(response, reason="too large", detail=f"{size:,} bytes")
    block = record.reader.read()
    if len(block) < size:
        return broken(response, ValueError(f"{len(block)} of {size} bytes"))
    try:
        response.payload = parse_http(block, record.headers.get("WARC-Identified-Payload-Type") or "", max_bytes)
    except ValueError as error:
        return broken(response, error)
    if len(response.payload.body) > max_bytes:
        return dataclasses.replace(response, payload=None, reason="too large", detail=f"more than {max_bytes:,} bytes when decoded")
    return response


def _url(record: WarcRecord) -> str:
    return (record.headers.get("WARC-Target-URI") or "").strip("<>")
