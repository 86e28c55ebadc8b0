r"""Tool-integrated reasoning: a model writes text and programs by turns, and reads what its programs print.

As in DeepSeekMath's published evaluation (evaluation/infer/run_tool_integrated_eval.py): generation stops at "```output"; when the
text then ends with a program, it is run and its output goes below in a block of its own, long outputs without their middle; and
the model goes on from there. All prompts are generated for in step. Different on purpose:

1. The programs of an answer run one after the other as cells of a notebook, in a fresh process, and what the last one prints is
   taken. The published script joins their texts, earlier ones without the lines that contain "print(".
2. After an exception the last line of its traceback stands in the block ("Runtime errors: …", as there), not all of it by tokens.
3. An answer that neither ends with a program nor with the end of text was cut off, and stays so: there it is continued. A program at
   the end of a text is run even if the model did not ask for its output.
4. The block of a program that printed nothing is empty, there it says "Runtime errors:" without any.
5. Programs are run in a sandbox, not by `exec` in the evaluating process, where a text that contains "os.system(" is all that is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mathpipe.eval.sandbox import Outcome, Sandbox
from mathpipe.sft.prompts import OUTPUT_FENCE

PROGRAM = re.compile(r"```python[ \t]*\n(.*?)```", re.DOTALL)
MAX_ROUNDS, MAX_OUTPUT_CHARS = 2, 100
"""Of the published evaluation: generations of an answer, characters of an output."""
Generate = Callable[[list[str], tuple[str, ...]], list[str]]
"""(prompts, stop strings) → completions, which end before the stop string, or with it."""


@dataclass(frozen=True)
class Transcript:
    """An answer with what its programs printed."""

    text: str = ""
    """All that was written below the prompt, output blocks included."""
    outcomes: tuple[Outcome, ...] = ()
    """Of the program of each round that had one."""
    finished: bool = False
    """False: the last round still asked for a program to be run; its output stands at the end."""

    @property
    def printed(self) -> str:
        """What the last program printed, "" where it failed or there was none."""
        return self.outcomes[-1].stdout.strip() if self.outcomes and self.outcomes[-1].status == "ok" else ""


def solve(
    generate: Generate, sandbox: Sandbox, prompts: Sequence[str], max_rounds: int = MAX_ROUNDS, max_output_chars: int = MAX_OUTPUT_CHARS
) -> list[Transcript]:
    """A transcript for every prompt.

    Args:
        max_rounds: generations of one answer at most; the program at the end of the last one is run too.
        max_output_chars: of a program's output; of a longer one the beginning and the end are kept.
    """
    found = [Transcript() for _ in prompts]
    waiting = list(range(len(prompts)))
    for _ in range(max_rounds):
        if not waiting:
            break
        completions = generate([prompts[n] + found[n].text for n in waiting], (OUTPUT_FENCE,))
        for n, completion in zip(waiting, completions, strict=True):
            found[n] = extend(found[n], completion)
        waiting = [n for n in waiting if not found[n].finished]
        for n, cells in zip(waiting, sandbox.run_notebooks(programs(found[n].text) for n in waiting), strict=True):
            output = f"\n{OUTPUT_FENCE}\n{shorten(said(cells[-1]), max_output_chars)}\n```\n"
            found[n] = replace(found[n], text=found[n].text + output, outcomes=(*found[n].outcomes, cells[-1]))
    return found


def extend(transcript: Transcript, completion: str) -> Transcript:
    r"""The transcript with one more completion; it is finished unless that ends with a program.

    >>> extend(Transcript(), " So\n```python\nprint(2)\n```\n```output")
    Transcript(text=' So\n```python\nprint(2)\n```', outcomes=(), finished=False)
    """
    text = completion.rstrip().removesuffix(OUTPUT_FENCE).rstrip()
    found = list(PROGRAM.finditer(text))
    asks = bool(found) and found[-1].end() == len(text) and bool(found[-1][1].strip())
    return replace(transcript, text=transcript.text + text, finished=not asks)


def programs(text: str) -> list[str]:
    """The programs of an answer."""
    return [match[1].rstrip() for match in PROGRAM.finditer(text)]


def said(outcome: Outcome) -> str:
    """What stands in the output block: what was printed, or why the program failed."""
    if outcome.status in ("ok", "output"):
        return outcome.stdout.strip()
    return "Runtime errors: " + ("Timeout Error" if outcome.status == "timeout" else outcome.error)


def shorten(text: str, max_chars: int) -> str:
    """A text without its middle where it is too long.

    >>> shorten("0123456789", 4), shorten("0123", 4)
    ('01...89', '0123')
    """
    half = max_chars // 2
    return text if len(text) <= max_chars else f"{text[:half]}...{text[len(text) - half :]}"
