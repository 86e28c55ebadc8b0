"""Jobs and queries on daft: natively on this machine, or on a Ray cluster with the same code (`runtime.cluster`).

A job is a call of a module-level function with plain arguments that writes its own output, atomically, and returns a
status line. A worker that is killed loses its job, which is repeated: natively the whole query ends and what has not
reported is queried again, on Ray the actor starts again. On a cluster every node needs this package, and sees the crawl
and `out` under the same paths.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from mathpipe.pipeline import log
from mathpipe.pipeline.artifact import ContractError
from mathpipe.pipeline.config import ConfigError, Runtime

MAX_REPEATS = 3
"""Repeats of a job whose worker died."""
QUIET = {"DAFT_PROGRESS_BAR": "0", "DO_NOT_TRACK": "true", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Environment of the engines: our own progress only, nothing is sent anywhere."""


class WorkerDied(RuntimeError):
    """A job whose workers died, one after the other."""


def start(runtime: Runtime) -> Any:
    """daft with the runner that `runtime` asks for; starts or joins Ray once.

    Raises:
        ConfigError: no Ray cluster answers, or the package is missing.
    """
    os.environ.update(QUIET)
    import daft

    logging.getLogger("tracing.span").setLevel(logging.WARNING)  # daft names every operator at level INFO
    if runtime.cluster != "native":
        _join_ray(runtime)
        daft.set_runner_ray(noop_if_initialized=True)
    return daft


def _join_ray(runtime: Runtime) -> None:
    try:
        import ray
    except ImportError:
        raise ConfigError(f"runtime.cluster {runtime.cluster!r} needs Ray: pip install 'mathpipe[cluster]', or set it to native") from None
    if ray.is_initialized():
        return
    here = {"address": "local", "num_cpus": runtime.num_workers, "include_dashboard": False}
    there = {"address": runtime.cluster, "runtime_env": {"env_vars": QUIET}}
    try:
        ray.init(**(here if runtime.cluster == "local" else there), log_to_driver=False, logging_level=logging.ERROR)  # type: ignore[arg-type]
    except ConnectionError as error:
        wanted = "start one with `ray start --head`, or set runtime.cluster"
        raise ConfigError(f"no Ray cluster at {runtime.cluster} ({error}); {wanted}") from None


def run_jobs(
    function: Callable[..., str], jobs: Sequence[tuple[Any, ...]], runtime: Runtime, out: Path,
    unit: str = "archives", description: str = "extracting", done: int = 0, use_process: bool = True,
) -> None:  # fmt: skip
    """Call `function(*job)` for every job in `runtime.num_workers` processes, in no fixed order.

    Args:
        function: of a module, picklable by name; writes its output atomically and returns a status line.
        jobs: those without output; the caller leaves the others out and says in `done` how many they are.
        use_process: False for short jobs that spend their time in pyarrow: natively threads of this process do them, which start at once.

    Raises:
        ValueError, ContractError, OSError: as raised by a job.
        WorkerDied: 1 + MAX_REPEATS workers died in the same job.
    """
    if not jobs:
        return
    if not use_process and runtime.cluster == "native":
        with log.Progress(out, done + len(jobs), unit, description, done=done) as progress, ThreadPoolExecutor(runtime.num_workers) as pool:
            for status in pool.map(lambda job: function(*job), jobs):
                progress.advance(1, status)
        return
    left = {number: tuple(v.absolute() if isinstance(v, Path) else v for v in job) for number, job in enumerate(jobs)}
    attempts = out.absolute() / ".attempts"
    shutil.rmtree(attempts, ignore_errors=True)
    attempts.mkdir()
    with log.Progress(out, done + len(jobs), unit, description, done=done) as progress:
        while left:
            try:
                for number, status in _query(function, left, attempts, runtime):
                    del left[number]
                    progress.advance(1, status)
            except (RuntimeError, ConnectionError) as error:  # natively daft raises one of them when a worker has died
                if isinstance(error, WorkerDied) or "failed with traceback" in str(error) or runtime.cluster != "native":
                    raise
                _end_workers()
                log.logger().warning("a worker died (%s); %d %s are repeated", str(error).split("\n")[0], len(left), unit)
    shutil.rmtree(attempts)


def _query(
    function: Callable[..., str], jobs: dict[int, tuple[Any, ...]], attempts: Path, runtime: Runtime
) -> Iterator[tuple[int, str]]:
    """(number, status) of every job as it ends; its error is raised here."""
    daft = start(runtime)

    class Worker:
        """One process: finds the function once, then one job a batch."""

        def __init__(self, module: str, name: str) -> None:
            self.function = getattr(importlib.import_module(module), name)

        @daft.method.batch(return_dtype=daft.DataType.binary(), batch_size=1)
        def run(self, tasks: Any) -> list[bytes]:
            return [run_task(self.function, attempts, task) for task in tasks.to_pylist()]

    options = {"max_restarts": -1, "max_task_retries": MAX_REPEATS}
    workers = daft.cls(Worker, max_concurrency=min(runtime.num_workers, len(jobs)), use_process=True, cpus=1, ray_options=options)
    tasks = [pickle.dumps((number, job)) for number, job in jobs.items()]
    table = daft.from_pydict({"task": tasks})
    if runtime.cluster != "native":
        table = table.into_partitions(len(tasks))
    outcomes = table.select(workers(*_address(function)).run(daft.col("task")).alias("outcome"))
    with daft.execution_config_ctx(maintain_order=False):
        for row in outcomes.iter_rows(results_buffer_size=None):
            number, status, error = pickle.loads(row["outcome"])
            if error is not None:
                _end_workers()
                raise error
            yield number, status


def run_task(function: Callable[..., str], attempts: Path, task: bytes) -> bytes:
    """In the worker: the job's number with its status line or, for what ends the stage, its error."""
    number, job = pickle.loads(task)
    try:
        if not attempts.is_dir():
            raise ValueError(f"{attempts.parent}: not on node {platform.node()}; put runs/ on a file system that all nodes share")
        with (attempts / str(number)).open("a+b") as file:  # what was begun is known to the next worker, on whichever node
            file.write(b".")
            times = file.tell()
        if times > 1 + MAX_REPEATS:
            raise WorkerDied(f"{function.__name__}{job}: each of {times - 1} workers died in it")
        return pickle.dumps((number, function(*job), None))
    except (ValueError, ContractError, OSError, WorkerDied) as error:
        return pickle.dumps((number, "", error))


def _address(function: Callable[..., str]) -> tuple[str, str]:
    """Module and name under which a worker finds a function, also where the module runs as `__main__`."""
    module = function.__module__
    spec = sys.modules["__main__"].__spec__
    if module == "__main__":
        assert spec is not None, "a stage runs as python -m MODULE"
        module = spec.name
    return module, function.__qualname__


def _end_workers() -> None:
    """Kill daft's worker processes below this one: after a failed query they would write on beside their successors."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "daft.execution.udf_worker" in process.cmdline():
                process.kill()
                process.wait()
