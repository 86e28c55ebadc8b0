"""Tool-integrated reasoning: hand-made models write, the sandbox runs, the transcript is what DeepSeekMath's evaluation would have made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from mathpipe.eval.sandbox import Sandbox
from mathpipe.eval.tir import Transcript, shorten, solve
from mathpipe.sft.prompts import OUTPUT_FENCE, render, render_answer

PROMPT = render("How much is 6 times 7?", "tir")
WRITES = " Let us compute.\n```python\nx = 6 * 7\nprint(x)\n```\n"
CONCLUDES = "So \\boxed{42}."


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(num_workers=1, timeout_s=1.0) as made:
        yield made


def fake(*rounds: Sequence[str]) -> Callable[[list[str], tuple[str, ...]], list[str]]:
    """A model with given completions, round by round; what it was asked is in `asked`."""

    def generate(prompts: list[str], stop: tuple[str, ...]) -> list[str]:
        assert stop == (OUTPUT_FENCE,)
        asked.append(prompts)
        return list(rounds[len(asked) - 1])

    asked: list[list[str]] = []
    generate.asked = asked  # type: ignore[attr-defined]
    return generate


def test_a_program_is_run_and_the_model_goes_on_below_its_output(sandbox: Sandbox) -> None:
    generate = fake([WRITES], [CONCLUDES])
    (found,) = solve(generate, sandbox, [PROMPT])
    assert found.text == f"{WRITES.rstrip()}\n```output\n42\n```\n{CONCLUDES}"
    assert (found.finished, found.printed, [one.status for one in found.outcomes]) == (True, "42", ["ok"])
    assert generate.asked == [[PROMPT], [f"{PROMPT}{WRITES.rstrip()}\n```output\n42\n```\n"]]


def test_the_transcript_has_the_form_of_the_training_examples(sandbox: Sandbox) -> None:
    segments = [("text", "Let us compute."), ("code", "x = 6 * 7\nprint(x)"), ("output", "42"), ("text", CONCLUDES)]
    pieces = [text for text, _ in render_answer(segments)]
    (found,) = solve(fake([pieces[0]], [CONCLUDES]), sandbox, [PROMPT])  # a generator that leaves the stop string in
    assert found.text == "".join(pieces)


def test_prompts_go_in_step_and_leave_one_by_one(sandbox: Sandbox) -> None:
    generate = fake(["\\boxed{1}.", WRITES, WRITES], ["So \\boxed{42}.", "Again:\n```python\nprint(x + 1)\n```"], ["So \\boxed{43}."])
    first, second, third = solve(generate, sandbox, ["A", "B", "C"], max_rounds=3)
    assert (first.text, first.outcomes) == ("\\boxed{1}.", ()) and second.text.endswith("So \\boxed{42}.")
    assert [len(prompts) for prompts in generate.asked] == [3, 2, 1]
    assert third.text.endswith("```output\n43\n```\nSo \\boxed{43}.")  # x is known to the second program, the first print is not repeated
    assert [one.stdout for one in third.outcomes] == ["42\n", "43\n"]


def test_rounds_are_bounded_and_the_last_program_is_still_run(sandbox: Sandbox) -> None:
    (found,) = solve(fake([WRITES], ["```python\nprint(x)\n```"]), sandbox, [PROMPT], max_rounds=2)
    assert (found.finished, found.printed) == (False, "42") and found.text.endswith("\n```output\n42\n```\n")


@pytest.mark.parametrize(("program", "block"), [
    ("print('ab' * 100)", "ab" * 25 + "..." + "ab" * 25),
    ("print(1 / 0)", "Runtime errors: ZeroDivisionError: division by zero"),
    ("print('half way'); 1 / 0", "Runtime errors: ZeroDivisionError: division by zero"),
    ("print('ab' * 20_000)", "ab" * 25 + "..." + "ab" * 25),
    ("while True: pass", "Runtime errors: Timeout Error"),
    ("import os; os.fork()", "Runtime errors: PermissionError: [Errno 1] Operation not permitted"),
    ("for", "Runtime errors: SyntaxError: invalid syntax"),
    ("y = 1", ""),
])  # fmt: skip
def test_outputs_are_short_and_errors_are_told(sandbox: Sandbox, program: str, block: str) -> None:
    (found,) = solve(fake([f"```python\n{program}\n```\n"]), sandbox, [PROMPT], max_rounds=1)
    assert found.text.endswith(f"```\n```output\n{block}\n```\n") and not found.finished


@pytest.mark.parametrize("completion", [
    "no program at all", "```python\nprint(1)", "```python\nprint(1)\n```\nand so \\boxed{1}.", "```\nx\n```", "```python\n\n```", "",
])  # fmt: skip
def test_what_does_not_end_with_a_program_is_finished(sandbox: Sandbox, completion: str) -> None:
    assert solve(fake([completion]), sandbox, [PROMPT]) == [Transcript(completion, (), True)]


def test_nothing_is_asked_for_no_prompts(sandbox: Sandbox) -> None:
    assert solve(fake(), sandbox, []) == []


def test_a_model_that_writes_nothing_but_spaces_costs_no_time(sandbox: Sandbox) -> None:
    began = time.process_time()
    solve(fake(["```python\n" + " " * 50_000]), sandbox, [PROMPT])
    assert time.process_time() - began < 1.0


def test_shortening_keeps_both_ends() -> None:
    assert shorten("x" * 100, 100) == "x" * 100
    assert shorten("a" * 50 + "b" * 51, 100) == "a" * 50 + "..." + "b" * 50
