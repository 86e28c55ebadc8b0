"""Programs are run with limits, one bad one costs nothing but itself, and what they print is compared with what is claimed."""

from __future__ import annotations

import pytest

from mathpipe.eval.sandbox import Sandbox
from mathpipe.sft.generated import make_examples
from mathpipe.sft.schema import Example, Segment
from mathpipe.sft.verify import ERROR, NOTHING, OK, TIMEOUT, WRONG, same, starts_with, verify


def pot(code: str, answer: str = "") -> Example:
    return Example("?", (Segment("code", code),), answer, "pot", "test")


def tir(*blocks: str) -> Example:
    kinds = ("code", "output") * (len(blocks) // 2)
    return Example("?", tuple(Segment(kind, text) for kind, text in zip(kinds, blocks, strict=True)), "", "tir", "test")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(num_workers=1, timeout_s=1.0) as made:
        yield made


CASES = [
    (pot("print(6 * 7)", "42"), OK),
    (pot("print(6 * 8)", "42"), WRONG),
    (pot("print(1 / 0)", "42"), ERROR),
    (pot("import sys; sys.exit(3)", "42"), ERROR),
    (pot("answer = 42", "42"), NOTHING),
    (pot("while True: pass", "42"), TIMEOUT),
    (pot("import os; os.kill(os.getppid(), 9)", "42"), ERROR),
    (pot("import os; os._exit(0)", "42"), NOTHING),
    (pot("import os; os.kill(os.getpid(), 9)", "42"), TIMEOUT),
    (pot("x = [0] * 10 ** 10", "42"), TIMEOUT),
    (pot("open('small', 'w').write('42'); print(open('small').read())", "42"), ERROR),
    (pot("import sympy; print(sympy.Rational(1, 2) + 1)", "3/2"), OK),
    (pot("def f(n): return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f(10))", "55"), OK),
    (pot("if __name__ == '__main__': print(42)", "42"), OK),
    (pot("print(input())", "42"), ERROR),
    (pot("print(42); exit()", "42"), OK),
    (pot("import os; os.fork(); print(42)", "42"), ERROR),
    (pot("for n in range(10 ** 4): print(n)"), ERROR),
    (Example("?", (Segment("text", "It is 42."),), "42", "cot", "test"), ""),
    (tir("print(1)", "1", "print(2)", "2"), OK),
    (tir("x = 5\nprint(x)", "5", "print(x + 1)", "6"), OK),
    (tir("print(1)", "1", "print(2)", "3"), WRONG),
    (tir("print('a long line')", "a long"), OK),
    (tir("print(1 / 0)", "Traceback:\nZeroDivisionError: division by zero", "print(2)", "2"), OK),
    (tir("print(1 / 0)", "0"), ERROR),
]


def test_verdicts_stand_in_order_and_no_program_costs_the_others(sandbox):
    found = list(verify([example for example, _ in CASES], sandbox))
    assert [(example.segments, verdict) for example, verdict, _ in found] == [(example.segments, verdict) for example, verdict in CASES]
    details = {example.segments[0].text: detail for example, verdict, detail in found if verdict not in ("", OK)}
    assert details["print(6 * 8)"] == "48" and details["print(1 / 0)"] == "ZeroDivisionError: division by zero"


def test_what_a_program_prints_last_is_its_answer_where_none_is_stated(sandbox):
    ((example, verdict, _),) = verify([pot("print('working')\nprint(1024)")], sandbox)
    assert (example.answer, verdict) == ("1024", OK)


def test_what_no_file_can_hold_is_written_as_an_escape(sandbox):
    (printed, _, _), (_, verdict, detail) = verify([pot(r"print('\ud800')"), pot(r"raise ValueError('\ud800')")], sandbox)
    assert (printed.answer, verdict, detail) == (r"\ud800", ERROR, r"ValueError: \ud800")


def test_generated_programs_print_their_answers(sandbox):
    examples = list(make_examples(40, {"cot": 0.0, "pot": 0.5, "tir": 0.5}, 1, 10, 100))
    assert {verdict for _, verdict, _ in verify(examples, sandbox)} == {OK}


@pytest.mark.parametrize(("printed", "answer", "equal"), [
    ("21.0000000000000", "21", True), ("1,200", "$1200", True), ("0.33333", "0.33334", True), ("0.333", "0.334", False),
    ("-3", "3", False), ("x + 1", "x+1", False), ("(1, 2.0)", "(1, 2)", True), ("1e3", "1000", True), ("", "", True), ("1 2", "1", False),
])  # fmt: skip
def test_answers_agree_as_text_or_as_numbers(printed, answer, equal):
    assert same(printed, answer) is equal


@pytest.mark.parametrize(("printed", "recorded", "agrees"), [
    ("1\n2\n3", "1\n2", True), ("1\n2\n3", "1\n2...", True), ("3.14159265", "3.1416", True), ("10", "1", False), ("1", "1\n2", False),
    ("", "", True), ("5", "", False), ("x = 2", "y = 2", False),
])  # fmt: skip
def test_recorded_output_is_the_beginning_of_what_is_printed(printed, recorded, agrees):
    assert starts_with(printed, recorded) is agrees
