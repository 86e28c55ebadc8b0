"""Runs programs that a model wrote, for SFT's verification, GRPO's rewards and evaluation, as if each were hostile.

- `bubblewrap`: namespaces of its own for users, processes, network, IPC and host name, and a read-only view of the interpreter, its
  libraries and the system's: there is no /proc, no home, no project. And all that follows.
- `landlock`, where bubblewrap cannot run (no user namespaces): Landlock lets a program read the same paths. And all that follows.
- `none`: limits on CPU time, clock, memory, file size and output, and the end of its process group; no sandbox. For known programs.

Under the first two a filter of system calls (sandbox_kernel.py) leaves no process, thread, socket, signal to others, or file opened for
writing. A warm worker (sandbox_worker.py) forks a child for each program, so nothing of one is left for the next. `auto` takes the first
of the two that works here, never `none`. What a program can still learn of the machine: its CPUs, memory and time, and under `landlock`
whether a file exists, its size and times (stat) and where a link points, but no contents and no listing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGXCPU, SIGXFSZ, Signals
from typing import Any, Literal

from mathpipe.eval.sandbox_worker import FILE_BYTES, LIBRARIES, MAX_ERROR_CHARS
from mathpipe.pipeline.config import SANDBOXES, ConfigError

Status = Literal["ok", "error", "timeout", "memory", "output", "killed"]
KINDS = tuple(kind for kind in SANDBOXES if kind not in ("auto", "none"))
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace",
    "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip
"""All of a program's environment."""
SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
SOURCES = "/sandbox"
"""Where the worker's own source lies inside bubblewrap."""
WALL_FACTOR = 4
"""Seconds on the clock per second of CPU time after which a program that sleeps or waits is ended."""
START_TIMEOUT_S = 120.0
"""For a worker to start, and to import libraries; also how long one may be late with its answer before it is replaced."""
ATTEMPTS = 2
"""For a program whose worker is lost; that may be another's doing, such as of who frees memory."""
END_TIMEOUT_S = 1.0
"""For a worker to end by itself before it is killed."""
INSTALL = 'install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap), or run programs unprotected with runtime.sandbox = "none"'


class SandboxError(ConfigError):
    """No sandbox of the kind asked for works on this machine."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended and what it printed."""

    status: Status
    """`ok`, `error` (an exception, or an exit code), `timeout` (CPU or clock), `memory`, `output` (too much), `killed` (a signal)."""
    stdout: str
    """What it printed, cut to the limit; what no text can hold is written as an escape."""
    error: str
    """Last line of the traceback, or how it was ended; "" when it is ok."""
    wall_s: float
    """Seconds on the clock, of all cells of a notebook together."""
    cpu_s: float
    """CPU seconds, of all cells together."""


class Sandbox:
    """Runs programs side by side, each apart from all else; use it in a `with` block. Its workers start when the first program comes."""

    def __init__(
        self, kind: str = "auto", num_workers: int = 2, timeout_s: float = 5.0, memory_bytes: int = 2**30, output_chars: int = 20_000
    ) -> None:
        """`timeout_s` are CPU seconds of a program (whole ones, rounded up), `memory_bytes` its address space with libraries."""
        if kind not in SANDBOXES:
            raise ValueError(f"sandbox must be {', '.join(SANDBOXES[:-1])} or none, found {kind!r}")
        self.kind, self.timeout_s, self.memory_bytes, self.output_chars = kind, timeout_s, memory_bytes, output_chars
        self._workers: list[_Worker] = []
        self._is_closed = False
        self._local, self._lock = threading.local(), threading.Lock()
        self._pool = ThreadPoolExecutor(num_workers)  # a worker ends with the thread that started it: the kernel sees to that

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and what they run."""
        self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.hang_up()
        self._pool.shutdown()
        for worker in self._workers:
            worker.close()

    def run(self, programs: Sequence[str]) -> list[Outcome]:
        """Outcomes in order. May be called from several threads.

        Raises:
            SandboxError: no sandbox works here.
        """
        return [outcome for (outcome,) in self.run_notebooks([program] for program in programs)]

    def run_notebooks(self, notebooks: Iterable[Sequence[str]]) -> list[list[Outcome]]:
        """Outcomes of the cells of each notebook: they share one process and its namespace, and a cell runs even if one before it failed.

        Raises:
            SandboxError: no sandbox works here.
        """
        return list(self._pool.map(self._one, notebooks))

    def _one(self, cells: Sequence[str]) -> list[Outcome]:
        for _ in range(ATTEMPTS):
            worker = getattr(self._local, "worker", None) or self._start()
            try:
                return worker.run(cells, self.timeout_s, self.memory_bytes, self.output_chars)
            except OSError as error:  # the worker is gone or does not answer: another takes its place, the others go on
                worker.close()
                del self._local.worker
                reason = f"the sandbox ended ({error})"
                if self._is_closed:
                    break
        return [Outcome("killed", "", reason, 0.0, 0.0) for _ in cells]

    def _start(self) -> _Worker:
        with self._lock:
            if self.kind == "auto":
                self.kind, worker = choose()
            else:
                worker = _Worker(self.kind)
            self._workers.append(worker)
        self._local.worker = worker
        return worker


def choose() -> tuple[str, _Worker]:
    """The first kind of sandbox that works here, and a worker in it.

    Raises:
        SandboxError: none does.
    """
    reasons = []
    for kind in KINDS:
        try:
            return kind, _Worker(kind)
        except SandboxError as error:
            reasons.append(str(error).removesuffix(f"; {INSTALL}"))
    raise SandboxError(f"programs are not run without a sandbox, and none works here: {'; '.join(reasons)}; {INSTALL}")


class _Worker:
    """A process that runs one program after the other."""

    def __init__(self, kind: str) -> None:
        if kind == "bubblewrap" and shutil.which("bwrap") is None:
            raise SandboxError(f"bubblewrap: there is no bwrap; {INSTALL}")
        self._folder = tempfile.TemporaryDirectory(prefix="mathpipe-sandbox-")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(START_TIMEOUT_S)
        with theirs, tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                command(kind), env=ENVIRONMENT | paths(kind), cwd=self._folder.name, stdin=theirs.fileno(), stdout=subprocess.DEVNULL,
                stderr=errors, start_new_session=True,
            )  # fmt: skip
            theirs.close()
            try:
                ready = self._socket.recv(2**12) == b"ready"
            except OSError:
                ready = False
            if not ready:
                self.close()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines() or ["it does not start"]
                raise SandboxError(f"{kind}: {said[-1]}; {INSTALL}")

    def run(self, cells: Sequence[str], timeout_s: float, memory_bytes: int, output_chars: int) -> list[Outcome]:
        """Outcomes of the cells.

        Raises:
            OSError: the worker has ended or does not answer.
        """
        libraries = [name for name in LIBRARIES if any(name in cell for cell in cells)]
        wall_s = WALL_FACTOR * timeout_s
        request = {"libraries": libraries, "cpu_s": timeout_s, "wall_s": wall_s, "memory_bytes": memory_bytes}
        with contextlib.ExitStack() as stack:
            program, output, report = files = [os.memfd_create(name) for name in ("program", "output", "report")]
            for file in files:
                stack.callback(os.close, file)
            with open(program, "wb", closefd=False) as writer:
                writer.write(json.dumps(list(cells)).encode())
            socket.send_fds(self._socket, [json.dumps(request).encode()], files)
            self._socket.settimeout(wall_s + START_TIMEOUT_S)
            answer = self._socket.recv(2**12)
            if not answer:
                raise ConnectionResetError("its worker has ended")
            reported = read_report(os.pread(report, FILE_BYTES, 0), len(cells))
            return outcomes(json.loads(answer), reported, os.pread(output, FILE_BYTES, 0), len(cells), timeout_s, output_chars)

    def hang_up(self) -> None:
        """Let the process end by itself, and with it all that it started; who waits for its answer gets none."""
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the process."""
        self.hang_up()
        self._socket.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def libraries_paths() -> list[str]:
    """Folders with the packages that programs may import."""
    specs = [importlib.util.find_spec(name) for name in LIBRARIES]
    return sorted({str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin})


def readable() -> list[str]:
    """What a program may read: interpreter, libraries, devices without memory."""
    return [*dict.fromkeys(path for path in (*SYSTEM, sys.base_prefix, *libraries_paths(), *DEVICES) if Path(path).exists())]


def command(kind: str) -> list[str]:
    """What starts a worker."""
    worker = ["-P", "-s", "-m", "mathpipe.eval.sandbox_worker", kind]
    if kind != "bubblewrap":
        return [sys.executable, *worker, *(readable() if kind == "landlock" else [])]
    binds = [part for path in readable() for part in ("--dev-bind" if path in DEVICES else "--ro-bind", path, path)]
    for name in ("sandbox_worker.py", "sandbox_kernel.py"):
        binds += ["--ro-bind", str(Path(__file__).with_name(name)), f"{SOURCES}/mathpipe/eval/{name}"]
    environment = [part for pair in (ENVIRONMENT | paths(kind)).items() for part in ("--setenv", *pair)]
    return [
        "bwrap", "--unshare-all", "--die-with-parent", "--clearenv", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox",
        *environment, "--tmpfs", "/tmp", *binds, "--remount-ro", "/tmp", "--remount-ro", "/", "--chdir", "/tmp",
        str(Path(sys.executable).resolve()), "-S", *worker,
    ]  # fmt: skip


def paths(kind: str) -> dict[str, str]:
    """Where a worker finds its modules: in bubblewrap only what is listed, else as this process does."""
    if kind == "bubblewrap":
        return {"PYTHONPATH": ":".join([SOURCES, *libraries_paths()])}
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}


def read_report(report: bytes, num_cells: int) -> list[tuple[int, str]]:
    """(where its output ended, error) of each cell that was finished. The child may have written anything there."""
    found = []
    for line in report.split(b"\n")[:-1][:num_cells]:
        end, _, error = line.partition(b" ")
        if not end.isdigit() or len(end) > 9:
            break
        found.append((int(end), error[:MAX_ERROR_CHARS].decode(errors="backslashreplace")))
    return found


def outcomes(
    answer: dict[str, Any], reported: Sequence[tuple[int, str]], output: bytes, num_cells: int, timeout_s: float, output_chars: int
) -> list[Outcome]:
    """Outcomes of the cells, from how the process ended (`answer`), the report and the output."""
    ending = how_it_ended(answer, timeout_s)
    if ending:  # it also ends the cell that claims to be the last one finished
        reported = reported[: num_cells - 1]
    found: list[Outcome] = []
    start = 0
    for n in range(num_cells):
        end, error = reported[n] if n < len(reported) else (len(output), "")
        end = min(max(start, end), len(output))
        text = output[start:end].decode(errors="backslashreplace")
        start = end
        status: Status = "ok"
        if n >= len(reported) and ending:
            status, error = ending
        elif error:
            status = "memory" if error.partition(":")[0].endswith("MemoryError") else "error"
        if status == "ok" and len(text) > output_chars:
            status, error = "output", f"more than {output_chars:,} characters printed"
        found.append(Outcome(status, text[:output_chars], error, answer["wall_s"], answer["cpu_s"]))
    return found


def how_it_ended(answer: dict[str, Any], timeout_s: float) -> tuple[Status, str] | None:
    """(status, error) of a process that did not end by itself with exit code 0."""
    code = answer["code"]
    if answer["timed_out"]:
        return "timeout", f"no end after {WALL_FACTOR * timeout_s:g} s"
    if code == -SIGXCPU or (code == -SIGKILL and answer["cpu_s"] >= timeout_s):
        return "timeout", f"more than {timeout_s:g} s of CPU time"
    if code == -SIGXFSZ:
        return "output", f"more than {FILE_BYTES:,} bytes printed"
    if code < 0:
        return "killed", f"ended by {Signals(-code).name if -code in Signals._value2member_map_ else f'signal {-code}'}"
    return ("error", f"exit code {code}") if code else None
