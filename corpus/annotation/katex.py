"""TeX to MathML in a process of its own.

PyKaTeX runs KaTeX in QuickJS, works only in the thread that imported it, and on deep nesting corrupts memory and ends its
process; crawled pages hold such formulas. So a child renders, one JSON line in, one out; a formula at which it dies or is
slow stays TeX, and the next child goes on with the others.

    python -m mathpipe.corpus.annotation.katex    # the child
"""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

MAX_SECONDS = 4.0
"""A page's formulas have so long."""
MAX_DEATHS = 3
"""After so many deaths the rest of a page stays TeX."""
MEMORY_BYTES = 1 << 30

EQNARRAY = re.compile(r"\\(begin|end)\{eqnarray\*?\}")
"""An environment of old LaTeX that KaTeX lacks."""

Formula = tuple[str, bool]
"""(TeX, whether it stands on a line of its own)."""


class Renderers:
    """Children that render, started when needed; used from any thread."""

    def __init__(self, num_processes: int = 2) -> None:
        self._free: queue.Queue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(num_processes):
            self._free.put(None)

    def mathml(self, formulas: Sequence[Formula]) -> list[str | None]:
        """MathML by formula, None where it stays TeX."""
        out: list[str | None] = []
        deaths, ends_at = 0, time.monotonic() + MAX_SECONDS
        child = self._free.get()
        try:
            while len(out) < len(formulas) and deaths < MAX_DEATHS and time.monotonic() < ends_at:
                child = child if child and child.poll() is None else _start()
                out += _render(child, formulas[len(out) :], ends_at)
                if child.poll() is not None and len(out) < len(formulas):
                    deaths += 1
                    out.append(None)
        finally:
            self._free.put(child)
        return out + [None] * (len(formulas) - len(out))

    def close(self) -> None:
        """End the children."""
        for _ in range(self._free.qsize()):
            child = self._free.get()
            if child:
                child.kill()
                child.communicate()
            self._free.put(None)


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", __spec__.name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def _render(child: subprocess.Popen[bytes], formulas: Sequence[Formula], ends_at: float) -> list[str | None]:
    """What the child answers until it has answered all or died; it is killed at `ends_at`."""
    assert child.stdin and child.stdout
    killer = threading.Timer(max(0.0, ends_at - time.monotonic()), child.kill)
    killer.start()
    answers: list[str | None] = []
    try:
        child.stdin.write(json.dumps(formulas).encode() + b"\n")
        child.stdin.flush()
        while len(answers) < len(formulas) and (line := child.stdout.readline()).endswith(b"\n"):
            answers.append(json.loads(line))
    except BrokenPipeError:
        pass  # it has died: the caller sees that
    finally:
        killer.cancel()
    if len(answers) < len(formulas):
        child.kill()
        child.communicate()
    return answers


def render(tex: str, is_display: bool) -> str | None:
    """MathML; None where KaTeX cannot read it.

    Raises:
        pykatex.ParseError: QuickJS failed; the process must end.
    """
    import pykatex

    tex = EQNARRAY.sub(lambda found: r"\begin{array}{rcl}" if found[1] == "begin" else r"\end{array}", tex)
    try:
        html = pykatex.renderToString(tex, output="mathml", displayMode=is_display, throwOnError=False, strict="ignore")
    except (ValueError, UnicodeEncodeError):  # NUL, lone surrogates
        return None
    return None if 'class="katex-error"' in html else html


def main() -> None:
    """Answer lines until standard input ends; after a failure inside QuickJS, die."""
    import resource

    import pykatex

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        for tex, is_display in json.loads(line):
            try:
                answer = render(tex, is_display)
            except pykatex.ParseError:
                os._exit(1)
            sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
