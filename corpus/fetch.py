"""A polite HTTP client: one rate over all connections, back-off, and fetches that continue where they broke.

The rules, after Common Crawl's: every request waits for its turn; a failed one is repeated after an exponentially growing time
with jitter, at least as long as `Retry-After` says; retries, of all connections together, are at least a second apart; a server
that says 429 or 503 is left alone by all connections for that time.
"""

from __future__ import annotations

import email.utils
import itertools
import random
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import requests
import urllib3

from mathpipe.pipeline import log

T = TypeVar("T")
RETRY_INTERVAL_S = 1.0
MAX_BACKOFF_S = 120.0
TIMEOUT_S = 60.0
CHUNK = 2**16
OVERLOADED = (429, 503)
HEADERS = {"User-Agent": "mathpipe", "Accept-Encoding": "identity"}
FAULTS = (requests.RequestException, urllib3.exceptions.HTTPError)
"""What a connection raises that fails or ends early."""


class FailedTry(Exception):
    """One try failed; the message says how."""

    def __init__(self, message: str, hold_s: float = 0.0, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.hold_s, self.retry_after_s = hold_s, retry_after_s


class Stopped(Exception):
    """Another fetch failed for good, so this one is left where it is."""


class Client:
    """Fetches from servers that ask for patience; shared by threads.

    Args:
        requests_per_s: at most this many requests begin per second, over all connections.
        max_tries: tries in a row without a new byte before a fetch is given up.
        clock, sleep, jitter: seconds, waiting, and a number in [0, 1); replaced in tests.
    """

    def __init__(
        self, requests_per_s: float, max_tries: int, clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None, jitter: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self.interval_s, self.max_tries, self.clock, self.jitter = 1 / requests_per_s, max_tries, clock, jitter
        self.num_bytes = 0
        self.stop = threading.Event()
        self.sleep = sleep or self.stop.wait
        self._lock = threading.Lock()
        self._next_request = self._next_retry = float("-inf")
        self._session = requests.Session()
        self._session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=64))

    def get(self, url: str, params: dict[str, str] | None = None, missing: str | None = None) -> bytes:
        """A whole answer; empty where the server says 404 with the words `missing`.

        Raises:
            ValueError: no answer within `max_tries`.
        """

        def once() -> bytes:
            with closing(self._session.get(url, params=params, headers=HEADERS, stream=True, timeout=TIMEOUT_S)) as answer:
                if missing and answer.status_code == 404 and missing in answer.text:
                    return b""
                _check_status(answer)
                return b"".join(answer.raw.stream(CHUNK, decode_content=False))

        return self._patiently(url, once, lambda: 0)

    def size(self, url: str) -> int:
        """Bytes of a resource."""

        def once() -> int:
            with closing(self._session.get(url, headers=HEADERS | {"Range": "bytes=0-0"}, stream=True, timeout=TIMEOUT_S)) as answer:
                _check_status(answer)
                total = _begin_and_total(answer)[1]
                if total is None:
                    raise FailedTry("the server does not say how large it is")
                return total

        return self._patiently(url, once, lambda: 0)

    def download(self, url: str, file: Path, first: int = 0, length: int | None = None) -> None:
        """The bytes from `first` on (`length` of them, or all) to `file`; continues what an earlier process left.

        Raises:
            ValueError: `max_tries` tries in a row brought nothing; what was fetched is kept.
        """
        partial = file.with_name(f".{file.name}.part")
        with partial.open("ab") as sink:
            self.fetch(url, sink, first, length)
        partial.replace(file)

    def fetch(self, url: str, sink: BinaryIO, first: int = 0, length: int | None = None) -> None:
        """The same, appended to a stream that may hold the beginning already."""
        self._patiently(url, lambda: self._continue(url, sink, first, length), sink.tell)

    def _continue(self, url: str, sink: BinaryIO, first: int, length: int | None) -> None:
        """One request for what the sink lacks; a server that ignores Range sends more, which is skipped."""
        start = first + sink.tell()
        left = None if length is None else length - sink.tell()
        if left == 0:  # stopped between the last byte and the new name
            return
        wanted = HEADERS | {"Range": f"bytes={start}-{'' if left is None else start + left - 1}"}
        with closing(self._session.get(url, headers=wanted, stream=True, timeout=TIMEOUT_S)) as answer:
            if answer.status_code == 416 and left is None and answer.headers.get("Content-Range") == f"bytes */{start}":
                return
            _check_status(answer)
            begin, total = _begin_and_total(answer)
            if begin > start:
                raise FailedTry(f"asked for bytes from {start} on, got them from {begin} on")
            if left is None and total is not None:
                left = total - start
            if left is not None and left < 0:
                raise FailedTry(f"{start:,} bytes are here already, more than the server's {total:,}")
            skip = start - begin
            for chunk in answer.raw.stream(CHUNK, decode_content=False):
                if self.stop.is_set():
                    raise Stopped(url)
                fresh = chunk[skip:][:left]
                skip = max(0, skip - len(chunk))
                sink.write(fresh)
                self.num_bytes += len(fresh)
                left = None if left is None else left - len(fresh)
                if left == 0:
                    return
        if left is not None:
            raise FailedTry(f"the answer ended {left} bytes early")

    def _patiently(self, url: str, attempt: Callable[[], T], num_bytes: Callable[[], int]) -> T:
        """The result of the first attempt that succeeds; new bytes renew the patience."""
        tries, before = 0, num_bytes()
        while True:
            self._wait_for_turn(is_retry=tries > 0)
            try:
                return attempt()
            except (FailedTry, *FAULTS) as error:
                reason = error
            tries = 1 if num_bytes() > before else tries + 1
            before = num_bytes()
            if tries >= self.max_tries:
                raise ValueError(f"{url}: given up after {tries} tries: {reason}; what was fetched is kept, the same command continues")
            backoff_s = min(2.0 ** (tries - 1), MAX_BACKOFF_S) * (0.5 + self.jitter())
            if isinstance(reason, FailedTry):
                self._hold(reason.hold_s)
                backoff_s = max(backoff_s, reason.retry_after_s)
            self._pause(backoff_s)

    def _wait_for_turn(self, is_retry: bool) -> None:
        with self._lock:
            turn = max(self.clock(), self._next_request, self._next_retry if is_retry else float("-inf"))
            self._next_request = turn + self.interval_s
            if is_retry:
                self._next_retry = turn + RETRY_INTERVAL_S
            wait_s = turn - self.clock()
        self._pause(wait_s)

    def _hold(self, seconds: float) -> None:
        """No request of any connection before that time has passed."""
        with self._lock:
            self._next_request = max(self._next_request, self.clock() + seconds)

    def _pause(self, seconds: float) -> None:
        if seconds > 0:
            self.sleep(seconds)
        if self.stop.is_set():
            raise Stopped


def in_threads(
    client: Client, num_threads: int, function: Callable[..., object], jobs: Iterable[tuple[Any, ...]], progress: log.Progress
) -> None:
    """Call `function(*job)` for every job; the first failure stops the others soon and is raised."""
    waiting, left = iter(jobs), set[Future[object]]()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            while left := left | {pool.submit(function, *job) for job in itertools.islice(waiting, num_threads - len(left))}:
                ended, left = wait(left, timeout=1, return_when=FIRST_COMPLETED)
                for job in ended:
                    job.result()
                progress.advance(len(ended), f"{client.num_bytes / 1e6:,.1f} MB fetched")
        except BaseException:
            client.stop.set()
            raise


def _check_status(answer: requests.Response) -> None:
    if answer.status_code not in (200, 206):
        after = _retry_after_s(answer.headers.get("Retry-After", ""))
        hold = max(after, RETRY_INTERVAL_S) if answer.status_code in OVERLOADED else 0.0
        raise FailedTry(f"HTTP {answer.status_code} {answer.reason}", hold, after)


def _retry_after_s(value: str) -> float:
    """Seconds of a `Retry-After` header, which holds seconds or a date."""
    if value.strip().isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _begin_and_total(answer: requests.Response) -> tuple[int, int | None]:
    """Where the body of an answer begins, and the size of the whole; None where the server does not say."""
    if answer.status_code == 200:  # Range ignored
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if not found:
        raise FailedTry(f"HTTP 206 without a usable Content-Range: {answer.headers.get('Content-Range')!r}")
    return int(found[1]), None if found[2] == "*" else int(found[2])
