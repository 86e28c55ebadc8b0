"""Benchmarks from local files or from the hub. Both check what they read and name the file or data set that is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mathpipe.eval.suites import (
    BBH_ROWS,
    BBH_TASKS,
    GSM8K_SPLITS,
    MATH_SPLITS,
    MMLU_SPLITS,
    MMLU_SUBJECTS,
    Suites,
    choice_texts,
    text_row,
)

HUB = {
    "mmlu": "cais/mmlu",
    "bbh": "lukaemon/bbh",
    "bbh_prompts": "Joschka/big_bench_hard",
    "gsm8k": "openai/gsm8k",
    "math": "EleutherAI/hendrycks_math",
}
MATH_SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus")
LETTERS = tuple("ABCD")
CANARY_END = "-----\n"
CALCULATOR = re.compile(r"<<[^<>]*>>")
"""GSM8K's calculator annotations, which no web page carries."""
MATH_FILES = {"train": "train.jsonl", "test": "validation.jsonl"}
DSM = {
    "cmath/test.jsonl": ("cmath", "question", None),
    "ocw/test.jsonl": ("ocw", "problem", "solution"),
    "sat/test.jsonl": ("sat", "question", "options"),
    "agieval/gaokao-mathcloze.jsonl": ("agieval-gaokao-cloze", "question", None),
    "agieval/gaokao-mathqa.jsonl": ("agieval-gaokao-qa", "question", "options"),
    "mgsm_zh/mgsm_zh.jsonl": ("mgsm_zh", "messages", None),
    "mmlu_stem/test.jsonl": ("mmlu_stem", "question", "options"),
}
"""File of DeepSeekMath's own suites → (benchmark, field with the question, field with the solution or the choices)."""


def expect_rows(place: object, found: int, wanted: int) -> None:
    """Raise ValueError unless the counts are equal."""
    if found != wanted:
        raise ValueError(f"{place}: {found} rows, expected {wanted}; fetch the complete file again")


def read_local(folder: Path) -> Suites:
    """All suites of a benchmark folder (mmlu csv, bbh json and cot-prompts, gsm8k and math jsonl, dsm where present).

    Raises:
        ValueError: a file is missing, unreadable or has another number of rows than published.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; point MATHPIPE_BENCHMARKS at the benchmark files, or unset it")
    suites = Suites("local", str(folder))
    for split, wanted in MMLU_SPLITS.items():
        rows = [row for subject in MMLU_SUBJECTS for row in _mmlu_file(folder / "mmlu" / split / f"{subject}_{split}.csv", subject, split)]
        expect_rows(folder / "mmlu" / split, len(rows), wanted)
        suites.mmlu += rows
    for task in BBH_TASKS:
        examples = _json(folder / "bbh" / "bbh" / f"{task}.json").get("examples", [])
        suites.bbh += [{"task": task, "item": i, "input": e["input"], "target": e["target"]} for i, e in enumerate(examples)]
        suites.bbh_prompts[task] = strip_canary(_text(folder / "bbh" / "cot-prompts" / f"{task}.txt"))
    expect_rows(folder / "bbh" / "bbh", len(suites.bbh), BBH_ROWS)
    for split, wanted in GSM8K_SPLITS.items():
        file = folder / "gsm8k" / f"{split}.jsonl"
        rows = _jsonl(file)
        expect_rows(file, len(rows), wanted)
        suites.texts += gsm8k_texts(split, rows)
    for split, wanted in MATH_SPLITS.items():
        file = folder / "math" / MATH_FILES[split]
        rows = _jsonl(file)
        expect_rows(file, len(rows), wanted)
        suites.texts += [text_row("math", split, str(i), row["problem"]) for i, row in enumerate(rows)]
    for name, fields in DSM.items():
        file = folder / "dsm" / name
        if file.exists():
            suites.texts += dsm_texts(_jsonl(file), *fields)
    return suites


def dsm_texts(rows: Iterable[dict[str, Any]], benchmark: str, question: str, more: str | None) -> list[dict[str, Any]]:
    """Questions, and solutions or choices, of one of DeepSeekMath's own suites."""
    texts = []
    for number, row in enumerate(rows):
        asked = row[question] if question != "messages" else row[question][0]["content"]
        texts.append(text_row(benchmark, "test", str(number), asked))
        if more and isinstance(row[more], list):
            texts += choice_texts(benchmark, "test", str(number), [str(choice) for choice in row[more]])  # some are numbers
        elif more:
            texts.append(text_row(benchmark, "test", f"{number}/{more}", row[more], whole=False))
    return texts


def gsm8k_texts(split: str, rows: Iterable[dict[str, str]]) -> list[dict[str, Any]]:
    """Questions and worked answers of GSM8K."""
    texts = []
    for number, row in enumerate(rows):
        texts.append(text_row("gsm8k", split, str(number), row["question"]))
        texts.append(text_row("gsm8k", split, f"{number}/answer", CALCULATOR.sub("", row["answer"].split("\n####")[0]), whole=False))
    return texts


def strip_canary(prompt: str) -> str:
    """A published BBH prompt without the canary lines above it."""
    return prompt.split(CANARY_END, 1)[-1].strip()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{file}: missing; fetch it again or point MATHPIPE_BENCHMARKS at a complete benchmark folder") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error}); fetch it again") from None


def _json(file: Path) -> Any:
    try:
        return json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error}); fetch it again") from None


def _jsonl(file: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in _text(file).split("\n") if line]  # splitlines also breaks at U+2028
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: a line that is not JSON ({error}); fetch it again") from None


def _mmlu_file(file: Path, subject: str, split: str) -> list[dict[str, Any]]:
    rows = []
    for number, cells in enumerate(csv.reader(io.StringIO(_text(file), newline=""))):
        if len(cells) != 6 or cells[5] not in LETTERS:
            raise ValueError(f"{file}: row {number + 1} is not question, A, B, C, D, answer ({len(cells)} cells); fetch it again")
        rows.append(mmlu_row(subject, split, number, cells[0], cells[1:5], "ABCD".index(cells[5])))
    return rows


def mmlu_row(subject: str, split: str, item: int, question: str, choices: list[str], answer: int) -> dict[str, Any]:
    """One row of MMLU_COLUMNS."""
    return {"subject": subject, "split": split, "item": item, "question": question, "choices": list(choices), "answer": answer}


def hub_problem(timeout_s: float) -> str | None:
    """Why the hub cannot be used now, or None when it answers within `timeout_s`."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answer: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{endpoint}/api/datasets/{HUB['mmlu']}", timeout=timeout_s):
                answer.append(None)
        except (urllib.error.URLError, OSError) as error:
            answer.append(f"{endpoint}: {error}")

    thread = threading.Thread(target=ask, daemon=True)  # looking a name up can block much longer than the time-out
    thread.start()
    thread.join(timeout_s)
    return answer[0] if answer else f"{endpoint}: no answer in {timeout_s:g} s"


def read_hub() -> Suites:
    """MMLU, BBH, GSM8K and MATH through `datasets`.

    Raises:
        ValueError: a data set has another number of rows than published.
    """
    from datasets import load_dataset

    suites = Suites("hub", ", ".join(HUB.values()))
    for split, wanted in MMLU_SPLITS.items():
        numbers = dict.fromkeys(MMLU_SUBJECTS, 0)
        for row in load_dataset(HUB["mmlu"], "all", split="validation" if split == "val" else split):
            subject = row["subject"]
            suites.mmlu.append(mmlu_row(subject, split, numbers[subject], row["question"], row["choices"], row["answer"]))
            numbers[subject] += 1
        expect_rows(f"{HUB['mmlu']} {split}", sum(numbers.values()), wanted)
    for task in BBH_TASKS:
        rows = load_dataset(HUB["bbh"], task, split="test")
        suites.bbh += [{"task": task, "item": i, "input": row["input"], "target": row["target"]} for i, row in enumerate(rows)]
    expect_rows(HUB["bbh"], len(suites.bbh), BBH_ROWS)
    for row in load_dataset(HUB["bbh_prompts"], "few_shot_prompts", split="few_shot_prompts"):
        suites.bbh_prompts[row["dataset_name"]] = strip_canary(row["chain_of_thought_prompt"])
    missing = sorted(set(BBH_TASKS) - set(suites.bbh_prompts))
    if missing:
        raise ValueError(f"{HUB['bbh_prompts']}: no chain-of-thought prompt for {', '.join(missing)}; use MATHPIPE_BENCHMARKS instead")
    for split, wanted in GSM8K_SPLITS.items():
        rows = list(load_dataset(HUB["gsm8k"], "main", split=split))
        expect_rows(f"{HUB['gsm8k']} {split}", len(rows), wanted)
        suites.texts += gsm8k_texts(split, rows)
    for split, wanted in MATH_SPLITS.items():
        rows = [row for subject in MATH_SUBJECTS for row in load_dataset(HUB["math"], subject, split=split)]
        expect_rows(f"{HUB['math']} {split}", len(rows), wanted)
        suites.texts += [text_row("math", split, str(i), row["problem"]) for i, row in enumerate(rows)]
        suites.texts += [text_row("math", split, f"{i}/solution", row["solution"], whole=False) for i, row in enumerate(rows)]
    return suites
