"""The warm worker of a sandbox: an interpreter, started inside it, that forks a child for each program. sandbox.py starts it.

    python -m mathpipe.eval.sandbox_worker KIND READABLE…

It never sees a program or its output. Each request, a message on the socket that is its standard input, names libraries and limits and
carries three files: the program (a JSON list of cells), its standard output and a report. The child reads, limits itself, runs the cells
in one namespace and writes a line for each into the report: where the output then ended, and the last line of the traceback. The
worker kills the child's process group when it has ended or its time is over, and answers how it ended. What a child writes into the
report or the output is about itself alone; how it ended, the kernel says.

Hash seed, `random` and `numpy.random` start equal in every program. Standard library only.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import json
import math
import os
import random
import resource
import select
import signal
import socket
import sys
import time
import traceback
import types
from typing import Any

from mathpipe.eval import sandbox_kernel

LIBRARIES = {
    "numpy": "import numpy; numpy.random.seed(0)",
    "sympy": "import sympy, sympy.abc; x, y = sympy.symbols('x y'); sympy.solve((x + y - 3, x / y - 2), (x, y)); sympy.simplify(x + x)",
}
"""What the worker imports before the first program that names it; sympy loads parts of itself on their first use."""
FILE_BYTES = 2**20
"""Largest file of a program; it can write to none but its output and report."""
MAX_DESCRIPTORS = 64
MAX_ERROR_CHARS = 500
MAX_RECURSION = 10_000
REQUESTS, REPORT = 0, 3
"""Descriptors: of the worker's socket, of the report in a child."""
PROBES = (
    ("open a socket", lambda: socket.socket()),
    ("read /etc/passwd", lambda: os.close(os.open("/etc/passwd", os.O_RDONLY))),
    ("write a file", lambda: os.close(os.open("probe", os.O_WRONLY | os.O_CREAT))),
    ("start a process", lambda: os.fork() or os._exit(0)),
    ("signal its parent", lambda: os.kill(os.getppid(), 0)),
)
"""What a child must not be able to do, tried before the first program."""


def preload(libraries: list[str]) -> None:
    """Import what the programs name, so that forks need not."""
    for name in libraries:
        if name not in sys.modules:
            with contextlib.suppress(ImportError):
                exec(LIBRARIES[name], {})
            gc.collect()
            gc.freeze()


def limit(request: dict[str, Any], sandboxed: bool) -> None:
    """Bound this process, and take from it what the kernel can take."""
    seconds = math.ceil(request["cpu_s"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, then SIGKILL for those who ignore it
    resource.setrlimit(resource.RLIMIT_AS, (request["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_DESCRIPTORS,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sandbox_kernel.end_with_parent()
    if sandboxed:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        sandbox_kernel.filter_system_calls()


def execute(cell: str, namespace: dict[str, Any]) -> str:
    """The last line of a cell's traceback, "" without one; any exception is the program's, and `exit()` is none."""
    try:
        exec(compile(cell, "<program>", "exec"), namespace)
    except BaseException as raised:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of a program too end only the program
        if not (isinstance(raised, SystemExit) and raised.code in (None, 0)):
            return traceback.format_exception_only(raised)[-1].strip() or "an exception that says nothing"
    return ""


def run_cells(cells: list[str]) -> None:
    """Run the cells, as those of a notebook, and write the report."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = ["<program>"]
    random.seed(0)
    for cell in cells:
        error = execute(cell, vars(main))
        with contextlib.suppress(BaseException):  # of whatever the program has put there
            sys.stdout.flush()
        end = 0
        with contextlib.suppress(OSError):  # it has closed its output
            end = os.fstat(1).st_size
        line = " ".join(error[:MAX_ERROR_CHARS].split()).encode(errors="backslashreplace")
        os.write(REPORT, b"%d %s\n" % (end, line))


def child(request: dict[str, Any], files: list[int], sandboxed: bool) -> None:
    """What the fork does."""
    os.setsid()
    program, output, report = files
    cells = json.loads(os.pread(program, os.fstat(program).st_size, 0))
    for descriptor, place in ((1, 0), (1, 2), (output, 1), (report, REPORT)):  # the worker's own output is /dev/null
        os.dup2(descriptor, place)
    os.closerange(REPORT + 1, 2 * MAX_DESCRIPTORS)
    for number in (signal.SIGXFSZ, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    limit(request, sandboxed)
    run_cells(cells)


def fork(request: dict[str, Any], files: list[int], sandboxed: bool) -> int:
    """Process id of a child that runs the program."""
    pid = os.fork()
    if pid == 0:
        try:
            child(request, files, sandboxed)
            os._exit(0)
        finally:
            os._exit(70)
    return pid


def wait(pid: int, wall_s: float) -> dict[str, Any]:
    """How the child ended, by itself or killed when its time was over or nobody asks any more; none of its process group is left."""
    began = time.monotonic()
    process = os.pidfd_open(pid)
    ended = process in select.select([process, REQUESTS], [], [], wall_s)[0]
    os.close(process)
    for kill, number in ((os.kill, pid), (os.killpg, pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(number, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return {
        "code": os.waitstatus_to_exitcode(status), "timed_out": not ended, "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": time.monotonic() - began,
    }  # fmt: skip


def probe() -> str:
    """What a child could do that none must; "" when all is as it should be."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            limit({"cpu_s": 5, "memory_bytes": resource.RLIM_INFINITY}, sandboxed=True)
            for what, attempt in PROBES:
                with contextlib.suppress(OSError):
                    attempt()
                    os.write(writer, f"a program could {what}; ".encode())
            os.write(writer, b".")
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    found = os.read(reader, 2**12).decode()
    os.close(reader)
    return found.removesuffix(".") if found.endswith(".") else f"{found}the trial ended early"


def serve(kind: str, readable: list[str]) -> None:
    """Say that the sandbox holds, then answer requests until the other side closes.

    Raises:
        OSError: the kernel refuses something, or the trial could do what it must not.
    """
    sandboxed = kind != "none"
    sandbox_kernel.end_with_parent()
    if sandboxed:
        sandbox_kernel.give_up_privileges()
    if kind == "landlock":
        sandbox_kernel.restrict_files(readable)
    if sandboxed and (found := probe()):
        raise OSError(found)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # which `site` would have made
    sys.setrecursionlimit(MAX_RECURSION)
    with socket.socket(fileno=REQUESTS) as requests:
        requests.send(b"ready")
        while True:
            message, files, _, _ = socket.recv_fds(requests, 2**12, 3)
            if not message:
                return
            request = json.loads(message)
            preload(request["libraries"])
            pid = fork(request, files, sandboxed)
            for file in files:
                os.close(file)
            requests.send(json.dumps(wait(pid, request["wall_s"])).encode())


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
