"""Prompts, extraction and verdicts of the tasks; worked examples against their sources, published scores against their file."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mathpipe.eval import config, extraction, few_shot, math_suites, published, show
from mathpipe.eval.grader import MAX_ANSWER_CHARS, Grader, extract_boxed
from mathpipe.eval.sandbox import Sandbox
from mathpipe.eval.tasks import TASKS
from mathpipe.pipeline.artifact import write_parquet

SHARED = Path(os.environ.get("MATHPIPE_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "benchmarks"
ROW = {"item": "0", "group": "", "question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": "B", "target": "B"}
GRADER = Grader()


def test_the_config_names_the_tasks() -> None:
    assert list(config.TASKS) == sorted(TASKS, key=config.TASKS.index)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_worked_examples_are_those_of_the_harness() -> None:
    import lm_eval.tasks
    import yaml

    folder = Path(lm_eval.tasks.__file__).parent
    gsm8k = yaml.safe_load((folder / "gsm8k" / "gsm8k-cot.yaml").read_text())["fewshot_config"]["samples"]
    assert [(shot["question"], shot["target"]) for shot in gsm8k] == list(few_shot.GSM8K)
    source = ast.parse((folder / "minerva_math" / "utils.py").read_text())  # to import it needs a certain version of antlr
    (function,) = [node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples"]
    assert isinstance(function.body[0], ast.Return) and function.body[0].value
    for shot, (problem, solution, answer) in zip(ast.literal_eval(function.body[0].value), few_shot.MATH, strict=True):
        assert (shot["problem"], shot["solution"]) == (problem, f"{solution}\n{few_shot.hope(answer)}")


def test_worked_examples_end_in_answers_that_are_read_and_right() -> None:
    """Every shot is a completion of its own task: what is read from it is its answer."""
    for _, thought in few_shot.GSM8K:
        assert extraction.number(thought) == thought.rpartition("The answer is ")[2].rstrip(".")
    for (_, solution, answer), (choices, letter) in zip(few_shot.MATH, few_shot.OPTIONS, strict=True):
        assert extraction.formula(f"{solution}\n{few_shot.hope(answer)}") == answer
        assert choices["ABCD".index(letter)].strip("$") == answer and len(set(choices)) == 4
    assert [extraction.letter(shot) for shot in math_suites.OPTION_SHOTS] == [letter for _, letter in few_shot.OPTIONS]
    assert [extraction.chinese(solution) for _, solution in few_shot.CHINESE] == ["23", "84", "12", "56", "30", "8"]


def test_worked_programs_print_the_answers() -> None:
    with Sandbox("none", num_workers=1) as sandbox:
        outcomes = sandbox.run([program for shots in few_shot.PROGRAMS.values() for _, program in shots])
    answers_of = [extraction.number(thought) for _, thought in few_shot.GSM8K] + ["24", "16", "-2/3", "14"]
    assert [outcome.stdout.strip() for outcome in outcomes] == answers_of


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.kind == "generate" and name not in ("bbh", "held_out")])
def test_prompts(name: str) -> None:
    task = TASKS[name]
    chat = task.prompt(ROW, 0, True)
    assert chat.startswith("User: 1 + 1?") and chat.endswith("\n\nAssistant:") and ("请" in chat) == (task.suite in ("cmath", "mgsm_zh"))
    assert ("(B) 2" in chat) == (task.suite in ("sat", "mmlu_stem"))
    if task.base:
        longest, shortest = task.prompt(ROW, task.num_shots, False), task.prompt(ROW, 0, False)
        assert longest.endswith(shortest) and longest.count("1 + 1?") == 1
        starts = {"Q": "Q: ", "P": "Problem:\n", "问": "问题："}[shortest[0]]
        assert longest.count(starts) == task.num_shots + 1 and "User:" not in longest
        one = task.prompt(ROW, 1, False)
        assert longest.startswith(one.removesuffix(shortest)), "the first examples are those that stay"
        assert not any(stop in one.removesuffix(shortest).split(starts, 1)[1].rstrip("\n") for stop in task.stop if stop != "\n```\n")


@pytest.mark.parametrize(
    ("read", "text", "wanted"),
    [
        (extraction.number, "The answer is 1,234.", "1,234"), (extraction.number, "The answer is -3.5 dollars", "-3.5"),
        (extraction.number, r"The answer is 3. So \boxed{4}", "4"), (extraction.number, "It is 3.", None),
        (extraction.number, "The answer is .", None), (extraction.number, r"\boxed{", None),
        (extraction.formula, "Final Answer: The final answer is $x^2 + 1$. I hope it is correct.", "x^2 + 1"),
        (extraction.formula, r"the final answer is 3.5. I hope it is correct. \boxed{", "3.5"), (extraction.formula, "x = 3", None),
        (extraction.formula, "The final answer is " + "1" * 300, None),
        (extraction.letter, "The final answer is (C). I hope", "C"), (extraction.letter, r"\boxed{A}", "A"),
        (extraction.letter, r"\boxed{\textbf{(D)}}", "D"), (extraction.letter, r"\boxed{24}. The answer is D", "D"),
        (extraction.letter, "The answer is Always", None), (extraction.letter, "B", None),
        (extraction.chinese, "所以答案是：1/5。", "1/5"), (extraction.chinese, "答案是40%。", "40%"),
        (extraction.chinese, r"\boxed{40\%}", "40%"), (extraction.chinese, "答案是3。答案是：一共5个。", "5"),
        (extraction.chinese, "共9个", None), (extraction.chinese, "答案是很多。", None),
        (extraction.printed, "```output\n1\n2\n```", "2"), (extraction.printed, "```output\n\n```", None), (extraction.printed, "2", None),
        (extraction.program, "```py\nx\n```\n```python\ny\n```", "x"), (extraction.program, "```python\nx = 1", "x = 1"),
        (extraction.program, "```python\n\n```", None),
    ],
)  # fmt: skip
def test_extraction(read: Any, text: str, wanted: str | None) -> None:
    assert read(text) == wanted


PARTS = [
    "a",
    "b",
    "1",
    " ",
    "{",
    "}",
    "\\",
    "$",
    "(",
    "B",
    ")",
    ".",
    "\n",
    "答案是",
    "：",
    "。",
    "\\boxed{",
    "The answer is ",
    "```output\n",
    "```",
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)


@given(TEXTS, st.sampled_from([extraction.number, extraction.formula, extraction.letter, extraction.chinese, extraction.printed]))
def test_whatever_a_model_writes_is_read(text: str, read: Any) -> None:
    found = read(text)
    assert found is None or 0 < len(found) <= MAX_ANSWER_CHARS
    assert read("") is None


@given(TEXTS, st.sampled_from(["7", "\\frac{1}{2}", "[2,5)", "f(x) = \\{1\\}"]))
def test_the_last_balanced_box_wins(text: str, answer: str) -> None:
    tail = f"\\boxed{{{answer}}}"
    assert extract_boxed(text + tail) == answer == extraction.formula(text + tail) == extract_boxed(text + tail + " so \\boxed{")


@pytest.mark.parametrize(
    ("found", "target", "reason"),
    [
        ("8.9999999", "9", "correct"), ("9.1", "9", "wrong"), ("1000005", "1000000", "wrong"), (r"4.5 \times 10^{33}", "4.5e33", "correct"),
        (r"4.6e33", "4.5e33", "wrong"), ("0", "3.3e-10", "wrong"), (r"3.3 \cdot 10^{-10} \mathrm{~m}", "3.3e-10", "correct"),
        ("0.3333333333", "1/3", "correct"), (None, "3", "no_answer"), ("nan", "3", "parse_error"),
    ],
)  # fmt: skip
def test_printed_and_rounded_numbers(found: str | None, target: str, reason: str) -> None:
    assert math_suites.close(found, {"target": target}, GRADER) in ({reason} if reason != "parse_error" else {"parse_error", "wrong"})


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent (set MATHPIPE_SHARED)")
def test_published_scores_are_those_of_the_file() -> None:
    """evaluation_results.json, to one digit. Base models: few-shot, `pal` is pot; the others zero-shot, `tool` is tir."""
    told = json.loads((SHARED / "dsm" / "evaluation_results.json").read_text())
    names = {"OCWCourses": "ocw", "cmath-cot-test": "cmath", "gsm8k-cot-test": "gsm8k", "MMLU-STEM-test": "mmlu_stem", "math_sat": "sat",
             "math-cot-test": "math", "gsm8k-test": "gsm8k", "math-test": "math", "mgsm-zh": "mgsm_zh", "cmath": "cmath"}  # fmt: skip
    tools = {"gsm8k-pal-test": "gsm8k-pot", "math-pal-test": "math-pot"}
    for model, counterpart in {"base": "Base", "sft": "Instruct", "grpo": "RL"}.items():
        expected = {"mmlu": 54.9, "bbh": 59.5} if model == "base" else {}
        for name, found in told[f"DeepSeekMath-{counterpart}"].items():
            for kind, task in (("cot", names.get(name)), ("tool", tools.get(name) or (f"{names[name]}-tir" if name in names else None))):
                if task and "accuracy" in found[kind]:
                    expected[task] = round(100 * found[kind]["accuracy"], 1)
        assert published.MODELS[model][1] == expected
    assert set(expected) <= set(TASKS)


def test_show_eval_prints_wrong_answers(tmp_path: Path) -> None:
    def item(n: int, reason: str) -> dict[str, Any]:
        prompt = f"Q: shot?\nA: 1\n\nQ: question {n}?\nA:"
        row = {"task": "gsm8k", "item": str(n), "sample": 0, "prompt": prompt, "target": "7", "completion": f"text {n}"}
        return row | {"extracted": None, "reason": reason, "logprobs": []}

    rows = [item(0, "correct"), item(1, "wrong"), item(2, "wrong"), item(3, "no_answer")]
    write_parquet(tmp_path / "items" / "sft-gsm8k.parquet", pa.Table.from_pylist(rows))
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    show.main(tmp_path, "sft", "", 2, console)
    text = console.export_text()
    assert (
        "question 1?" in text and "question 3?" in text and "question 0?" not in text and "question 2?" not in text and "shot" not in text
    )
    with pytest.raises(FileNotFoundError, match=r"no answers of model 'grpo' to task 'math'; there are: sft-gsm8k"):
        show.files(tmp_path, "grpo", "math")
