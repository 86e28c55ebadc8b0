"""Benchmark of the sandbox: many short programs, as evaluation and verification run them."""

from __future__ import annotations

import time

import psutil

from mathpipe.eval.sandbox import KINDS, Sandbox, SandboxError
from mathpipe.pipeline.bench import Benchmark, Row, row

NUM_PROGRAMS, NUM_WORKERS, GOAL_S = 1000, 2, 30.0
SHORT = "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f({n} % 15), sum(range({n})))"
SYMPY = "from sympy import symbols, Eq, solve\nx, y = symbols('x y')\nprint(solve((Eq(x + y, 3 * {n}), Eq(x, 2 * y)), (x, y))[y])"


def _cpu_s() -> float:
    """CPU seconds of this process, its workers, and all that these have waited for."""
    used = [process.cpu_times() for process in (psutil.Process(), *psutil.Process().children(recursive=True))]
    return sum(sum(times[:4]) for times in used)


def sandbox_programs() -> list[Row]:
    """Seconds for 1,000 short programs, nine of ten plain Python and one with sympy, from nothing: workers start and import sympy too."""
    programs = [(SYMPY if n % 10 == 0 else SHORT).format(n=n) for n in range(NUM_PROGRAMS)]
    rows = []
    for kind in KINDS:
        began, cpu_s = time.perf_counter(), _cpu_s()
        try:
            with Sandbox(kind, NUM_WORKERS) as sandbox:
                found = sandbox.run(programs)
                wall_s, used_s = time.perf_counter() - began, _cpu_s() - cpu_s
        except SandboxError as error:
            rows.append(row(f"eval.sandbox_programs.{kind}", None, "s", str(error), met=False))
            continue
        if any(outcome.status != "ok" for outcome in found) or found[10].stdout != "10\n":
            raise RuntimeError(f"{kind}: {next(outcome for outcome in found if outcome.status != 'ok')}")
        goal = f"1,000 programs on {NUM_WORKERS} cores under {GOAL_S:g} s; {used_s:.1f} s of CPU"
        rows.append(row(f"eval.sandbox_programs.{kind}", wall_s, "s", goal, wall_s < GOAL_S))
    return rows


BENCHMARKS: dict[str, Benchmark] = {"eval.sandbox_programs": sandbox_programs}
