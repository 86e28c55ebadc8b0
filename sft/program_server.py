"""Runs programs: one process that imports the libraries they use, and a fork with resource limits for each program.

Reads lines `{"programs": [...], "timeout_s": s}` and answers each with one line: a list of [printed text, error or null] per
program, or null when the time was over. Programs of one request share a namespace, as the cells of a notebook do.

This is a subprocess with rlimits (CPU time, memory, file size) in a scratch directory, without HOME and, where the kernel lets an
ordinary user unshare it, without network. It is not a sandbox: it keeps honest programs from doing damage by accident, not
hostile ones. `network` in its first line says whether the network is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from typing import Any

LIBRARIES = {
    "numpy": "import numpy",
    "sympy": "import sympy, sympy.abc; x, y = sympy.symbols('x y'); sympy.solve((x + y - 3, x / y - 2), (x, y)); sympy.simplify(x + x)",
}
"""What the server itself imports before the first program that names it; sympy loads parts of itself on their first use."""
MEMORY_BYTES = 2 * 2**30
"""Address space of a program, libraries included."""
FILE_BYTES = 2**20
MAX_PRINTED_CHARS = 20_000
MAX_DESCRIPTORS = 1024
WALL_FACTOR = 4
"""Seconds on the clock per second of CPU time after which a program that sleeps or waits is ended."""
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def cut_network() -> bool:
    """Leave the machine's network for good; False where the kernel does not allow it."""
    return ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0


def preload(programs: list[str]) -> None:
    """Import the libraries that the programs name, so that forks need not."""
    for name, statement in LIBRARIES.items():
        if name not in sys.modules and any(name in program for program in programs):
            with contextlib.suppress(ImportError):
                exec(statement, {})
            gc.collect()
            gc.freeze()


def limit(timeout_s: float) -> None:
    """Bound this process."""
    seconds = int(timeout_s)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Printed(io.StringIO):
    """What a program prints, up to a limit: what is cut would be taken for its answer."""

    def write(self, text: str) -> int:
        if self.tell() + len(text) > MAX_PRINTED_CHARS:
            raise ValueError(f"more than {MAX_PRINTED_CHARS:,} characters printed")
        return super().write(text)


def execute(program: str, namespace: dict[str, Any]) -> list[str | None]:
    """[printed, error or None] of one program; any exception is the program's, and `exit()` is none."""
    printed, error = Printed(), None
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(program, "<program>", "exec"), namespace)
    except BaseException as raised:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of a program too end only the program
        if not (isinstance(raised, SystemExit) and raised.code in (None, 0)):
            error = traceback.format_exception_only(raised)[-1].strip()
    return [encodable(printed.getvalue().strip()), error and encodable(error)]


def encodable(text: str) -> str:
    """The text with its unpaired surrogates written as escapes: no file can hold them."""
    return text.encode(errors="backslashreplace").decode()


def child(programs: list[str], timeout_s: float, scratch: str, pipe: int) -> None:
    """What the fork does: run the programs, write the results to `pipe` as one line, end."""
    os.setsid()
    pid = os.getpid()
    os.chdir(scratch)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.closerange(3, pipe)  # the server's own channels
    os.closerange(pipe + 1, MAX_DESCRIPTORS)
    limit(timeout_s)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    results = json.dumps([execute(program, namespace) for program in programs]).encode() + b"\n"
    while results and os.getpid() == pid:  # a fork of the program comes here too
        results = results[os.write(pipe, results) :]
    os._exit(0)


def run(programs: list[str], timeout_s: float, scratch: str) -> list[list[str | None]] | None:
    """Results of the programs, or None when the fork was ended before it had them: out of time or memory."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            child(programs, timeout_s, scratch, writer)
        finally:
            os._exit(1)
    os.close(writer)
    results, deadline = b"", time.monotonic() + WALL_FACTOR * timeout_s
    while not results.endswith(b"\n") and select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reader, 2**16)
        if not part:
            break
        results += part
    os.close(reader)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return json.loads(results) if results.endswith(b"\n") else None


def serve() -> None:
    """Answer requests on standard input until it closes."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    has_network = not cut_network()
    print(json.dumps({"network": has_network}), file=answers, flush=True)
    for line in requests:
        request = json.loads(line)
        preload(request["programs"])
        with tempfile.TemporaryDirectory(prefix="mathpipe-programs-", ignore_cleanup_errors=True) as scratch:
            results = run(request["programs"], request["timeout_s"], scratch)
        print(json.dumps(results), file=answers, flush=True)


if __name__ == "__main__":
    sys.setrecursionlimit(10_000)
    serve()
