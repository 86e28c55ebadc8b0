"""A local server in Common Crawl's layout, over real archives, that misbehaves when told to."""

from __future__ import annotations

import gzip
import io
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from corpus_artifacts import SHARED
from fastwarc.warc import ArchiveIterator, WarcRecordType

SNAPSHOT = "CC-MAIN-2024-10"
NAMES = ("cc-2019-jwarc", "cc-2020-34-16pages", "cc-2024-22-whirlwind", "clueweb-quirk")
ARCHIVES = {f"crawl-data/{SNAPSHOT}/segments/1/warc/{n}.warc.gz": SHARED / "data" / "warc" / f"{n}.warc.gz" for n in NAMES}
INDEX = f"cc-index/table/cc-main/warc/crawl={SNAPSHOT}/subset=warc/part-00000.gz.parquet"


@dataclass
class Clock:
    """Time that passes when somebody sleeps."""

    now: float = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Server:
    files: dict[str, bytes]
    captures: list[dict]
    clock: Clock = field(default_factory=Clock)
    log: list[tuple[str, str | None, int, float]] = field(default_factory=list)
    """(path, Range, bytes of body sent, time of the clock) of every request."""
    fault: Callable[[str, int], str] = lambda path, number: ""
    """Path and number of requests for it before → what to do wrong."""
    url: str = ""
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def of(self, path: str) -> list[tuple[str, str | None, int, float]]:
        return [entry for entry in self.log if entry[0] == path]


def captures_of(path: str, data: bytes) -> list[dict]:
    """What the index says of an archive's responses."""
    records = list(ArchiveIterator(io.BytesIO(data), parse_http=False))
    ends = [record.stream_pos for record in records[1:]] + [len(data)]
    found = []
    for record, end in zip(ArchiveIterator(io.BytesIO(data)), ends, strict=True):
        if record.record_type == WarcRecordType.response:
            url = record.headers["WARC-Target-URI"]
            parts = urlsplit(url)
            key = ",".join(reversed((parts.hostname or "").removeprefix("www.").split("."))) + ")" + parts.path.lower()
            found.append({"urlkey": key, "url": url, "status": str(record.http_headers.status_code), "mime-detected": "text/html",
                          "filename": path, "offset": str(record.stream_pos), "length": str(end - record.stream_pos)})  # fmt: skip
    return sorted(found, key=lambda row: row["urlkey"])


def columnar(captures: list[dict]) -> bytes:
    sink = io.BytesIO()
    table = pa.table({
        "url_surtkey": [c["urlkey"] for c in captures], "url": [c["url"] for c in captures],
        "fetch_status": pa.array([int(c["status"]) for c in captures], pa.int16()),
        "content_mime_detected": [c["mime-detected"] for c in captures],
        "warc_filename": [c["filename"] for c in captures],
        "warc_record_offset": pa.array([int(c["offset"]) for c in captures], pa.int32()),
        "warc_record_length": pa.array([int(c["length"]) for c in captures], pa.int32()),
    })  # fmt: skip
    pq.write_table(table, sink, row_group_size=8, compression="gzip")
    return sink.getvalue()


def make_server() -> Server:
    data = {path: file.read_bytes() for path, file in ARCHIVES.items()}
    captures = [capture for path, body in data.items() for capture in captures_of(path, body)]
    captures.sort(key=lambda row: row["urlkey"])
    folder = f"crawl-data/{SNAPSHOT}"
    listings = {
        f"{folder}/warc.paths.gz": gzip.compress("\n".join(data).encode()),
        f"{folder}/cc-index-table.paths.gz": gzip.compress(f"{INDEX.replace('subset=warc', 'subset=robotstxt')}\n{INDEX}\n".encode()),
        INDEX: columnar(captures),
    }
    return Server({**data, **listings}, captures)


def serve(server: Server) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = parts.path.lstrip("/")
            fault = server.fault(path, len(server.of(path)))
            if path == f"{SNAPSHOT}-index":
                body = cdx(server, parse_qs(parts.query))
                return self.answer(path, 200 if body else 404, body or b'{"message": "No Captures found for: x"}', {}, fault)
            if path not in server.files:
                return self.answer(path, 404, b"no such key", {}, fault)
            data, wanted = server.files[path], re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if not wanted or fault == "ignores Range":
                return self.answer(path, 200, data, {}, fault)
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            if first >= len(data):
                return self.answer(path, 416, b"", {"Content-Range": f"bytes */{len(data)}"}, fault)
            if fault == "begins elsewhere":
                first += 7
            self.answer(path, 206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, fault)

        def answer(self, path: str, status: int, body: bytes, headers: dict[str, str], fault: str) -> None:
            length = len(body)
            if match := re.fullmatch(r"(\d{3})( Retry-After (.*))?", fault):
                status, body, headers = int(match[1]), b"slow down", {"Retry-After": match[3]} if match[3] else {}
                length = len(body)
            if fault == "cuts":
                body = body[: length // 2]
            if fault == "says too little":
                length, body = length // 2, body[: length // 2]
            if fault == "says too much":
                length += 1000
            server.log.append((path, self.headers.get("Range"), len(body), server.clock.time()))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()
            if fault == "stalls":
                self.wfile.write(body[: length // 2])
                self.wfile.flush()
                server.stalled.set()
                server.go_on.wait(60)
                self.close_connection = True
                return
            try:
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):  # a client that asked for less than it was sent hangs up
                self.close_connection = True
            if fault in ("cuts", "says too much"):
                self.close_connection = True

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server.url = f"http://127.0.0.1:{httpd.server_port}/"
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    return httpd


def cdx(server: Server, query: dict[str, list[str]], page_size: int = 10) -> bytes:
    """As pywb answers: pages of JSON lines."""
    what, kind = query["url"][0].removeprefix("www."), query["matchType"][0]
    found = [c for c in server.captures if matches(c["url"], what, kind)]
    if "showNumPages" in query:
        return json.dumps({"pages": -(-len(found) // page_size), "pageSize": 5, "blocks": 1}).encode() if found else b""
    page = int(query["page"][0])
    return b"".join(json.dumps(c).encode() + b"\n" for c in found[page * page_size : (page + 1) * page_size])


def matches(url: str, what: str, kind: str) -> bool:
    host = (urlsplit(url).hostname or "").removeprefix("www.")
    if kind == "prefix":
        return url.split("://")[1].removeprefix("www.").startswith(what)
    return host == what or (kind == "domain" and host.endswith(f".{what}"))
