"""How a run looks in a terminal: every stage with its mark, the running one with bar, rate and time left; plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mathpipe.pipeline import stages
from mathpipe.pipeline.artifact import read_manifest
from mathpipe.pipeline.log import describe
from mathpipe.pipeline.plan import Plan, Step

PLAIN_INTERVAL_S = 15.0
"""Seconds between two progress lines where there is no terminal."""


def clock(seconds: float) -> str:
    """`4.2 s`, `3:07`, `2:10:00`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class PlainDisplay:
    """Lines for logs: start, progress every 15 s, end."""

    def __init__(self, plan: Plan, pending: Iterable[Step]) -> None:
        self.names = [step.name for step in pending]
        self._told, self._url = 0.0, ""

    def __enter__(self) -> PlainDisplay:
        print(f"{len(self.names)} stages to run: {' '.join(self.names)}", flush=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def started(self, step: Step) -> None:
        self._told, self._url = time.monotonic(), ""
        print(f"[{self.names.index(step.name) + 1}/{len(self.names)}] {step.name}: {step.stage.summary} → {step.out}", flush=True)

    def progressed(self, step: Step, values: dict[str, Any]) -> None:
        if time.monotonic() - self._told > PLAIN_INTERVAL_S or values["url"] != self._url:
            self._told, self._url = time.monotonic(), values["url"]
            print(f"      {describe(values)}", flush=True)

    def finished(self, step: Step, seconds: float) -> None:
        print(f"      done in {clock(seconds)}", flush=True)

    def failed(self, step: Step) -> None:
        print("      failed", flush=True)

    def waits(self, step: Step) -> None:
        print("      waits for people", flush=True)


class LiveDisplay:
    """A table that stays in place. The steps of a corpus round share one line."""

    def __init__(self, plan: Plan, pending: Iterable[Step], console: Console) -> None:
        self.plan = plan
        self.pending = [step.name for step in pending]
        self.seconds: dict[str, float] = {}
        self.broken: str | None = None
        self.waiting: str | None = None
        self.running: Step | None = None
        self.values: dict[str, Any] | None = None
        self.began = self.stage_began = time.monotonic()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=8)

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def started(self, step: Step) -> None:
        self.running, self.values, self.stage_began = step, None, time.monotonic()

    def progressed(self, step: Step, values: dict[str, Any]) -> None:
        self.values = values

    def finished(self, step: Step, seconds: float) -> None:
        self.seconds[step.name], self.running = seconds, None

    def failed(self, step: Step) -> None:
        self.broken, self.running = step.name, None

    def waits(self, step: Step) -> None:
        self.waiting, self.running = step.name, None

    def render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        for column in ({"width": 1}, {"no_wrap": True}, {"justify": "right", "no_wrap": True}, {"no_wrap": True, "overflow": "ellipsis"}):
            table.add_column(**column)  # type: ignore[arg-type]
        groups: dict[str, list[str]] = {}
        for name, step in self.plan.steps.items():
            if step.stage.optional and name not in self.pending:
                continue
            groups.setdefault(name.partition(".")[0], []).append(name)
        for group, names in groups.items():
            table.add_row(*self._row(group, names))
        done = len(self.seconds)
        elapsed = clock(time.monotonic() - self.began)
        return Group(table, Text(f"{self.plan.profile}: {done} of {len(self.pending)} stages run, {elapsed}", style="bold"))

    def _row(self, group: str, names: list[str]) -> list[RenderableType]:
        waiting = [name for name in names if name in self.pending and name not in self.seconds]
        spent = sum(self.seconds.get(name, 0.0) for name in names)
        if self.running and self.running.name in names:
            spent += time.monotonic() - self.stage_began
            return [self._spinner, Text(group, style="bold cyan"), clock(spent), self._activity(names)]
        if self.broken in names:
            return [Text("✗", style="bold red"), Text(group, style="bold red"), clock(spent), Text(f"{self.broken} failed", style="red")]
        if self.waiting in names:
            return [Text("?", style="yellow"), group, clock(spent), Text(f"{self.waiting} waits for people", style="yellow")]
        if waiting:
            summary = stages.STAGES[group].summary
            return [Text("·", style="dim"), Text(group, style="dim"), clock(spent) if spent else "", Text(summary, style="dim")]
        before = sum(self.plan.steps[name].seconds or 0.0 for name in names if name not in self.seconds)
        if spent:
            return [Text("✓", style="green"), group, clock(spent + before), ""]
        if all(self.plan.steps[name].state == "done" for name in names):
            return [Text("✓", style="dim green"), Text(group, style="dim"), Text(clock(before), style="dim"), Text("was done", style="dim")]
        return [Text("–", style="dim"), Text(group, style="dim"), "", Text("not needed", style="dim")]

    def _activity(self, names: list[str]) -> RenderableType:
        assert self.running is not None
        name = self.running.name
        part = name.partition(".")[2] or self.running.stage.module.rpartition(".")[2]
        place = f"{names.index(name) + 1}/{len(names)} {part}  " if len(names) > 1 else ""
        if self.values is None:
            return Text(f"{place}starting")
        line = Table.grid(padding=(0, 1, 0, 0))
        words = Text(f"{place}{describe(self.values)}", no_wrap=True, overflow="ellipsis")
        line.add_row(ProgressBar(total=1.0, completed=self.values["frac"], width=20), words)
        return line


def for_run(plan: Plan, pending: list[Step], verbose: bool = False) -> PlainDisplay | LiveDisplay:
    """The live table on a terminal, plain lines elsewhere and with --verbose."""
    if sys.stdout.isatty() and not verbose:
        return LiveDisplay(plan, pending, Console())
    return PlainDisplay(plan, pending)


STATE_STYLES = {
    "done": "green", "running": "bold cyan", "failed": "bold red", "waiting": "bold yellow", "stale": "yellow", "missing": "dim",
}  # fmt: skip


def summary(ran: list[Step], seconds: float) -> None:
    """Table of the stages that ran, with their time and memory from the manifests."""
    table = Table("stage", "time", "CPU", "peak memory", "artifact")
    for step in ran:
        manifest = read_manifest(step.out)
        peak = f"{manifest['peak_memory_bytes'] / 2**30:.2f} GiB"
        table.add_row(step.name, clock(manifest["wall_s"]), clock(manifest["cpu_s"]), peak, str(step.out))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    console.print(f"{len(ran)} stages in {clock(seconds)}")
