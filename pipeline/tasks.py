"""The Luigi side: one task class per stage (Crawl, Round1Train, …, Report), one task per stage and run.

A task is complete when its artifact's manifest exists; what it runs is `launch.run_stage`. One stage at a time, in this
process, so that Ctrl-C reaches it. A luigid on 127.0.0.1:8082 is used by itself when it answers, else a local scheduler.
The first failure ends the run: what does not depend on the failed stage waits for the next one (nothing finished is lost,
and the user sees the cause at once instead of after the other branches).

Luigi traps this avoids: completeness is the manifest, never a directory; the recipe is a parameter and part of the path; a
task that leaves no artifact fails (`check_complete_on_run`); no dynamic dependencies but the one that never comes (`ForPeople`);
the start time is a parameter, so a
scheduler that still believes in a killed run does not hold up this one (the lock in the artifact does that job).
"""

from __future__ import annotations

import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import luigi

from mathpipe.pipeline import artifact, launch
from mathpipe.pipeline.log import describe
from mathpipe.pipeline.plan import Plan, Step

HOST, PORT = "127.0.0.1", 8082
REPORT_INTERVAL_S = 2.0
"""Seconds between two messages to the scheduler about a running stage."""

luigi.auto_namespace(scope=__name__)


class Display(Protocol):
    """Who is told how a run goes."""

    def started(self, step: Step) -> None: ...
    def progressed(self, step: Step, values: dict[str, Any]) -> None: ...
    def finished(self, step: Step, seconds: float) -> None: ...
    def failed(self, step: Step) -> None: ...
    def waits(self, step: Step) -> None: ...


class Run:
    """One `mathpipe run`: the plan, its tasks by stage name, who watches, the first failure, the stage that waits for people."""

    def __init__(self, plan: Plan, display: Display, verbose: bool = False) -> None:
        self.plan, self.display, self.verbose = plan, display, verbose
        self.failure: launch.StageFailed | ValueError | OSError | None = None
        self.waiting: launch.StageWaits | None = None
        started = time.strftime("%Y-%m-%dT%H:%M:%S")
        self.tasks: dict[str, StageTask] = {}
        for position, (name, step) in enumerate(plan.steps.items()):
            facts = {"__module__": __name__, "step": step, "owner": self, "priority": len(plan.steps) - position}  # the table's order
            task_class = type(class_name(name), (StageTask,), facts)
            self.tasks[name] = task_class(profile=plan.profile, recipe=step.hash, started=started)


class StageTask(luigi.Task):
    """One stage of one plan."""

    profile: str = luigi.Parameter()  # type: ignore[assignment]
    recipe: str = luigi.Parameter()  # type: ignore[assignment]
    started: str = luigi.Parameter()  # type: ignore[assignment]
    step: ClassVar[Step]
    owner: ClassVar[Run]

    def requires(self) -> list[luigi.Task]:
        return [self.owner.tasks[source] for source in self.step.stage.inputs.values()]

    def complete(self) -> bool:
        return artifact.is_complete(self.step.out)

    def run(self) -> Iterator[luigi.Task] | None:
        owner, step = self.owner, self.step
        scheduler: Any = self  # Luigi sets the three set_… attributes while a task runs
        if owner.failure is not None:
            raise RuntimeError(f"not started: {owner.failure}")
        began, told, url = time.monotonic(), 0.0, ""
        owner.display.started(step)
        scheduler.set_tracking_url((step.out / launch.LOG).absolute().as_uri())

        def progressed(values: dict[str, Any]) -> None:
            nonlocal told, url
            owner.display.progressed(step, values)
            if time.monotonic() - told > REPORT_INTERVAL_S or values["url"] != url:
                told = time.monotonic()
                scheduler.set_progress_percentage(round(100 * values["frac"]))
                scheduler.set_status_message(describe(values))
                if values["url"] != url:
                    url = values["url"]
                    scheduler.set_tracking_url(url)

        try:
            launch.run_stage(step, owner.plan.runtime, progressed, owner.verbose)
        except (launch.StageFailed, ValueError, OSError) as error:
            owner.failure = error
            owner.display.failed(step)
            raise
        except launch.StageWaits as waiting:
            owner.waiting = owner.waiting or waiting
            owner.display.waits(step)
            scheduler.set_status_message(f"waiting: {waiting.what}")
            return (task for task in [ForPeople(stage=step.name, recipe=self.recipe, started=self.started)])
        scheduler.set_progress_percentage(100)
        owner.display.finished(step, time.monotonic() - began)
        return None


class ForPeople(luigi.ExternalTask):
    """What a stage waits for. In Luigi an external input that is not there yet leaves a task pending, neither failed nor done."""

    stage: str = luigi.Parameter()  # type: ignore[assignment]
    recipe: str = luigi.Parameter()  # type: ignore[assignment]
    started: str = luigi.Parameter()  # type: ignore[assignment]

    def complete(self) -> bool:
        return False


def class_name(stage: str) -> str:
    """`round1.train` → `Round1Train`."""
    return "".join(part.capitalize() for part in stage.split("."))


def scheduler_answers() -> bool:
    """Whether a Luigi scheduler runs on this machine."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{PORT}/api/resource_list?data=%7B%7D", timeout=1) as answer:
            return b"response" in answer.read()
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def run(plan: Plan, targets: Iterable[str], display: Display, verbose: bool = False) -> None:
    """Run everything `targets` need, one stage at a time, through Luigi.

    Raises:
        StageFailed: a stage failed (the first one).
        ValueError: a stage could not be started, or another process is working on it.
        StageWaits: a stage waits for people; all that does not depend on it is done.
    """
    _log_to(plan.root / "luigi.log")
    settings = luigi.configuration.get_config()
    settings.set("core", "no_configure_logging", "true")
    settings.set("worker", "check_complete_on_run", "true")
    this = Run(plan, display, verbose)
    tasks = [this.tasks[name] for name in targets]
    luigi.build(tasks, local_scheduler=not scheduler_answers(), scheduler_host=HOST, scheduler_port=PORT, workers=1)
    if this.failure is not None:
        raise this.failure
    if this.waiting is not None:
        raise this.waiting
    missing = [task.step for task in tasks if not task.complete()]
    if missing:
        raise RuntimeError(f"{missing[0].name}: Luigi did not run it; see {plan.root / 'luigi.log'}")


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Luigi's own messages are not worth a stack trace in the terminal when the disk is full; the stage reports that."""


def _log_to(file: Path) -> None:
    """Luigi's own messages, to a file: the terminal belongs to the display."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("luigi", "luigi-interface", "luigi.scheduler"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
