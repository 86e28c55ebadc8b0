"""`mathpipe bench`: the project's figures beside those of others, one row each, in `runs/bench/results.json`.

A file `bench*.py` in one of FOLDERS defines `BENCHMARKS: dict[name, function]`; a function measures and returns one row made by
`row` (or several). Results are merged into the file after every row, so that an interrupted bench keeps what it had.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mathpipe.pipeline.artifact import write_json
from mathpipe.pipeline.config import ConfigError, nearest

FOLDERS = ("pipeline", "corpus", "pretrain", "sft", "grpo", "eval")
Row = dict[str, Any]
Benchmark = Callable[[], Row | list[Row]]


def row(
    name: str, ours: float | None, unit: str, goal: str, met: bool,
    peer: float | None = None, peer_name: str = "", ratio: float | None = None,
) -> Row:  # fmt: skip
    """One result. `ratio` is how many times better we are than the peer (default: ours / peer, for a rate)."""
    if ratio is None and peer and ours is not None:
        ratio = ours / peer
    command = f"make bench ONLY={name}"
    return {"name": name, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "unit": unit, "goal": goal, "met": met,
            "command": command}  # fmt: skip


def main(folder: Path, only: str | None) -> int:
    """Run the benchmarks, write and print their rows; returns 1 when one broke, else 0.

    Raises:
        ConfigError: no benchmark has that name.
    """
    benchmarks = find_benchmarks()
    chosen = {name: run for name, run in benchmarks.items() if only is None or name == only or name.startswith(f"{only}.")}
    if not chosen:
        raise ConfigError(f"unknown benchmark {only!r}{nearest(only or '', benchmarks)} (benchmarks: {', '.join(benchmarks)})")
    broken = []
    for name, run in chosen.items():
        print(f"{name} …", flush=True)
        try:
            found = run()
        except (ImportError, OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:  # the others still count
            broken.append(name)
            print(f"{name}: broken: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            found = row(name, None, "", f"broken: {type(error).__name__}: {error}", met=False)
        _merge(folder / "results.json", found if isinstance(found, list) else [found])
    _print(folder / "results.json", set(chosen))
    return 1 if broken else 0


def find_benchmarks() -> dict[str, Benchmark]:
    """Name → function, of every `bench*.py`."""
    found: dict[str, Benchmark] = {}
    for folder in FOLDERS:
        for file in sorted((Path(__file__).parents[1] / folder).glob("bench*.py")):
            if file.stem == "bench" or file.stem.startswith("bench_"):  # not eval/benchmarks.py
                found |= importlib.import_module(f"mathpipe.{folder}.{file.stem}").BENCHMARKS
    return found


def _merge(file: Path, rows: list[Row]) -> None:
    """Replace the rows of the same names, keep the rest."""
    file.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    names = {found["name"] for found in rows}
    write_json(file, sorted([*(found for found in old if found["name"] not in names), *rows], key=lambda found: found["name"]))


def _print(file: Path, chosen: set[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "ours", "peer", "times", "unit", "goal", "met")
    for found in json.loads(file.read_text(encoding="utf-8")):
        ours, peer, ratio = (f"{found[key]:,.4g}" if found[key] is not None else "" for key in ("ours", "peer", "ratio"))
        met = "[green]yes[/]" if found["met"] else "[red]no[/]"
        table.add_row(found["name"], ours, f"{peer} {found['peer_name']}".strip(), ratio, found["unit"], found["goal"], met)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(f"{len(chosen)} run; all results in {file}")


def wait() -> None:
    """In a competitor of a race: until the next step is asked for."""
    if not sys.stdin.readline():
        sys.exit()


def done(amount: float = 1.0) -> None:
    """In a competitor: the step is done, and how much it did."""
    print(f"done {amount}", flush=True)


class Racer:
    """Processes of one command that together do a step whenever told: they call `wait` before it and `done` after it.

    Each has OpenMP as pipeline/launch.py gives it to a stage. More than one are a process group, as torchrun describes it.
    """

    def __init__(self, module: str, *arguments: str, num_processes: int = 1, num_threads: int = 1) -> None:
        env = dict(os.environ) | {"OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
        openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
        if openmp.exists():
            env["LD_PRELOAD"] = str(openmp)
        if num_processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(num_processes)}
        self.processes = []
        for n in range(num_processes):
            group = {"RANK": str(n), "LOCAL_RANK": str(n)} if num_processes > 1 else {}
            log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
            command = [sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, env=env | group, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
            self.processes.append((process, log))

    def rate(self) -> float:
        """Amount per second of one step of all processes."""
        began, amount = time.perf_counter(), 0.0
        for process, _ in self.processes:
            assert process.stdin is not None
            process.stdin.write("step\n")
            process.stdin.flush()
        for process, log in self.processes:
            assert process.stdout is not None
            while not (line := process.stdout.readline()).startswith("done "):
                if not line:
                    log.seek(0)
                    raise RuntimeError(f"{process.args!r} ended: {log.read()[-500:]}")
            amount += float(line.split()[1])
        return amount / (time.perf_counter() - began)

    def close(self) -> None:
        """End the processes."""
        for process, log in self.processes:
            process.kill()
            process.communicate()
            log.close()


def race(competitors: list[Racer], num_steps: int = 12) -> tuple[list[float], list[float]]:
    """Median rate of each, and median of the first one's rate over each one's, step by step in turns after two to warm up."""
    with contextlib.ExitStack() as stack:
        for competitor in competitors:
            stack.callback(competitor.close)
        rounds = [[competitor.rate() for competitor in competitors] for _ in range(num_steps + 2)][2:]
    rates = [statistics.median(column) for column in zip(*rounds, strict=True)]
    return rates, [statistics.median(found[0] / found[n] for found in rounds) for n in range(len(competitors))]


def noop_run_s() -> Row:
    """Seconds of `mathpipe run` with every stage of profile tiny finished: the process from start to end, best of 3."""
    with tempfile.TemporaryDirectory() as folder:
        _finish_everything(Path(folder))
        command = [sys.executable, "-m", "mathpipe.pipeline.cli", "run", "--profile", "tiny", "--runs", folder]
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds.append(time.perf_counter() - began)
            if "nothing to do" not in output:
                raise RuntimeError(f"expected nothing to do, found: {output}")
    return row("pipeline.noop_run_s", min(seconds), "s", "at most 3", min(seconds) <= 3)


def schedule_s() -> Row:
    """Seconds Luigi takes to look at all finished stages of profile tiny, in this process, import excluded."""
    from mathpipe.pipeline import display, tasks
    from mathpipe.pipeline.plan import make_plan

    with tempfile.TemporaryDirectory() as folder:
        _finish_everything(Path(folder))
        plan = make_plan(Path(folder), "tiny")
        began = time.perf_counter()
        tasks.run(plan, list(plan.steps), display.PlainDisplay(plan, []))
        seconds = time.perf_counter() - began
    return row("pipeline.schedule_s", seconds, "s", "at most 1", seconds <= 1)


def _finish_everything(runs: Path) -> None:
    """An empty artifact for every stage of profile tiny."""
    from mathpipe.pipeline.plan import make_plan

    for step in make_plan(runs, "tiny").steps.values():
        step.out.mkdir(parents=True)
        write_json(step.out / "manifest.json", {"stage": step.name, "hash": step.hash, "inputs": {}, "wall_s": 0.0})


BENCHMARKS: dict[str, Benchmark] = {"pipeline.noop_run_s": noop_run_s, "pipeline.schedule_s": schedule_s}
