"""WARC records to pages or rejects: what warcio sees, broken records, character sets, encodings, memory."""

from __future__ import annotations

import gzip
import io
import re
import tracemalloc
import zlib
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pytest
from corpus_artifacts import SHARED, finish, folder, needs_shared, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator

from mathpipe.corpus import crawl, pages, warc
from mathpipe.corpus.config import PagesConfig, PagesInputs
from mathpipe.corpus.crawl_config import CrawlConfig, NoInputs
from mathpipe.corpus.payload import decode

WARCS = sorted((SHARED / "data" / "warc").glob("*.gz"))


@needs_shared
def test_all_shared_archives_are_read(tmp_path: Path) -> None:
    out = folder(tmp_path, "crawl")
    facts = crawl.run(CrawlConfig(source="warc", paths=(str(SHARED / "data" / "warc" / "*.gz"),)), NoInputs(), out)
    assert facts["num_shards"] == 6
    found = folder(tmp_path, "pages")
    facts = pages.run(PagesConfig(), PagesInputs(finish(out, facts)), found)
    texts = {row["url"]: row["text"] for row in rows(found)}
    assert "公司" in "".join(texts.values()), "gb2312 pages are decoded"
    assert any("а" in text for url, text in texts.items() if "01spb.ru" in url), "windows-1251 pages are decoded"
    assert not any("\ufffd" * 5 in text for text in texts.values())
    rejects = {(row["reason"], row["detail"]) for row in rows(found, "rejects")}
    assert rejects >= {("broken record", "the archive ends within this record"), ("record type", "conversion")}


@needs_shared
@pytest.mark.parametrize("file", WARCS, ids=lambda file: file.name)
def test_the_same_records_as_warcio(file: Path) -> None:
    """Types, URIs and payload bytes of every record. Of the clipped archive's one record warcio gives what there is of it,
    without a word; here it is a reject."""
    with file.open("rb") as stream:
        theirs = [
            (r.rec_type, r.rec_headers.get_header("WARC-Target-URI") or "", r.content_stream().read()) for r in ArchiveIterator(stream)
        ]
    with file.open("rb") as stream:
        ours = list(warc.responses(stream))
    assert len(ours) == len(theirs)
    for (kind, url, body), found in zip(theirs, ours, strict=True):
        assert found.url == url and found.is_passed_over == (kind in ("warcinfo", "request", "metadata"))
        if kind == "response" and file.name != "clipped.warc.gz":
            assert found.payload and found.payload.body == body and found.payload.status == 200 and not found.reason
    if file.name == "clipped.warc.gz":
        assert [found.reason for found in ours] == ["broken record"] and len(theirs[0][2]) == 74_970


def bodies(found: Iterable[warc.Response]) -> list[tuple[str, bytes | None]]:
    return [(r.url, r.payload and r.payload.body) for r in found]


def sixteen() -> tuple[bytes, list[int]]:
    """The archive with 16 pages in 50 records, and where its members begin; record 5 is a page."""
    data = (SHARED / "data" / "warc" / "cc-2020-34-16pages.warc.gz").read_bytes()
    return data, [found.start for found in warc.responses(io.BytesIO(data))]


def damage(name: str) -> bytes:
    """The archive with record 5 damaged."""
    data, starts = sixteen()
    a, b = starts[5], starts[6]
    before, member, after = data[:a], data[a:b], data[b:]
    plain = zlib.decompress(member, 31)
    length = re.compile(rb"Content-Length: \d+\r\n")
    return before + {
        "bits": lambda: member[:3000] + bytes(x ^ 0x55 for x in member[3000:3050]) + member[3050:],
        "magic": lambda: b"xx" + member[2:],
        "middle is missing": lambda: member[:3000] + member[6000:],
        "end is missing": lambda: member[:3000],
        "checksum": lambda: member[:-8] + b"abcd" + member[-4:],
        "no length": lambda: gzip.compress(length.sub(b"", plain, count=1)),
        "length too large": lambda: gzip.compress(length.sub(b"Content-Length: 999999\r\n", plain, count=1)),
        "length too small": lambda: gzip.compress(length.sub(b"Content-Length: 1000\r\n", plain, count=1)),
        "length is no number": lambda: gzip.compress(length.sub(b"Content-Length: many\r\n", plain, count=1)),
        "version": lambda: gzip.compress(plain.replace(b"WARC/1.0", b"WARX/9.9", 1)),
        "noise": lambda: gzip.compress(b"noise" * 100),
        "headers only": lambda: gzip.compress(plain[:200]),
        "no HTTP": lambda: gzip.compress(plain.replace(b"HTTP/1.1 200", b"SMTP/1.1 200", 1)),
    }[name]() + after  # fmt: skip


DAMAGES = ("bits", "magic", "middle is missing", "end is missing", "checksum", "no length", "length too large", "length too small",
           "length is no number", "version", "noise", "headers only", "no HTTP")  # fmt: skip


@needs_shared
@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_record_costs_itself_alone(name: str) -> None:
    """fastwarc alone gives 5 to 7 of the 50 records, for `length too large` and an empty member without an error."""
    whole = list(warc.responses(io.BytesIO(sixteen()[0])))
    found = list(warc.responses(io.BytesIO(damage(name))))
    broken = found.pop(5)
    assert broken.reason == "broken record" and broken.detail and not broken.payload and broken.url in ("", whole.pop(5).url)
    assert bodies(found) == bodies(whole) and len(found) == 49


@needs_shared
@pytest.mark.parametrize(("junk", "num_rejects"), [(b"garbage\r\n" * 9, 1), (b"\0" * 512, 1), (gzip.compress(b""), 0)])
def test_junk_between_records_costs_none(junk: bytes, num_rejects: int) -> None:
    data, starts = sixteen()
    for at in (starts[5], len(data)):
        found = list(warc.responses(io.BytesIO(data[:at] + junk + data[at:])))
        assert sum(r.payload is not None for r in found) == 16 and sum(bool(r.reason) for r in found) == num_rejects


@needs_shared
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 135_000), st.binary(min_size=1, max_size=40))
def test_any_damage_leaves_the_other_members(at: int, junk: bytes) -> None:
    data, starts = sixteen()
    whole = {r.start: r for r in warc.responses(io.BytesIO(data))}
    ends = dict(zip(starts, [*starts[1:], len(data)], strict=True))
    untouched = [whole[s] for s in starts if ends[s] <= at or s >= at + len(junk)]
    found = [r for r in warc.responses(io.BytesIO(data[:at] + junk + data[at + len(junk) :])) if not r.reason]
    assert set(bodies(untouched)) <= set(bodies(found))
    assert len(found) <= 50


class Failing(io.BytesIO):
    """A stream whose network ends after 50,000 bytes."""

    def __init__(self, data: bytes, error: OSError) -> None:
        super().__init__(data)
        self.error = error

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 50_000:
            raise self.error
        return super().read(1000)


@needs_shared
@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError("slow"), OSError(5, "input/output error")])
def test_a_failing_network_is_no_broken_record(error: OSError) -> None:
    with pytest.raises(type(error), match=str(error.args[-1])):
        list(warc.responses(Failing(sixteen()[0], error)))


@needs_shared
def test_uncompressed_and_jointly_compressed_archives() -> None:
    data, starts = sixteen()
    members = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    plain = [zlib.decompress(member, 31) for member in members]
    whole = bodies(warc.responses(io.BytesIO(data)))
    for stored in (b"".join(plain), gzip.compress(b"".join(plain))):
        assert bodies(warc.responses(io.BytesIO(stored))) == whole
    found = list(warc.responses(io.BytesIO(b"".join(plain[:5]) + b"garbage\r\n" + b"".join(plain[5:]))))
    assert sum(r.payload is not None for r in found) == 16 and sum(bool(r.reason) for r in found) == 1
    cut = list(warc.responses(io.BytesIO(gzip.compress(b"".join(plain))[:-3000])))
    assert 40 < len(cut) < 50 and [r.reason for r in cut if r.reason] == ["broken record"]


@pytest.mark.parametrize("data", [b"", b"hello" * 999, gzip.compress(b"hello" * 999)])
def test_what_is_no_archive_is_one_reject(data: bytes) -> None:
    assert [r.reason for r in warc.responses(io.BytesIO(data))] == ["broken record"]


def response(head: str, body: bytes, kind: str = "response", url: str = "http://a.org/x") -> bytes:
    block = head.encode("latin-1") + body
    header = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Length: {len(block)}\r\n\r\n"
    return gzip.compress(header.encode() + block + b"\r\n\r\n")


PAGE = b"<html><body><p>" + b"Let x be a number. " * 30 + b"</p></body></html>"
HTML = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"


def read(data: bytes, tmp_path: Path, **values: int) -> list[tuple[str, str]]:
    (tmp_path / "a.warc.gz").write_bytes(data)
    return [(r.reason, r.detail) for r in warc.read_archive(str(tmp_path / "a.warc.gz"), 100, **values)]


@pytest.mark.parametrize(("data", "reason", "detail"), [
    (response(HTML + "\r\n", PAGE), "", ""),
    (response(HTML.replace("\r\n", "\n") + "\n", PAGE), "", ""),
    (response(HTML.replace("text/html", "Text/HTML ") + "\r\n", PAGE), "", ""),
    (response("HTTP/1.1 200\r\n\r\n", PAGE), "", ""),
    (response("HTTP/1.1 404 Not Found\r\n\r\n", PAGE), "http status", "404"),
    (response("HTTP/1.1 200 OK\r\nContent-Type: application/pdf\r\n\r\n", b"%PDF"), "content type", "application/pdf"),
    (response(HTML + "\r\n", b"%PDF-1.5"), "content type", "text/html, but begins with b'%PDF'"),
    (response("HTTP/1.1 200 OK\r\n\r\n", b"plain words"), "content type", "none, and not HTML"),
    (response(HTML, b""), "broken record", "no HTTP header"),
    (response(HTML + "\r\n", PAGE, url="dns:a.org"), "bad url", "not an http(s) URL: 'dns:a.org'"),
    (response(HTML + "\r\n", b"<p>short"), "too short", "5 characters"),
    (response(HTML + "\r\n", PAGE, kind="revisit"), "record type", "revisit"),
    (response(HTML + "Content-Encoding: br\r\n\r\n", b"\x07\x03\x99" * 9), "broken record", "Content-Encoding br: Invalid Data"),
])  # fmt: skip
def test_what_is_no_page_says_why(data: bytes, reason: str, detail: str, tmp_path: Path) -> None:
    assert read(data, tmp_path) == [(reason, detail)]


def test_a_large_record_is_a_reject_and_the_next_is_read(tmp_path: Path) -> None:
    large = response(HTML + "\r\n", PAGE * 100)
    bomb = response(HTML + "Content-Encoding: gzip\r\n\r\n", gzip.compress(PAGE * 1000))
    found = read(large + bomb + response(HTML + "\r\n", PAGE), tmp_path, max_bytes=50_000)
    assert found == [("too large", "60,359 bytes"), ("too large", "more than 50,000 bytes when decoded"), ("", "")]


def test_memory_is_bounded_by_one_record(tmp_path: Path) -> None:
    file = tmp_path / "a.warc.gz"
    file.write_bytes(response(HTML + "\r\n", PAGE * 2000) * 40 + response(HTML + "\r\n", b"x" * 60_000_000))
    tracemalloc.start()
    with file.open("rb") as stream:
        assert [r.reason for r in warc.responses(stream, 4_000_000)] == [""] * 40 + ["too large"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000, "40 records of 1.2 MB and one of 60 MB"


ZIPPED = gzip.compress(PAGE, mtime=0)
CHUNKED = b"".join(b"%x\r\n%s\r\n" % (len(PAGE[i : i + 100]), PAGE[i : i + 100]) for i in range(0, len(PAGE), 100)) + b"0\r\n\r\n"


@pytest.mark.parametrize(("header", "body"), [
    ("Transfer-Encoding: chunked", CHUNKED),
    ("Transfer-Encoding: chunked", PAGE),  # decoded before it was stored
    ("Content-Encoding: gzip", ZIPPED),
    ("Content-Encoding: gzip", PAGE),
    ("Content-Encoding: deflate", zlib.compress(PAGE)),
    ("Content-Encoding: deflate", zlib.compress(PAGE, wbits=-15)),
    ("Content-Encoding: identity", PAGE),
    ("Transfer-Encoding: chunked\r\nContent-Encoding: gzip", b"%x\r\n%s\r\n0\r\n\r\n" % (len(ZIPPED), ZIPPED)),
])  # fmt: skip
def test_payload_encodings(header: str, body: bytes) -> None:
    (found,) = warc.responses(io.BytesIO(response(f"{HTML}{header}\r\n\r\n", body)))
    assert found.payload and found.payload.body == PAGE


RUSSIAN = "Математика изучает числа и фигуры. Сумма квадратов катетов равна квадрату гипотенузы. " * 3
CHINESE = "数学是研究数量、结构以及空间等概念的一门学科。勾股定理是一个基本的几何定理。" * 3
KOREAN = "수학은 수와 도형을 연구하는 학문이다. 피타고라스의 정리는 직각삼각형에 관한 정리이다. " * 3
FRENCH = "Le théorème de Pythagore est énoncé ainsi : l'aire du carré est égale à la somme, où déjà. " * 3


@pytest.mark.parametrize(("text", "charset", "header", "meta"), [
    (RUSSIAN, "windows-1251", "windows-1251", None),
    (RUSSIAN, "windows-1251", None, "windows-1251"),
    (RUSSIAN, "windows-1251", None, None),
    (RUSSIAN, "windows-1251", "utf-8", "windows-1251"),
    (RUSSIAN, "windows-1251", "iso-8859-1", "windows-1251"),  # the server's default against the page's own word
    (RUSSIAN, "koi8-r", "iso-8859-1", None),
    (RUSSIAN, "koi8-r", "windows-1251", "iso-8859-5"),  # three opinions, the bytes decide
    (RUSSIAN, "utf-8", "windows-1251", "windows-1251"),
    (RUSSIAN, "utf-8", "no-such-charset", "hex"),
    (RUSSIAN, "utf-16", None, "utf-8"),
    (CHINESE, "gb2312", "gb2312", "gb2312"),
    (CHINESE, "gb18030", "utf-8", "gbk"),
    (CHINESE, "gb2312", None, None),
    (CHINESE, "utf-8", "gb2312", None),
    (KOREAN, "euc-kr", "ks_c_5601-1987", None),
    (KOREAN, "euc-kr", "utf-8", None),
    (FRENCH, "iso-8859-1", "iso-8859-1", None),
    (FRENCH, "iso-8859-1", None, "iso-8859-1"),
    (FRENCH, "iso-8859-1", "utf-8", None),
    ("数学の定理です。" * 9, "iso-2022-jp", None, "iso-2022-jp"),
])  # fmt: skip
def test_character_sets(text: str, charset: str, header: str | None, meta: str | None) -> None:
    html = "<html><head>" + (f'<meta charset="{meta}">' if meta else "") + f"</head><body>{text}</body></html>"
    assert decode(html.encode(charset), header) == html


@given(st.binary(max_size=200), st.sampled_from([None, "utf-8", "gbk", "hex", "latin-1", "x" * 40]))
def test_any_bytes_decode(body: bytes, header: str | None) -> None:
    assert isinstance(decode(body, header), str)


def test_addresses_and_fsspec(tmp_path: Path) -> None:
    """A glob over another file system gives addresses in name order, read like files; a local path stands absolute."""
    memory = fsspec.filesystem("memory")
    memory.pipe({"/web/b.warc.gz": response(HTML + "\r\n", PAGE), "/web/a.warc.gz": response(HTML + "\r\n", PAGE)})
    (tmp_path / "c.warc.gz").write_bytes(response(HTML + "\r\n", PAGE))
    config = CrawlConfig(source="warc", paths=("memory://web/*.warc.gz", str(tmp_path / "*.gz")))
    out = folder(tmp_path, "crawl")
    crawl.run(config, NoInputs(), out)
    found = warc.addresses(out)
    assert found == [str(tmp_path / "c.warc.gz"), "memory:///web/a.warc.gz", "memory:///web/b.warc.gz"]
    assert [r.url for address in found for r in warc.read_archive(address, 100)] == ["http://a.org/x"] * 3
    for path, words in (("memory://web/*.zip", "matches nothing"), ("no-such://x", "no-such"), ("memory://web/none.gz", "no such file")):
        with pytest.raises(ValueError, match=words):
            crawl.run(CrawlConfig(source="warc", paths=(path,)), NoInputs(), out)
