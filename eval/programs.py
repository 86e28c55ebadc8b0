"""Programs as answers (PoT): the program of a completion is run, and what it prints is read and judged. For evaluation and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from mathpipe.eval import extraction
from mathpipe.eval.grader import Grader
from mathpipe.eval.math_suites import close
from mathpipe.eval.sandbox import Sandbox, Status
from mathpipe.sft.prompts import OUTPUT_FENCE

FAILURES = ("no_program", *(f"program_{status}" for status in get_args(Status) if status != "ok"))
"""Reasons beside the grader's."""


def run_programs(completions: Sequence[str], sandbox: Sandbox) -> list[tuple[str, str]]:
    """(completion with what its program printed below, "" or one of FAILURES) for each; equal programs are run once."""
    programs = [extraction.program(completion) for completion in completions]
    distinct = list(dict.fromkeys(program for program in programs if program is not None))
    outcome_of = dict(zip(distinct, sandbox.run(distinct), strict=True))
    found = []
    for completion, program in zip(completions, programs, strict=True):
        if program is None:
            found.append((completion, "no_program"))
            continue
        outcome, text = outcome_of[program], completion.rstrip()
        said = outcome.stdout.strip() if outcome.status == "ok" else outcome.error
        text += "\n```" * (text.count("```") % 2) + f"\n{OUTPUT_FENCE}\n{said}\n```"
        found.append((text, "" if outcome.status == "ok" else f"program_{outcome.status}"))
    return found


def grade_programs(completions: Sequence[str], answers: Sequence[str], sandbox: Sandbox, grader: Grader) -> list[tuple[str, str | None]]:
    """(reason, last line printed) for each completion, as the tasks with programs are graded."""
    found: list[tuple[str, str | None]] = []
    for (text, failure), answer in zip(run_programs(completions, sandbox), answers, strict=True):
        printed = None if failure else extraction.printed(text)
        found.append((failure or close(printed, {"target": answer}, grader), printed))
    return found
