"""Logging and progress of a stage: lines for people, one small file for whoever runs the stage."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from mathpipe.pipeline.artifact import write_json

PROGRESS = "progress.json"


def logger(name: str = "mathpipe") -> logging.Logger:
    """The project's logger; `setup` decides where its lines go."""
    return logging.getLogger(name)


def setup(level: int = logging.INFO) -> None:
    """Send log lines to standard output with a time; called once by a stage's front door."""
    logging.basicConfig(level=level, stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)


class Progress:
    """How far a stage is: done, total, rate, seconds left, a status line; written to `progress.json` twice a second.

    >>> with Progress(out, total=len(files), unit="pages") as progress:   # doctest: +SKIP
    ...     progress.advance(250, "host pkg-sympy.docs.example")

    On a terminal (a stage typed by hand) it also keeps one line up to date; otherwise it logs a line every 10 s.
    A stage with several phases makes one Progress per phase and names it with `phase`. Where there is a page to watch or to
    work on, `url` is its address. Of data-parallel processes only the first speaks.
    """

    def __init__(self, out: Path, total: float, unit: str = "items", phase: str = "", done: float = 0) -> None:
        self.file, self.total, self.unit, self.phase = out / PROGRESS, total, unit, phase
        self.done, self.first_done, self.message, self.url = done, done, "", ""
        self.started = time.monotonic()
        self._written = self._logged = 0.0
        self._url = ""
        self._speaks = os.environ.get("RANK", "0") == "0"

    def __enter__(self) -> Progress:
        self._write(force=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._write(force=True)
        if sys.stdout.isatty():
            print(flush=True)

    def advance(self, amount: float = 1, message: str | None = None) -> None:
        """Add `amount` to what is done; `message` is the status line (loss, host, round …)."""
        self.done += amount
        if message is not None:
            self.message = message
        self._write()

    def snapshot(self) -> dict[str, Any]:
        """Progress as plain values: done, total, frac, unit, rate (1/s), left_s, phase, message, url."""
        seconds = time.monotonic() - self.started
        rate = (self.done - self.first_done) / seconds if seconds > 0.2 else 0.0
        left = (self.total - self.done) / rate if rate > 0 else None
        frac = min(1.0, self.done / self.total) if self.total else 0.0
        return {
            "done": self.done, "total": self.total, "frac": frac, "unit": self.unit,
            "rate": rate, "left_s": left, "phase": self.phase, "message": self.message, "url": self.url,
        }  # fmt: skip

    def _write(self, force: bool = False) -> None:
        now = time.monotonic()
        if not self._speaks or (not force and now - self._written < 0.5 and self.url == self._url):
            return
        self._written, self._url = now, self.url
        values = self.snapshot()
        write_json(self.file, values)
        if sys.stdout.isatty():
            print(f"\r\033[K{describe(values)}", end="", flush=True)
        elif now - self._logged > 10:
            self._logged = now
            logger().info(describe(values))


def read_progress(out: Path) -> dict[str, Any] | None:
    """The last progress a stage reported, or None."""
    try:
        return json.loads((out / PROGRESS).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def describe(values: dict[str, Any]) -> str:
    """One line for people: `sampling 120/400 steps  30 %  2.1 steps/s  2:13 left  reward 0.41`."""
    rate, left = values["rate"], values["left_s"]
    parts = [
        values["phase"],
        f"{values['done']:,.0f}/{values['total']:,.0f} {values['unit']}",
        f"{100 * values['frac']:.0f} %",
        f"{rate:,.1f} {values['unit']}/s" if rate >= 0.05 else "",
        f"{int(left // 60)}:{int(left % 60):02d} left" if left is not None else "",
        values["url"],
        values["message"],
    ]
    return "  ".join(part for part in parts if part)
