"""Runs one stage as a child process: the command a person would type, watched, measured and logged.

The child is `supervise.py`, which runs `python -m MODULE …` (or torchrun for a data-parallel stage) and ends everything
the stage started, whatever happens. Its output goes to `out/log.txt`; when it fails, or waits for people, `out/failure.json` says why.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from mathpipe.pipeline import artifact, supervise
from mathpipe.pipeline.config import Runtime, to_table, write_tables
from mathpipe.pipeline.log import PROGRESS, read_progress
from mathpipe.pipeline.plan import FAILURE, Step
from mathpipe.pipeline.stage import BAD_INPUT, USAGE_VARIABLE, WAITING, WAITING_MARK, is_running, trouble

OnProgress = Callable[[dict[str, Any]], None]
LOG = "log.txt"
USAGE = "usage.json"
POLL_S = 0.25
NUM_TAIL_LINES = 400
ERROR_LINE = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:error|[\w.]*(?:Error|Exception|Interrupt|Exit))): \S")
TORCHRUN_FAILED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank")


class StageFailed(RuntimeError):
    """A stage ended without an artifact."""

    def __init__(self, stage: str, exit_code: int, cause: str, log: Path) -> None:
        super().__init__(f"{stage}: {cause}")
        self.stage, self.exit_code, self.cause, self.log = stage, exit_code, cause, log


class StageWaits(Exception):
    """A stage cannot go on before people have done something; the same command continues it."""

    def __init__(self, stage: str, what: str) -> None:
        super().__init__(f"{stage}: {what}")
        self.stage, self.what = stage, what


def run_stage(step: Step, runtime: Runtime, on_progress: OnProgress, verbose: bool = False) -> None:
    """Run a stage to its end; `on_progress` gets the values of log.Progress whenever they change.

    Raises:
        StageFailed: it did not finish; failure.json in its directory says why.
        StageWaits: people have to do something first; failure.json says what.
        KeyboardInterrupt: the user stopped it; the same command continues it.
    """
    out = step.out
    out.mkdir(parents=True, exist_ok=True)
    if is_running(out):
        raise ValueError(f"{out}: another process is working on it; wait for it or stop it")
    for name in (FAILURE, PROGRESS):  # the usage of a broken attempt stays: its time counts
        (out / name).unlink(missing_ok=True)
    write_tables(out / "config.toml", {step.config.SECTION: to_table(step.config), "runtime": to_table(runtime)})
    command = [sys.executable, "-I", "-S", supervise.__file__, str(os.getpid()), str(out / USAGE), *stage_command(step, runtime)]
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    process = subprocess.Popen(
        command, env=environment(step, runtime), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    tail: deque[str] = deque(maxlen=NUM_TAIL_LINES)
    reader = threading.Thread(target=_tee, args=(process.stdout, out / LOG, tail, verbose), daemon=True)
    reader.start()
    try:
        _wait(process, out, on_progress)
    except BaseException:  # Ctrl-C, or a bug of ours: either way nothing may stay behind
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        reader.join(timeout=supervise.GRACE_S)
    _check(step, process.returncode, list(tail), started)
    (out / USAGE).unlink(missing_ok=True)


def stage_command(step: Step, runtime: Runtime) -> list[str]:
    """The command line of a stage, without the supervisor: what a person would type."""
    python = [sys.executable, "-m"]
    if step.stage.distributed:
        python += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(runtime.num_processes), "-m"]
    inputs = [word for name, path in step.inputs.items() for word in ("--in", f"{name}={path}")]
    attempt = ["--attempt", str(step.attempt)] if step.attempt else []
    return [
        *python, step.stage.module, "--stage", step.name, "--config", str(step.out / "config.toml"), *inputs,
        "--out", str(step.out), *attempt,
    ]  # fmt: skip


def environment(step: Step, runtime: Runtime) -> dict[str, str]:
    """Environment of a stage: unbuffered output, one OpenMP pool of the configured size, this environment's tools in PATH."""
    env = dict(os.environ)
    env[USAGE_VARIABLE] = str((step.out / USAGE).absolute())
    env |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(runtime.num_threads)}
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if step.stage.distributed and not runtime.uses_gpu() and openmp.exists():
        env["LD_PRELOAD"] = " ".join(filter(None, [str(openmp), env.get("LD_PRELOAD")]))  # libgomp collapses beside a busy neighbour
    return env


def _tee(stream: IO[bytes], log: Path, tail: deque[str], verbose: bool) -> None:
    """Copy a stage's output to its log until it ends; on a full disk the rest is read and only remembered."""
    with contextlib.ExitStack() as stack:
        file = None
        with contextlib.suppress(OSError):
            file = stack.enter_context(log.open("ab", buffering=0))
        for line in stream:
            tail.append(line.decode("utf-8", "replace").rstrip())
            if file is not None:
                with contextlib.suppress(OSError):
                    file.write(line)
            if verbose:
                print(tail[-1], flush=True)


def _wait(process: subprocess.Popen[bytes], out: Path, on_progress: OnProgress) -> None:
    last = None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=POLL_S)
            return
        values = read_progress(out)
        if values is not None and values != last:
            last = values
            on_progress(values)


def _check(step: Step, code: int, tail: list[str], started: str) -> None:
    """Raise StageFailed, or StageWaits, unless the artifact is there and is the one that was planned."""
    if code == 0 and artifact.is_complete(step.out):
        found = artifact.read_manifest(step.out)["hash"]
        if found == step.hash:
            return
        cause = f"AssertionError: planned hash {step.hash}, the stage computed {found}: its config changed on its way through TOML"
        (step.out / artifact.MANIFEST).unlink()
        code = 1
    else:
        code, cause = _diagnosis(code, tail)
    ended = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    failure = {"exit_code": code, "cause": cause, "log": str(step.out / LOG), "started": started, "time": ended}
    try:
        artifact.write_json(step.out / FAILURE, failure)
    except OSError as error:
        if trouble(error, step.out) is None:
            raise
    if code == WAITING:
        raise StageWaits(step.name, cause)
    raise StageFailed(step.name, code, cause, step.out / LOG)


def _diagnosis(code: int, tail: list[str]) -> tuple[int, str]:
    """Exit code and cause of a failed stage from the end of its output; torchrun hides both behind its own."""
    for position, line in enumerate(tail):
        if found := TORCHRUN_FAILED.search(line):
            inner = int(found.group(1))
            code = inner if inner >= 0 else 128 - inner
            tail = [said for said in tail[:position] if "torch/distributed/elastic" not in said]
            break
    errors = [line for line in tail if ERROR_LINE.match(line)]
    if code > 128 and not (errors and code == 128 + signal.SIGABRT):
        number = code - 128
        hint = " (the system may have run out of memory)" if number == signal.SIGKILL else ""
        return code, f"ended by signal {number} {signal.Signals(number).name}{hint}"
    if code == 0:
        return 1, "the stage ended without an artifact"
    said = [line for line in tail if line.strip()]
    if code == WAITING and said and said[-1].startswith(WAITING_MARK):
        return code, said[-1].removeprefix(WAITING_MARK)
    return code, (errors or said or [f"exit code {code}, no output"])[-1].strip().removeprefix("error: ")


def exit_code(failure: StageFailed) -> int:
    """What `mathpipe` exits with: 2 for bad input, 130 for an interruption, 1 for everything else."""
    return failure.exit_code if failure.exit_code in (BAD_INPUT, 130) else 1
