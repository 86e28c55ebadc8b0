"""Are the programs of PoT and TIR examples right? They are run (in eval's sandbox) and looked at.

A PoT program must print the answer, or, where the set states none, anything: then what its last line prints is the answer. What
each program of a TIR example prints must be the output that stands below it; a longer print than was recorded is fine (recorded
outputs are cut), and so are numbers that agree to 4 digits. Whether the final text draws the right conclusion is not checked.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mathpipe.eval.sandbox import Outcome, Sandbox
from mathpipe.sft.schema import Example

OK, ERROR, TIMEOUT, WRONG, NOTHING = "ok", "error", "timeout or out of memory", "wrong output", "nothing printed"
ENDED = ("timeout", "memory", "killed")
"""Outcomes of TIMEOUT."""
NUMBER = re.compile(r"[+-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
REL_TOLERANCE = 1e-4


def verify(examples: Sequence[Example], sandbox: Sandbox) -> Iterator[tuple[Example, str, str]]:
    """(example, verdict, detail): verdict OK or a reason, "" for examples without programs; detail is what was found.

    The programs of one example share a namespace, as the cells of a notebook do.
    """
    programs = [example.of_kind("code") for example in examples]
    outcomes = iter(sandbox.run_notebooks(cells for cells in programs if cells))
    for example, cells in zip(examples, programs, strict=True):
        yield judge(example, next(outcomes)) if cells else (example, "", "")


def judge(example: Example, outcomes: Sequence[Outcome]) -> tuple[Example, str, str]:
    """(example with its answer filled in, verdict, detail) from what its programs gave."""
    ended = next((outcome for outcome in outcomes if outcome.status in ENDED), None)
    if ended is not None:
        return example, TIMEOUT, ended.error
    if example.format == "pot":
        printed, error = outcomes[0].stdout.strip(), outcomes[0].error
        if error:
            return example, ERROR, error
        if not printed:
            return example, NOTHING, ""
        last = printed.splitlines()[-1].strip()
        if not example.answer:
            return replace(example, answer=last), OK, ""
        return (example, OK, "") if same(last, example.answer) else (example, WRONG, printed)
    for outcome, recorded in zip(outcomes, example.of_kind("output"), strict=True):
        printed, kind = outcome.stdout.strip(), outcome.error.partition(":")[0]
        if kind and kind not in recorded:
            return example, ERROR, outcome.error
        if not kind and not starts_with(printed, recorded):
            return example, WRONG, printed
    return example, OK, ""


def same(printed: str, answer: str) -> bool:
    """Whether two answers are the same text or numbers.

    >>> same("21.0000000000000", "21"), same("1,200", "$1200"), same("7", "8")
    (True, True, False)
    """
    one, other = (" ".join(text.replace("$", " ").split()) for text in (printed, answer))
    return one == other or (_shape(one) == _shape(other) and _close(one, other))


def starts_with(printed: str, recorded: str) -> bool:
    """Whether what was recorded, or its beginning before a "...", is how what was printed begins: the same words, numbers to 4 digits.

    >>> starts_with("x = 0.33333333333\\ndone", "x = 0.33333334"), starts_with("10", "1"), starts_with("", "4")
    (True, False, False)
    """
    words, wanted = printed.split(), recorded.split()
    if recorded.endswith("...") and " ".join(words).startswith(" ".join(wanted)[:-3].rstrip()):
        return True
    return bool(wanted or not words) and len(words) >= len(wanted) and same(" ".join(words[: len(wanted)]), " ".join(wanted))


def _shape(text: str) -> str:
    return NUMBER.sub("#", text)


def _close(one: str, other: str) -> bool:
    pairs = itertools.zip_longest(*([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (one, other)))
    return all(abs(a - b) <= REL_TOLERANCE * max(abs(a), abs(b)) for a, b in pairs)
