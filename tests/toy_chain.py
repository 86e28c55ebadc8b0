"""A chain of toy stages for the tests of the frame: left and right read top, bottom reads both; aside stands alone.

    python toy_chain.py run --profile …       the command line, with this table of stages
    python -m toy_chain --stage top …         one stage, as the launcher starts it
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mathpipe.pipeline import cli, log, stage, stages
from mathpipe.pipeline.config import ConfigError, Runtime
from mathpipe.pipeline.stages import Stage


@dataclass(frozen=True)
class TopConfig:
    SECTION: ClassVar[str] = "top"
    VERSION: ClassVar[int] = 1
    value: int = 1
    """Enters the hash."""
    num_items: int = 3
    """Files to write, one after the other."""
    item_s: float = 0.0
    """Seconds for each."""
    mishap: str = ""
    """What goes wrong after the first item."""
    ballast_mb: int = 0
    """Memory held by a child in a session of its own."""
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError(f"value must be 0 or more, found {self.value}")

    def describe(self) -> str:
        return f"{self.num_items} items"

    def require(self, runtime: Runtime) -> None:
        if runtime.num_processes > 64:
            raise ConfigError(f"needs at most 64 processes, found {runtime.num_processes}")

    def fingerprint(self) -> str:
        return os.environ.get("TOY_OUTSIDE", "")


class LeftConfig(TopConfig):
    SECTION: ClassVar[str] = "left"


class RightConfig(TopConfig):
    SECTION: ClassVar[str] = "right"


class BottomConfig(TopConfig):
    SECTION: ClassVar[str] = "bottom"


class AsideConfig(TopConfig):
    SECTION: ClassVar[str] = "aside"


CONFIGS = {cls.SECTION: cls for cls in (TopConfig, LeftConfig, RightConfig, BottomConfig, AsideConfig)}
STAGES = {
    name: Stage(name, "toy_chain", f"toy_chain:{CONFIGS[name].__name__}", f"toy stage {name}", inputs, name == "aside")
    for name, inputs in {
        "top": {}, "left": {"top": "top"}, "right": {"top": "top"}, "bottom": {"left": "left", "right": "right"}, "aside": {},
    }.items()
}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    top: Path | None = None
    left: Path | None = None
    right: Path | None = None


def work(config: TopConfig, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Write `num_items` files, each after `item_s`; files that are there are kept."""
    given = [getattr(inputs, f.name) for f in dataclasses.fields(inputs)]
    texts = [(path / "item-0.txt").read_text(encoding="utf-8") for path in given if path]
    if config.ballast_mb:
        script = f"import time; held = b'x' * ({config.ballast_mb} << 20); print(flush=True); time.sleep(1000)"
        child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline()  # it holds the memory now
    with log.Progress(out, config.num_items, "items") as progress:
        for number in range(config.num_items):
            file = out / f"item-{number}.txt"
            if not file.exists():
                time.sleep(config.item_s)
                file.write_text(f"{config.value} {sorted(texts)}", encoding="utf-8")
                log.logger().info("wrote item %d", number)
            progress.advance(1, f"item {number}")
            if number == 0:
                mishap(config.mishap)
    return {"num_items": config.num_items}


def mishap(kind: str) -> None:
    """Fail in the way named."""
    if kind == "bad input":
        raise ValueError("archive.warc: not a WARC file; give another")
    if kind == "waiting":
        raise stage.Waiting("3 hosts wait for people")
    if kind == "bug":
        raise KeyError("a bug of ours")
    if kind == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/file.bin")
    if kind == "forbidden":
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/file.bin")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "silent":
        os._exit(0)


def run_of(name: str) -> Any:
    def run(config: Any, inputs: Inputs, out: Path) -> dict[str, Any]:
        return work(config, inputs, out)

    run.__annotations__ = {"config": CONFIGS[name], "inputs": Inputs}
    return run


if __name__ == "__main__":
    if "--stage" in sys.argv:
        stage.main(run_of(sys.argv[sys.argv.index("--stage") + 1]))
    stages.STAGES = STAGES
    cli.main()
