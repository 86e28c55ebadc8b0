"""Hostile programs come to nothing and hold nothing up; honest ones run; without a sandbox nothing runs."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hostile_programs import EFFECTIVE, HOSTILE, PRELUDE, Hostile
from hypothesis import given
from hypothesis import strategies as st

from mathpipe.eval import sandbox
from mathpipe.eval.sandbox import KINDS, Outcome, Sandbox, SandboxError, outcomes, read_report
from mathpipe.pipeline.config import ConfigError, Runtime

SECRET = "correct-horse-battery"
NEXT = "import builtins, os, sys\nprint(sum([20, 22]), os.environ.get('EVIL'), hasattr(builtins, 'evil'), 'evil' in sys.modules)"
ANSWER = "42 None False False\n"
"""What a program prints on which the one before it left no trace."""
SLOW = [hostile for hostile in HOSTILE if "timeout" in hostile.status]
QUICK = [hostile for hostile in HOSTILE if hostile not in SLOW]
HONEST = [
    ("print(6 * 7)", "42"),
    ("import sympy\nx = sympy.symbols('x')\nprint(sympy.solve(x**2 - 4, x))", "[-2, 2]"),
    ("from sympy import *\nprint(integrate(sin(symbols('t')), (symbols('t'), 0, pi)))", "2"),
    ("import numpy as np\nprint(np.linalg.det(np.array([[2.0, 0], [0, 3]])).round(3))", "6.0"),
    ("import math, itertools, fractions, decimal, statistics\nprint(fractions.Fraction(1, 3) + math.comb(5, 2))", "31/3"),
    ("from dataclasses import dataclass\n@dataclass\nclass A:\n  n: int\nprint(A(3))", "A(n=3)"),
    ("import copy, pickle\nclass A: n = 1\nprint(pickle.loads(pickle.dumps(A())).n)", "1"),
    ("import time, signal\nsignal.signal(signal.SIGALRM, lambda *_: print('rang'))\nsignal.alarm(1)\ntime.sleep(1.2)", "rang"),
    ("import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()) as f: print(1)\nprint(f.getvalue().strip() + '!')", "1!"),
    ("import datetime\nprint(datetime.date(2024, 2, 28) + datetime.timedelta(2))", "2024-03-01"),
    ("def f(n): return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f(15))", "610"),
    ("import sys\nsys.setrecursionlimit(5000)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(4000))", "4000"),
    ("if __name__ == '__main__': print('小明')\nexit()", "小明"),
    ("import os\nprint(sorted(os.environ) == sorted(set(os.environ)), os.getpid() > 1, 'HOME' in os.environ)", "True True False"),
]
FAILURES = [
    ("1 / 0", "error", "ZeroDivisionError: division by zero"),
    ("print(", "error", "SyntaxError: '(' was never closed"),
    ("import sys\nsys.exit(3)", "error", "SystemExit: 3"),
    ("import os\nos._exit(3)", "error", "exit code 3"),
    ("raise KeyboardInterrupt", "error", "KeyboardInterrupt"),
    ("import numpy\nnumpy.zeros(10**12)", "memory", "numpy._core._exceptions._ArrayMemoryError: Unable to allocate"),
    ("print('x' * 30_000)", "output", "more than 20,000 characters printed"),
    ("print('x' * 2 * 10**6)", "output", "more than 1,048,576 bytes printed"),
    ("e = ValueError('first')\ne.add_note('')\nraise e", "error", "an exception that says nothing"),
    ("import os\nos.abort()", "killed", "ended by SIGABRT"),
]


@dataclass
class Victims:
    """What hostile programs are after."""

    folder: Path
    process: subprocess.Popen[bytes]
    listeners: dict[str, socket.socket]

    def prelude(self) -> str:
        ports = {name: one.getsockname()[1] for name, one in self.listeners.items() if one.family in (socket.AF_INET, socket.AF_INET6)}
        names = {
            "FOLDER": str(self.folder / "open"), "PRECIOUS": str(self.folder / "open" / "precious"), "SECRET": str(self.folder / "secret"),
            "UNIX": str(self.folder / "listening"), "ABSTRACT": self.folder.name, "VICTIM": self.process.pid, "PARENT": os.getpid(),
            "PORT6": 1, **ports,
        }  # fmt: skip
        return "".join(f"{name} = {value!r}\n" for name, value in names.items()) + PRELUDE

    def harm(self, outcome: Outcome) -> list[str]:
        """What a program got."""
        found = [line for line in outcome.stdout.splitlines() if line.startswith("BREACH")]
        if SECRET in outcome.stdout + outcome.error:
            found.append("a secret was read")
        folder = self.folder / "open"
        if [path.name for path in folder.iterdir()] != ["precious"] or (folder / "precious").read_text() != "precious":
            found.append("files were changed")
        if (folder / "precious").stat().st_mtime != 1e9 or (self.folder / "secret").stat().st_mode & 0o777 != 0o600:
            found.append("times or modes were changed")
        for name, listener in self.listeners.items():
            with contextlib.suppress(BlockingIOError):
                listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()[0].close()
                found.append(f"{name} was reached")
        if self.process.poll() is not None or psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED:
            found.append("a process was signalled")
        return found


@contextlib.contextmanager
def made_victims(folder: Path) -> Iterator[Victims]:
    (folder / "open").mkdir(parents=True)
    (folder / "open" / "precious").write_text("precious")
    os.utime(folder / "open" / "precious", (1e9, 1e9))
    (folder / "secret").write_text(SECRET)
    (folder / "secret").chmod(0o600)
    addresses: dict[str, tuple[int, int, object]] = {
        "PORT": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)), "UDP": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        "UNIX": (socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "listening")),
        "ABSTRACT": (socket.AF_UNIX, socket.SOCK_STREAM, "\0" + folder.name),
    }  # fmt: skip
    if socket.has_dualstack_ipv6():
        addresses["PORT6"] = (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0))
    with contextlib.ExitStack() as stack:
        listeners = {}
        for name, (family, kind, address) in addresses.items():
            listeners[name] = stack.enter_context(socket.socket(family, kind))
            listeners[name].bind(address)
            listeners[name].setblocking(False)
            if kind == socket.SOCK_STREAM:
                listeners[name].listen()
        process = stack.enter_context(subprocess.Popen(["sleep", "3600"], env={"TOKEN": SECRET}))
        stack.callback(process.kill)
        yield Victims(folder, process, listeners)


def unavailable(kind: str) -> str:
    """Why a kind of sandbox cannot be had here, or ""."""
    try:
        with Sandbox(kind, 1) as made:
            made.run(["pass"])
    except SandboxError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module", params=KINDS)
def box(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if reason := unavailable(request.param):
        pytest.skip(reason)
    with Sandbox(request.param, 1, timeout_s=2.0) as made:
        yield made


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    with made_victims(tmp_path_factory.mktemp("victims")) as made:
        yield made


@pytest.mark.parametrize("hostile", QUICK, ids=lambda hostile: hostile.name)
def test_hostile_programs_come_to_nothing(box: Sandbox, victims: Victims, hostile: Hostile) -> None:
    before, outcome, after = box.run(["print('swordfish')", victims.prelude() + hostile.program, NEXT])
    assert victims.harm(outcome) == []
    assert outcome.status in hostile.status.split(), f"{hostile.why}; found {outcome.status}: {outcome.error}"
    assert (before.stdout, len(outcome.error) < 600, len(outcome.stdout) <= 20_000) == ("swordfish\n", True, True)
    (outcome.stdout + outcome.error).encode()  # a file can hold it
    assert (after.status, after.stdout) == ("ok", ANSWER), after


def test_programs_that_would_hold_up_the_queue_are_ended(box: Sandbox, victims: Victims) -> None:
    programs = [program for hostile in SLOW for program in (victims.prelude() + hostile.program, NEXT)]
    began = time.monotonic()
    with Sandbox(box.kind, 4, timeout_s=1.0) as made:
        found = made.run(programs)
    for hostile, outcome, after in zip(SLOW, found[::2], found[1::2], strict=True):
        assert outcome.status in hostile.status.split(), f"{hostile.name}: {hostile.why}; found {outcome}"
        assert victims.harm(outcome) == []
        assert (after.status, after.stdout) == ("ok", ANSWER), after
    assert time.monotonic() - began < len(SLOW) * sandbox.WALL_FACTOR


@pytest.mark.parametrize("name", EFFECTIVE)
def test_without_a_sandbox_the_same_programs_do_harm(tmp_path: Path, name: str, loose: Sandbox) -> None:
    (hostile,) = [one for one in HOSTILE if one.name == name]
    with made_victims(tmp_path / "victims") as victims:
        (outcome,) = loose.run([victims.prelude() + hostile.program])
        time.sleep(0.05)  # for a signal to arrive
        assert victims.harm(outcome) != []


@pytest.fixture(scope="module")
def loose() -> Iterator[Sandbox]:
    with Sandbox("none", 1, timeout_s=1.0) as made:
        yield made


def test_honest_programs_run_and_failures_have_their_names(box: Sandbox) -> None:
    found = box.run([program for program, _ in HONEST])
    assert [(outcome.status, outcome.stdout.strip(), outcome.error) for outcome in found] == [("ok", text, "") for _, text in HONEST]
    assert all(0 < outcome.cpu_s <= outcome.wall_s + 0.1 for outcome in found)
    for (program, status, error), outcome in zip(FAILURES, box.run([program for program, *_ in FAILURES]), strict=True):
        assert outcome.status == status and outcome.error.startswith(error), (program, outcome)


def test_chance_is_the_same_in_every_program(box: Sandbox, loose: Sandbox) -> None:
    program = "import random\nimport numpy\nprint(random.random(), numpy.random.rand(), hash('a'), list({'b', 'c', 'd'}))"
    assert len({outcome.stdout for outcome in [*box.run([program] * 2), *loose.run([program])]}) == 1


def test_cells_share_a_namespace_and_have_an_outcome_each(box: Sandbox) -> None:
    ((first, broken, last),) = box.run_notebooks([["x = 5\nprint(x)", "print('so far')\n1 / 0", "print(x + 1)"]])
    assert [(one.status, one.stdout) for one in (first, broken, last)] == [("ok", "5\n"), ("error", "so far\n"), ("ok", "6\n")]
    ((first, second, third),) = box.run_notebooks([["print(1)", "print(2, flush=True)\nwhile True: pass", "print(3)"]])
    assert [(one.status, one.stdout) for one in (first, second, third)] == [("ok", "1\n"), ("timeout", "2\n"), ("timeout", "")]


def test_outcomes_stand_in_order_from_several_threads() -> None:
    found: dict[int, list[str]] = {}
    with Sandbox(num_workers=3) as made:
        def run(n: int) -> None:
            found[n] = [outcome.stdout for outcome in made.run([f"print({n}, {i})" for i in range(20)])]

        threads = [threading.Thread(target=run, args=(n,)) for n in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert found == {n: [f"{n} {i}\n" for i in range(20)] for n in range(3)}


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_worker_that_is_killed_is_replaced_and_none_is_left(monkeypatch: pytest.MonkeyPatch, attempts: int) -> None:
    """In the middle of a program, which is not to blame and has another try."""
    monkeypatch.setattr(sandbox, "ATTEMPTS", attempts)
    before = set(psutil.Process().children(recursive=True))

    def kill() -> None:
        for child in set(psutil.Process().children(recursive=True)) - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    with Sandbox(num_workers=1) as made:
        assert made.run(["print(1)"])[0].stdout == "1\n"
        timer = threading.Timer(0.3, kill)
        timer.start()
        lost, after = made.run(["import time\ntime.sleep(1)\nprint(2)", "print(3)"])
        timer.join()
        assert (lost.status, lost.stdout) == (("killed", "") if attempts == 1 else ("ok", "2\n")) and after.stdout == "3\n"
        assert ("sandbox ended" in lost.error) == (attempts == 1)
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_parent_that_is_killed_or_interrupted(box: Sandbox, number: int) -> None:
    run = f"with Sandbox({box.kind!r}, 1, timeout_s=60.0) as box:\n  box.run(['while True: pass'] * 3)"
    code = f"import signal\nsignal.signal(2, signal.default_int_handler)\nfrom mathpipe.eval.sandbox import Sandbox\n{run}"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 60.0
        expected = {"bubblewrap": 4, "landlock": 2}[box.kind]  # bwrap and its first process, the worker, the program
        while len(children := psutil.Process(parent.pid).children(recursive=True)) < expected and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)  # the program has limited itself by now
        parent.send_signal(number)
        parent.wait(10.0)
    assert len(children) == expected and psutil.wait_procs(children, timeout=10.0)[1] == []


def test_without_bubblewrap_landlock_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := unavailable("landlock"):
        pytest.skip(reason)
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    with Sandbox(num_workers=1) as made:
        assert made.run(["print(1)"])[0].status == "ok" and made.kind == "landlock"


def test_without_either_it_refuses_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setattr(sandbox, "command", lambda kind: [sys.executable, "-S", "-c", "raise OSError('Landlock: not here')"])
    with Sandbox() as made, pytest.raises(ConfigError) as refusal:
        made.run(["print(1)"] * 9)
    assert str(refusal.value) == (
        "programs are not run without a sandbox, and none works here: bubblewrap: there is no bwrap; landlock: OSError: Landlock: not "
        "here; install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap), or run programs unprotected with runtime.sandbox = \"none\""
    )


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, bubblewrap, landlock or none, found 'docker'"):
        Sandbox("docker")
    with pytest.raises(ConfigError, match="runtime.sandbox must be"):
        Runtime(sandbox="docker")


@given(st.binary(), st.integers(1, 4))
def test_reports_may_hold_anything(report: bytes, num_cells: int) -> None:
    found = read_report(report, num_cells)
    assert len(found) <= num_cells
    answer = {"code": 0, "timed_out": False, "cpu_s": 0.0, "wall_s": 0.0}
    made = outcomes(answer, found, b"0123456789", num_cells, 1.0, 100)
    assert len(made) == num_cells and "0123456789".startswith("".join(one.stdout for one in made))


def test_a_report_is_not_believed_against_the_kernel() -> None:
    killed = {"code": -9, "timed_out": True, "cpu_s": 0.1, "wall_s": 4.0}
    assert read_report(b"2 \n4 E: x\n9999999999999 \n", 4) == [(2, ""), (4, "E: x")]
    found = outcomes(killed, [(2, ""), (4, "")], b"1\n2\n3\n", 2, 1.0, 100)
    assert [(one.status, one.stdout) for one in found] == [("ok", "1\n"), ("timeout", "2\n3\n")]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no table of system calls for this machine")
def test_the_trial_finds_what_is_missing() -> None:
    """Without Landlock the filter alone lets files be read: the worker would not start."""
    code = "from mathpipe.eval import sandbox_kernel, sandbox_worker; sandbox_kernel.give_up_privileges(); print(sandbox_worker.probe())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.fullmatch(r"a program could read /etc/passwd; \n", done.stdout), done.stdout + done.stderr
