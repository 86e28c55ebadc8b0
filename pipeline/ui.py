"""Pages to watch a run: Luigi's task graph, TensorBoard with the curves of every artifact, the report, annotation. `mathpipe ui`.

Curves are copied from each artifact's `metrics.jsonl`, which stays the only place where numbers are kept, into
`runs/<profile>/tensorboard/<artifact>` for as long as the pages are open.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from mathpipe.pipeline import artifact
from mathpipe.pipeline.config import annotate_command
from mathpipe.pipeline.plan import artifact_folders
from mathpipe.pipeline.tasks import HOST, PORT, scheduler_answers

TENSORBOARD_PORT = 6006
REFRESH_S = 10.0
START_S = 20.0


def serve(root: Path, report: Path | None, annotation: str | None = None) -> None:
    """Start what does not run yet, print the links, and keep the curves fresh until Ctrl-C, which ends what was started.

    Raises:
        ValueError: a page does not come up.
    """
    curves = root / "tensorboard"
    shutil.rmtree(curves, ignore_errors=True)
    with contextlib.ExitStack() as started:
        if not scheduler_answers():
            luigid = "import luigi.cmdline; luigi.cmdline.luigid()"
            words = ["--address", HOST, "--port", str(PORT), "--state-path", str((root / "luigid.pickle").absolute())]
            _start(started, root / "luigid.log", [sys.executable, "-c", luigid, *words], _graph_url())
        links = {"stages and their graph": _graph_url()}
        if importlib.util.find_spec("tensorboard"):
            url = f"http://{HOST}:{TENSORBOARD_PORT}/"
            if not _answers(url):
                words = ["--logdir", str(curves), "--host", HOST, "--port", str(TENSORBOARD_PORT), "--reload_interval", "10"]
                _start(started, root / "tensorboard.log", [sys.executable, "-m", "tensorboard.main", *words], url)
            links["curves (TensorBoard)"] = url
        links["report"] = report.absolute().as_uri() if report else "not built yet; run `mathpipe report`"
        links["annotation"] = annotation or f"not served now; run `{annotate_command(root.name)}`"
        links["logs"] = root.absolute().as_uri()
        for name, link in links.items():
            print(f"{name + ':':24}{link}")
        print("a run started now appears there by itself; Ctrl-C ends these pages", flush=True)
        writers: dict[Path, Curve] = {}
        while True:
            for paths in artifact_folders(root).values():
                for path in paths:
                    if (path / "metrics.jsonl").exists():
                        writers.setdefault(path, Curve(path, curves)).update()
            time.sleep(REFRESH_S)


class Curve:
    """Copies the numbers of one artifact's metrics.jsonl into a TensorBoard event file, new lines only."""

    def __init__(self, path: Path, curves: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.path, self.num_written = path, 0
        self.writer = EventFileWriter(str(curves / path.name))

    def update(self) -> None:
        rows = artifact.read_metrics(self.path)
        for number, row in enumerate(rows[self.num_written :], self.num_written):
            self.writer.add_event(_event(row, number))
        self.num_written = max(self.num_written, len(rows))
        self.writer.flush()


def _event(row: dict[str, Any], number: int) -> Any:
    """One line of metrics as a TensorBoard event; `step` (else the line's number) is the x axis."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
    summary = Summary(value=[Summary.Value(tag=key, simple_value=float(value)) for key, value in numbers.items()])
    return Event(wall_time=time.time(), step=int(row.get("step", number)), summary=summary)


def _graph_url() -> str:
    return f"http://{HOST}:{PORT}/static/visualiser/index.html"


def _start(started: contextlib.ExitStack, log: Path, command: list[str], url: str) -> None:
    """Start a server that ends with `started`; wait until its page answers."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    started.callback(_end, process)
    deadline = time.monotonic() + START_S
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ValueError(f"{url} does not come up; see {log}")
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
