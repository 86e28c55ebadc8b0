"""The command line: `mathpipe run | annotate | plan | status | rerun | report | sweep-volume | ablate | gc | ui | bench`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mathpipe.pipeline import launch, stages, tables
from mathpipe.pipeline.artifact import ContractError
from mathpipe.pipeline.config import ANNOTATION_PORT, ConfigError, annotate_command
from mathpipe.pipeline.plan import Plan, Step, force, make_plan
from mathpipe.pipeline.stage import BAD_INPUT, trouble

if TYPE_CHECKING:
    from rich.console import Console

SERVER = "mathpipe.corpus.annotation.serve"
EXAMPLES = """examples:
  mathpipe run                                     the whole chain, profile tiny
  mathpipe run corpus --set classifier.epoch=5     what corpus needs, then corpus
  mathpipe annotate                                the page on which people decide (annotate.source = "human")
  mathpipe plan --profile paper                    what the paper's run would do, with sizes
  mathpipe rerun grpo                              grpo again, and all that follows
  mathpipe show eval --wrong 20                    answers of the evaluation that are not right, and why
  mathpipe status --json                           state of every stage, for programs

Artifacts lie in runs/<profile>/<stage>-<hash8>; a changed value gives a new hash, an old artifact is never overwritten.
Exit codes: 0 done, or people are asked (the last line says where), 1 a stage failed, 2 bad input (one line says what), 130 interrupted."""

REVISE = """To revise a decision after the run went on: open the page, Log, the prefix; reopen the queue, decide, then
`mathpipe rerun roundN.annotate` (N: the round): the stages after it follow, the old artifacts stay."""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command `mathpipe`."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        arguments.command(arguments)
    except launch.StageWaits as waiting:
        print(f"{waiting}: run `{_annotate_command(arguments)}` (http://127.0.0.1:{ANNOTATION_PORT}/), then the same command again")
    except launch.StageFailed as failure:
        code = launch.exit_code(failure)
        if code == BAD_INPUT:
            _fail(f"error: {failure.stage}: {failure.cause} (log: {failure.log})", code)
        _fail(f"error: stage {failure.stage} failed (exit code {failure.exit_code})\ncause: {failure.cause}\nlog:   {failure.log}", code)
    except (ValueError, ContractError, FileNotFoundError) as error:
        _fail(f"error: {error}".replace("\n", " "), BAD_INPUT)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if (line := trouble(error, arguments.runs)) is None:
            raise
        _fail(f"error: {line}", BAD_INPUT)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues from here", 130)


def _annotate_command(arguments: argparse.Namespace) -> str:
    """The command that serves the page for a run with these arguments."""
    words = ["--config", str(arguments.config)] if arguments.config else []
    words += ["--runs", str(arguments.runs)] if str(arguments.runs) != os.environ.get("MATHPIPE_RUNS", "runs") else []
    needed = [text for text in arguments.overrides if text.startswith(("runtime.suggest_", "runtime.database="))]
    profile = arguments.profile or ("" if arguments.config else "tiny")
    return annotate_command(profile, [*words, *(word for text in needed for word in ("--set", text))])


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(text: str, code: int) -> None:
    if os.environ.get("MATHPIPE_TRACEBACK"):
        traceback.print_exc(file=sys.stderr)
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--profile", help="tiny (default), manuals, small or paper; also the folder's name below --runs")
    common.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of your own instead of a profile's")
    text = "override one value, for example grpo.group_size=16; may be repeated"
    common.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE", help=text)
    runs = Path(os.environ.get("MATHPIPE_RUNS", "runs"))
    common.add_argument("--runs", type=Path, default=runs, metavar="DIR", help="where artifacts lie (default: MATHPIPE_RUNS or ./runs)")
    parser = argparse.ArgumentParser(
        prog="mathpipe", description="DeepSeekMath, reproduced as a chain of stages.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[common])
        sub.set_defaults(command=command)
        return sub

    run = add("run", _run, "run a stage and what it needs, or the whole chain")
    run.add_argument("stages", nargs="*", metavar="STAGE", help="for example crawl, round2, round2.score, grpo (default: all)")
    run.add_argument("--verbose", action="store_true", help="show what the stages print; it is in each artifact's log.txt anyway")
    plan = add("plan", _plan, "show what would run, why, and how large it is; runs nothing")
    plan.add_argument("stages", nargs="*", metavar="STAGE", help="what is wanted (default: all)")
    status = add("status", _status, "show the state of every stage")
    status.add_argument("--json", action="store_true", help="a JSON list of {stage, state, path, hash, seconds}")
    rerun = add("rerun", _rerun, "run a stage again although it is done, and all that follow; the old artifacts stay")
    rerun.add_argument("stage", metavar="STAGE", help="for example grpo; with --set the stage of those values")
    rerun.add_argument("--verbose", action="store_true", help="show what the stages print")
    text = "wait for people's decisions although nobody serves the annotation page yet"
    for patient in (run, rerun):
        patient.add_argument("--wait", action="append_const", dest="overrides", const="runtime.wait=true", help=text)
    page = add("annotate", _annotate, "serve the page on which people decide which URLs are mathematics; Ctrl-C ends it")
    page.epilog, page.formatter_class = REVISE, argparse.RawDescriptionHelpFormatter
    page.add_argument("--port", type=int, default=ANNOTATION_PORT, help="default: %(default)s")
    page.add_argument("--host", default="127.0.0.1", help="address to serve on (default: %(default)s); others need an invitation")
    page.add_argument("--url", default="", help="https address under which a proxy before this server makes it known")
    page.add_argument("--who", metavar="NAME", help="your name in the log of decisions (default: USER)")
    instead = page.add_mutually_exclusive_group()
    instead.add_argument("--finish", action="store_true", help="end the queue that waits: the run goes on with what was decided")
    instead.add_argument("--export", type=Path, metavar="FILE", help="write the newest queue's decisions as JSON lines (annotate.file)")
    instead.add_argument("--import", type=Path, metavar="FILE", dest="import_", help="take over decisions from such a file")
    instead.add_argument("--invite", metavar="NAME", help="make a token for an annotator on another machine")
    add("report", _report, "build the report if it is not up to date, and print its path")
    sweep = add("sweep-volume", _sweep_volume, "train a small model on 1×, 2×, 3× and 4× round 1's tokens, compare held-out losses")
    sweep.add_argument("--verbose", action="store_true", help="show what the stages print")
    ablate = add("ablate", _ablate, "repeat a comparison of the paper at this profile's size, several seeds an arm")
    ablate.add_argument("comparison", choices=stages.COMPARISONS, metavar="COMPARISON", help="what is compared: %(choices)s")
    ablate.add_argument("--verbose", action="store_true", help="show what the stages print")
    show = add("show", _show, "print what the policy wrote at a step of grpo (completions), or answers of the evaluation (eval)")
    show.add_argument("what", choices=["completions", "eval"])
    show.add_argument("--step", type=int, default=-1, help="completions: from 1; negative ones count from the last (default: %(default)s)")
    show.add_argument("--stage", metavar="STAGE", help="for example rl.grpo_ps.0 (default: grpo or evaluate)")
    show.add_argument("--limit", type=_count, default=8, help="completions: at most this many questions (default: %(default)s)")
    show.add_argument("--wrong", type=_count, default=20, metavar="N", help="eval: at most N answers not right (default: %(default)s)")
    show.add_argument("--model", default="grpo", help="eval: start, base, sft, grpo.1, …, grpo (default: %(default)s)")
    show.add_argument("--task", default="", help="eval: one task, for example gsm8k (default: all)")
    gc = add("gc", _gc, "list artifacts that the current plan does not refer to")
    gc.add_argument("--yes", action="store_true", help="remove them")
    add("ui", _ui, "start the Luigi page and TensorBoard on this machine and list the links; Ctrl-C ends them")
    extract = add("extract", _extract, "print the text of a web page, formulas as delimited LaTeX")
    extract.add_argument("page", metavar="PAGE", help="an HTML file, - for standard input, or a WARC file with --url")
    extract.add_argument("--url", help="which page of the WARC file")
    bench = add("bench", _bench, "measure the project against others; results in RUNS/bench/results.json")
    bench.add_argument("--only", metavar="NAME", help="one benchmark or all whose name begins so, for example corpus")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, found {text!r}")
    return int(text)


def _make_plan(arguments: argparse.Namespace) -> Plan:
    return make_plan(arguments.runs, arguments.profile, arguments.config, arguments.overrides)


def _targets(names: Iterable[str]) -> list[str]:
    """The stages asked for, or the whole chain; `corpus` brings the last round's figures, which it does not read, with it."""
    targets = [stages.find(name).name for name in names] or stages.default()
    return [*stages.ROUNDS[-1:], *targets] if "corpus" in targets and stages.ROUNDS[-1] not in targets else targets


def _run(arguments: argparse.Namespace) -> None:
    targets = _targets(arguments.stages)
    _bring_about(_make_plan(arguments), targets, arguments.verbose)


def _rerun(arguments: argparse.Namespace) -> None:
    name = stages.find(arguments.stage).name
    force(_make_plan(arguments), name)
    plan = _make_plan(arguments)
    _bring_about(plan, stages.downstream(name, plan.stages), arguments.verbose)


def _report(arguments: argparse.Namespace) -> None:
    plan = _make_plan(arguments)
    if plan.pending(["report"]):
        _bring_about(plan, ["report"], verbose=False)
    print(report_file(plan))


def _sweep_volume(arguments: argparse.Namespace) -> None:
    _bring_about(_make_plan(arguments), ["volumes"], arguments.verbose)


def _ablate(arguments: argparse.Namespace) -> None:
    _bring_about(_make_plan(arguments), [f"ablate.{arguments.comparison}"], arguments.verbose)


def report_file(plan: Plan, name: str = "report") -> Path | None:
    """The HTML file of a report stage, or None while there is none."""
    step = plan.steps.get(name)
    return next(iter(sorted(step.out.glob("*.html"))), None) if step else None


def _bring_about(plan: Plan, targets: list[str], verbose: bool) -> None:
    """Run what `targets` need; a stage that cannot run here, or is being run elsewhere, is refused before anything starts."""
    pending = plan.pending(targets)
    if not pending:
        print(f"nothing to do: {', '.join(targets) if len(targets) < 4 else f'all {len(targets)} stages'} up to date in {plan.root}")
    else:
        for step in pending:
            if step.state == "running":
                raise ValueError(f"{step.name}: another process is working on {step.out}; wait for it or stop it")
            _require(step, plan)
        from mathpipe.pipeline import display, tasks  # luigi and rich: not needed to find nothing to do

        began = time.monotonic()
        with display.for_run(plan, pending, verbose) as watcher:
            tasks.run(plan, targets, watcher, verbose)
        display.summary(pending, time.monotonic() - began)
    print(tables.closing(plan, targets), end="")
    for name in ("corpus.report", "report"):
        if name in targets and report_file(plan, name):
            print(f"report: {report_file(plan, name)}")


def _require(step: Step, plan: Plan) -> None:
    """Let a stage refuse this machine.

    Raises:
        ConfigError: the stage cannot run here.
    """
    if hasattr(step.config, "require"):
        try:
            step.config.require(plan.runtime)
        except ValueError as error:
            raise ConfigError(f"{step.name}: {error}") from error


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _plan(arguments: argparse.Namespace) -> None:
    from rich.markup import escape
    from rich.table import Table

    targets = _targets(arguments.stages)
    plan = _make_plan(arguments)
    pending = {step.name for step in plan.pending(targets)}
    table = Table("stage", "would run", "why", "size")
    asked = {name for target in targets for name in stages.upstream(target, plan.stages)}
    shown = [step for step in plan.steps.values() if step.name in asked or not step.stage.optional]
    for step in shown:
        note = escape(step.config.describe()) if hasattr(step.config, "describe") else ""
        try:
            _require(step, plan)
        except ConfigError as error:
            note = f"{note}\n[yellow]cannot run here: {escape(str(error).partition(': ')[2])}[/]".strip()
        would = "[bold cyan]yes[/]" if step.name in pending else "[green]done[/]" if step.state == "done" else "[dim]no[/]"
        table.add_row(step.name, would, escape(step.reason), note)
    _console().print(table)
    print(f"{plan.profile}: {len(pending)} of {len(shown)} stages would run")


def _status(arguments: argparse.Namespace) -> None:
    plan = _make_plan(arguments)
    shown = [step for step in plan.steps.values() if not step.stage.optional or step.state != "missing"]
    rows = [{"stage": s.name, "state": s.state, "path": str(s.out), "hash": s.hash, "seconds": s.seconds} for s in shown]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    from rich.markup import escape
    from rich.table import Table

    from mathpipe.pipeline.display import STATE_STYLES, clock

    table = Table("stage", "state", "time", "path", "why")
    for step in shown:
        seconds = clock(step.seconds) if step.seconds is not None else ""
        table.add_row(step.name, f"[{STATE_STYLES[step.state]}]{step.state}[/]", seconds, str(step.out), escape(step.reason))
    _console().print(table)


def _show(arguments: argparse.Namespace) -> None:
    is_eval = arguments.what == "eval"
    out = _make_plan(arguments).steps[stages.find(arguments.stage or ("evaluate" if is_eval else "grpo")).name].out
    if is_eval:
        importlib.import_module("mathpipe.eval.show").main(out, arguments.model, arguments.task, arguments.wrong, _console())
    else:
        importlib.import_module("mathpipe.grpo.show").main(out, arguments.step, arguments.limit, _console())


def _gc(arguments: argparse.Namespace) -> None:
    from mathpipe.pipeline import gc

    plan = _make_plan(arguments)
    garbage = gc.unreferenced(plan)
    for path in garbage:
        size = gc.size_bytes(path)
        if arguments.yes:
            gc.remove(path)
        print(f"{'removed' if arguments.yes else 'unused '} {size / 1e6:10.1f} MB  {path}")
    if not garbage:
        print(f"nothing to remove in {plan.root}")
    elif not arguments.yes:
        print("add --yes to remove them")


def _annotate(arguments: argparse.Namespace) -> None:
    plan = _make_plan(arguments)
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        importlib.import_module(SERVER).main(_annotate_config(plan), plan.root, arguments)


def _annotate_config(plan: Plan) -> Any:
    return next(step.config for step in plan.steps.values() if step.config.SECTION == "annotate")


def _ui(arguments: argparse.Namespace) -> None:
    from mathpipe.pipeline import ui

    plan = _make_plan(arguments)
    page = importlib.import_module(SERVER).page_of(_annotate_config(plan), plan.root)
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        ui.serve(plan.root, report_file(plan), page)


def _extract(arguments: argparse.Namespace) -> None:
    print(importlib.import_module("mathpipe.corpus.extract_page").text_of(arguments.page, arguments.url))


def _bench(arguments: argparse.Namespace) -> None:
    from mathpipe.pipeline import bench

    sys.exit(bench.main(arguments.runs / "bench", arguments.only))


if __name__ == "__main__":
    main()
