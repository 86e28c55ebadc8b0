"""Runs one command so that nothing it starts outlives it or its caller, and measures all of it.

    python supervise.py PARENT_PID USAGE.json COMMAND …

torchrun puts its workers into sessions of their own and worker pools survive the death of their parent, so neither a
process group nor PR_SET_PDEATHSIG alone reaches every descendant. This process becomes their reaper (orphans are handed
to it), and when the command ends, when it is told to stop, or when PARENT_PID dies (even by kill -9), it ends every one.
While the command runs it keeps `USAGE.json` up to date: when it `started`, `wall_s`, `cpu_s` and `peak_memory_bytes` of the whole
tree; where an earlier attempt left the file, its seconds are in `wall_before_s` and `cpu_before_s`, its peak in the peak.

Standard library only: it starts in about 20 ms and stands beside every stage. Linux only (/proc, prctl).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

POLL_S = 0.25
"""How often the caller's life is checked."""
SAMPLE_S, SAMPLE_SHARE = 0.5, 0.01
"""Memory is summed at most this often, and less often where that would take more than this share of the time: reading the
memory map of a process of some gigabytes takes 0.1 s, in which that process cannot allocate."""
GRACE_S = 5.0
"""Time between the signal that asks a stage to stop and the one that ends it."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


def main(argv: list[str]) -> int:
    """Run the command to its end; returns its exit code, 128 + N when signal N ended it."""
    parent, usage_file, command = int(argv[0]), Path(argv[1]), argv[2:]
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    usage = {"started": time.time(), "wall_s": 0.0, "cpu_s": 0.0, **_earlier(usage_file)}
    child = subprocess.Popen(command, process_group=0, preexec_fn=_die_with_supervisor)
    deadline: list[float] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        deadline.append(time.monotonic() + GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signum)

    signal.signal(signal.SIGINT, forward)
    signal.signal(signal.SIGTERM, forward)
    next_sample = 0.0
    while True:
        if os.getppid() != parent or (deadline and time.monotonic() > deadline[0]):
            break
        if (began := time.monotonic()) > next_sample:
            cpu = time.process_time()
            _sample(usage, usage_file)
            next_sample = began + max(SAMPLE_S, (time.process_time() - cpu) / SAMPLE_SHARE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=POLL_S)
            break
    kill_descendants()
    code = child.wait()
    with contextlib.suppress(ChildProcessError):  # reap what was handed to us
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    spent = os.times()
    _write(usage, usage_file, spent.children_user + spent.children_system)
    return code if code >= 0 else 128 - code


def _die_with_supervisor() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _earlier(usage_file: Path) -> dict[str, float]:
    """Wall and CPU seconds and peak memory of the attempts before this one."""
    if not usage_file.exists():
        return {"wall_before_s": 0.0, "cpu_before_s": 0.0, "peak_memory_bytes": 0}
    usage = json.loads(usage_file.read_text(encoding="utf-8"))
    sums = {f"{name}_before_s": usage[f"{name}_before_s"] + usage[f"{name}_s"] for name in ("wall", "cpu")}
    return {**sums, "peak_memory_bytes": usage["peak_memory_bytes"]}


def _sample(usage: dict[str, float], usage_file: Path) -> None:
    """Bring `usage` up to date while the command runs."""
    tree = descendants()
    usage["peak_memory_bytes"] = max(usage["peak_memory_bytes"], sum(memory_bytes(pid) for pid in tree))
    _write(usage, usage_file, sum(seconds for _, seconds in tree.values()))


def _write(usage: dict[str, float], usage_file: Path, cpu_s: float) -> None:
    """Add the time and write the file atomically; a full disk may not stop the measured command."""
    usage["wall_s"] = round(time.time() - usage["started"], 2)
    usage["cpu_s"] = max(usage["cpu_s"], round(cpu_s, 2))
    partial = usage_file.with_suffix(".tmp")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(usage), encoding="utf-8")
        partial.replace(usage_file)


def descendants() -> dict[int, tuple[str, float]]:
    """Processes below this one: pid → (state letter, CPU seconds of it and its finished children)."""
    parents, facts = {}, {}
    tick = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                values = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                parents[int(entry.name)] = int(values[1])
                facts[int(entry.name)] = (values[0], sum(map(int, values[11:15])) / tick)
    found: dict[int, tuple[str, float]] = {}
    frontier = {os.getpid()}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier and pid not in found}
        found |= {pid: facts[pid] for pid in frontier}
    return found


def memory_bytes(pid: int) -> int:
    """Proportional set size: pages shared by n processes count 1/n in each, so a tree's sum is what it occupies."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):  # it has just ended, or is a zombie
        return 0


def kill_descendants() -> None:
    """End every process below this one; those that start in between are found in the next round."""
    for _ in range(250):
        alive = [pid for pid, (state, _) in descendants().items() if state != "Z"]
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
