"""Steps of a chain of thought: ends in tokens, exact arithmetic."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathpipe.grpo.reward_model import so_far
from mathpipe.grpo.steps import check_line, check_steps, score_steps, split_steps, step_ends
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.sft.generated import chain
from mathpipe.sft.problems import generate

RIGHT, WRONG, NOTHING = 1.0, 0.0, math.nan


@pytest.mark.parametrize(("line", "wanted"), [
    ("3*4=12", RIGHT),
    ("12+5=18", WRONG),
    ("First, 12 + 5 = 17 apples.", RIGHT),
    ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.", RIGHT),  # GSM8K
    ("Natalia sold 48/2 = <<48/2=26>>26 clips in May.", WRONG),
    ("She makes 9 * 2 = $<<9*2=18>>18 every day", RIGHT),
    (r"\[ \frac{1}{2} \times 10 = 5 \]", RIGHT),
    (r"\frac{1}{2}+\frac{1}{3}=\frac{5}{6}", RIGHT),
    (r"so \(2^{10} = 1024\) and 12 ÷ 4 = 3", RIGHT),
    ("**12 + 5 = 17**", RIGHT),
    ("2**3 = 8", RIGHT),
    ("12 apples + 5 apples = 17 apples", RIGHT),
    ("1,200 + 300 = 1,500", RIGHT),
    ("- 3 + 4 = 7", RIGHT),  # an item of a list
    ("2. 3 + 4 = 8", WRONG),
    ("that gives -5 + 3 = -2", RIGHT),
    ("(3 + 4 = 7)", RIGHT),
    ("2(3+4) = 14", RIGHT),
    ("共12+5=17个", RIGHT),
    ("3*4 = 12 + 5 = 17", WRONG),  # written as a chain it is no equality
    ("5 * 3 = 15, so 15 - 2 = 12", WRONG),
    ("10/3 = 3.33", RIGHT),  # rounded
    ("10/3 = 3.34", WRONG),
    ("10/3 = 3", WRONG),  # a whole number is exact
    ("5/0 = 3", WRONG),
    ("0.5*8=4.0", RIGHT),
    ("x = 3 + 4 = 7", RIGHT),
    ("x + 5 = 17", NOTHING),
    ("2x + 5 * 3 = 17", NOTHING),
    ("f(3) = 3x", NOTHING),
    ("20% of 50 = 10", NOTHING),
    ("25/100 = 25%", NOTHING),
    ("17/2 = 8 remainder 1", NOTHING),
    ("10 so the total = 10 + 5", NOTHING),
    ("12 = 12", NOTHING),
    ("(5) = 5", NOTHING),
    ("3 + 4 =", NOTHING),
    ("5*3 <= 16 == 16", NOTHING),
    ("Let me think.", NOTHING),
])  # fmt: skip
def test_arithmetic_of_a_line(line, wanted):
    assert check_line(line) == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("line", [
    "9^9^9^9^9^9=1", "((9^60)^60)^60^60=3", "-" * 5000 + "3+1=4", "(" * 5000 + "3" + ")" * 5000 + "+1=4", "9" * 5000 + "*9=81",
])  # fmt: skip
def test_no_generated_line_makes_checking_expensive(line):
    assert math.isnan(check_line(line))


@given(st.integers(-999, 999), st.sampled_from("+-*/"), st.integers(-999, 999), st.integers(-3, 3))
def test_checker_is_python_s_arithmetic(a, sign, b, off):
    if sign == "/" and b == 0:
        return
    value = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b or 1)}[sign] + off
    line = f"So ({a}) {sign} ({b}) = {value}."
    assert check_line(line) == float(off == 0)


@given(st.text(alphabet="12+-*/=(). ,x%$\\{}^\n", max_size=60))
@settings(max_examples=300)
def test_any_text_can_be_checked(text):
    assert len(check_steps(text)) == len(split_steps(text))


def test_every_generated_solution_is_exact():
    for problem in itertools.islice(generate(3, 12, 500, held_out=False), 200):
        assert check_steps(chain(problem))[:-1] == [1.0, 1.0]


def test_the_boxed_step_is_as_right_as_the_answer():
    assert score_steps("3*4=12\n12+5=17\n\\boxed{17}", 1.0) == [1.0, 1.0, 1.0]
    assert score_steps("3*4=12\n12+5=18\n\\boxed{18}", 0.0) == [1.0, 0.0, 0.0]
    assert score_steps("3*4=12\n12+5=17", 0.0) == [1.0, 0.0]  # it ends without an answer
    assert score_steps("", 0.0) == [0.0]
    timeout = score_steps("3*4=12\n\\boxed{x}", math.nan)
    assert timeout[0] == 1.0 and math.isnan(timeout[1])
    boxed_twice = score_steps("\\boxed{1}\n3*4=12\n\\boxed{12}", 1.0)
    assert boxed_twice[1:] == [1.0, 1.0] and math.isnan(boxed_twice[0])


def test_repeating_a_step_earns_nothing():
    scores = score_steps("1+1=2\n1+1=2\n 1+1=2 \n\\boxed{2}", 1.0)
    assert scores[0] == 1.0 and all(map(math.isnan, scores[1:3])) and scores[3] == 1.0


def test_after_an_error_no_step_counts_as_right():
    assert so_far([1.0, 0.0, 1.0]) == [1.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(["3*4=12\n12+5=17\n\\boxed{17}", "We add.\n\nSo we get 5.\n\n\nDone \n \n"] * 50, 300)


def test_ends_by_hand(tokenizer):
    ids = bpe.encode(tokenizer, "3*4=12\n\\boxed{12}") + [tokenizer.eos_token_id]
    pieces = [tokenizer.decode([token]) for token in ids]
    assert step_ends(tokenizer, ids) == (pieces.index("\n"), len(ids) - 1)  # the line break; EOS
    assert step_ends(tokenizer, [tokenizer.eos_token_id]) == (0,)


@given(st.text(alphabet="a5= \n\t　é", max_size=40), st.booleans())
def test_ends_belong_to_the_steps_of_the_text(tokenizer, text, finished):
    ids = bpe.encode(tokenizer, text) + [tokenizer.eos_token_id] * finished
    if not ids:
        return
    ends = step_ends(tokenizer, ids)
    assert len(ends) == len(split_steps(text)) == len(check_steps(text))
    assert ends[-1] == len(ids) - 1 and list(ends) == sorted(ends)
    for end, line in zip(ends[:-1], split_steps(text), strict=False):
        assert tokenizer.decode(ids[: end + 1]).rstrip(" \t\n").endswith(line.rstrip(" \t"))
