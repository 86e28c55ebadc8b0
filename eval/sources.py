"""Benchmarks from local files or from the hub. Both check what they read and name the file or data set that is wrong."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mathpipe.eval import problems
from mathpipe.eval.suites import (
    BBH_ROWS,
    BBH_TASKS,
    GSM8K_SPLITS,
    LETTERS,
    MATH_SPLITS,
    MMLU_ROWS,
    MMLU_SUBJECTS,
    TEXT_COLUMNS,
    Suites,
    choice_texts,
    digest,
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
CANARY_END = "-----\n"
CALCULATOR = re.compile(r"<<[^<>]*>>")
"""GSM8K's calculator annotations, which no web page carries."""
MATH_FILES = {"train": "train.jsonl", "test": "validation.jsonl"}
DSM = {
    "cmath/test.jsonl": ("cmath", "question", None, 1098),
    "ocw/test.jsonl": ("ocw", "problem", "solution", 272),
    "sat/test.jsonl": ("sat", "question", "options", 32),
    "agieval/gaokao-mathcloze.jsonl": ("agieval-gaokao-cloze", "question", None, 118),
    "agieval/gaokao-mathqa.jsonl": ("agieval-gaokao-qa", "question", "options", 351),
    "mgsm_zh/mgsm_zh.jsonl": ("mgsm_zh", "messages", None, 250),
    "mmlu_stem/test.jsonl": ("mmlu_stem", "question", "options", 3018),
}
"""File of DeepSeekMath's own suites → (benchmark, field with the question, field with the solution or the choices, rows)."""
DSM_URL = "https://raw.githubusercontent.com/deepseek-ai/DeepSeek-Math/21cc5c6701a708a11cee0af8b1fe884e3294dc7a/evaluation/datasets"
"""Where they are published."""
DIGESTS = {
    "mmlu": "16003d3c9deddd551e89ff32a452656fd508ceb44d9f0cdb45bf7de7f12a641b",
    "bbh": "a5d14054a424b796e395782e762408974922869da6ec6d70b6347312fd4fda78",
    "bbh_prompts": "7b98ff8606529d0ec818b51df448178c59dae2ff54ff3d5760d274c2934a49e3",
    "gsm8k": "c099e52f64351b25be69b50f30c9552e6a25f1a827ab41410070284f3e3c9f92",
    "math": "0be3f69a65114c67bf1da07cfdb51555e00216cfdeba17e5a4adc0c0711a400d",
    "cmath": "c4882855f244366c9a58e8337c297640b640520085814e1621bad719daff96c3",
    "ocw": "fab6843ca24223f2e49ee7fc4243efaed16295813f856ee10b371d63997c871a",
    "sat": "82f0f3a1221b847a7cb42789defbfcd6af23e183a0c14f716329fcfaadc164bc",
    "mgsm_zh": "8faa943281de6d1ed584f68f7715f428ef86ea15859099f60bbc4c2777067166",
    "mmlu_stem": "127984e8f62f4d6d15a90a962b8e311b2ce6b108d2cc08424867b203ad1684c8",
    "gsm8k texts": "0a4ad756210ab1a04a2702ab446c36b0a7b2cfc77d4448a5d14c88866e501364",
    "math texts": "f722c2a7cb8a7f5cf6d37f10dbc07cef1caf3e2f0de23dc44bbfcc12beac98f0",
    "ocw texts": "5daa5316c80a85a538384b44f243eea1a5291bbb32b07dbad120b9311f147302",
    "agieval-gaokao-cloze texts": "b98c7b270e9cbc35cc14852338180ce8e0ec1d445e9a819fa2427b4a69f740e8",
    "agieval-gaokao-qa texts": "492be5901bdf82583a10298bda1d34b949e18d7444a104ed24cc910acbb39864",
}
"""Table of `Suites.tables`, or texts that are in none of them → digest of the published rows."""


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
    for split, counts in MMLU_ROWS.items():
        for subject, wanted in zip(MMLU_SUBJECTS, counts, strict=True):
            suites.mmlu += _mmlu_file(folder / "mmlu" / split / f"{subject}_{split}.csv", subject, split, wanted)
    for task, wanted in BBH_ROWS.items():
        file = folder / "bbh" / "bbh" / f"{task}.json"
        with reading(file, wanted):
            examples = json.loads(_text(file, wanted))["examples"]
            suites.bbh += [{"task": task, "item": i, "input": e["input"], "target": e["target"]} for i, e in enumerate(examples)]
        expect_rows(file, len(examples), wanted)
        suites.bbh_prompts[task] = strip_canary(_text(folder / "bbh" / "cot-prompts" / f"{task}.txt", 0))
    for split, wanted in GSM8K_SPLITS.items():
        rows = _jsonl(file := folder / "gsm8k" / f"{split}.jsonl", wanted)
        with reading(file, wanted):
            suites.texts += gsm8k_texts(split, rows)
    suites.problems["gsm8k"] = problems.rows(problems.gsm8k, rows)
    for split, wanted in MATH_SPLITS.items():
        rows = _jsonl(file := folder / "math" / MATH_FILES[split], wanted)
        with reading(file, wanted):
            suites.texts += [text_row("math", split, str(i), row["problem"]) for i, row in enumerate(rows)]
            suites.problems["math"] = problems.rows(problems.math, rows)
    for name, (*_, wanted) in DSM.items():
        add_dsm(suites, name, folder / "dsm" / name, _jsonl(folder / "dsm" / name, wanted))
    expect_published(suites, str(folder))
    return suites


def add_dsm(suites: Suites, name: str, place: object, rows: list[dict[str, Any]]) -> None:
    """One of DeepSeekMath's own files: its texts, and its problems where models are asked for them."""
    benchmark, question, more, wanted = DSM[name]
    with reading(place, wanted):
        suites.texts += dsm_texts(rows, benchmark, question, more)
        if benchmark in problems.READERS:
            suites.problems[benchmark] = problems.rows(problems.READERS[benchmark], rows)


def expect_published(suites: Suites, place: str, names: Iterable[str] = DIGESTS) -> None:
    """Raise ValueError unless every table, and the further texts, have their published rows, word for word."""
    tables = suites.tables()
    for name in names:
        wanted = DIGESTS[name]
        texts = TEXT_COLUMNS, [row for row in suites.texts if row["benchmark"] == name.removesuffix(" texts")]
        columns, rows = tables.get(name, texts)
        found = digest(columns, rows)
        if found != wanted:
            told = f"{len(rows):,} rows as expected, but not the published ones (sha256 {found[:12]}…, expected {wanted[:12]}…)"
            raise ValueError(f"{place}: {name}: {told}; fetch the files again")


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


@contextlib.contextmanager
def reading(place: object, wanted: int) -> Iterator[None]:
    """Turn what goes wrong with the content of a file into a ValueError that names it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        if isinstance(error, ValueError) and str(place) in str(error):
            raise
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{place}: not the published file ({told}); {wanted} rows expected; fetch it again") from None


def _text(file: Path, wanted: int) -> str:
    with reading(file, wanted):
        try:
            return file.read_text(encoding="utf-8")
        except FileNotFoundError:
            told = f"missing ({wanted} rows expected)" if wanted else "missing"
            raise ValueError(f"{file}: {told}; fetch it again or point MATHPIPE_BENCHMARKS at a complete benchmark folder") from None


def _jsonl(file: Path, wanted: int) -> list[dict[str, Any]]:
    rows = json_rows(file, _text(file, wanted), wanted)
    expect_rows(file, len(rows), wanted)
    return rows


def json_rows(place: object, text: str, wanted: int) -> list[dict[str, Any]]:
    """The values of JSON lines."""
    with reading(place, wanted):
        return [json.loads(line) for line in text.split("\n") if line]  # splitlines also breaks at U+2028


def _mmlu_file(file: Path, subject: str, split: str, wanted: int) -> list[dict[str, Any]]:
    rows = []
    for number, cells in enumerate(csv.reader(io.StringIO(_text(file, wanted), newline=""))):
        if len(cells) != 6 or cells[5] not in LETTERS:
            told = f"row {number + 1} is not question, A, B, C, D, answer ({len(cells)} cells)"
            raise ValueError(f"{file}: {told}; {wanted} rows expected; fetch it again")
        rows.append(mmlu_row(subject, split, number, cells[0], cells[1:5], LETTERS.index(cells[5])))
    expect_rows(file, len(rows), wanted)
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


def download(url: str, timeout_s: float) -> str:
    """The text at an address."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(f"{url}: {error}; or set MATHPIPE_BENCHMARKS to a folder with the files") from None


def read_hub(timeout_s: float) -> Suites:
    """MMLU, BBH, GSM8K and MATH through `datasets`, DeepSeekMath's own suites from its repository.

    Raises:
        ValueError: a data set cannot be had, or has another number of rows than published; DeepSeekMath's suites: other rows.
    """
    from datasets import load_dataset

    suites = Suites("hub", ", ".join(HUB.values()))
    for split, counts in MMLU_ROWS.items():
        numbers = dict.fromkeys(MMLU_SUBJECTS, 0)
        for row in load_dataset(HUB["mmlu"], "all", split="validation" if split == "val" else split):
            subject = row["subject"]
            suites.mmlu.append(mmlu_row(subject, split, numbers[subject], row["question"], row["choices"], row["answer"]))
            numbers[subject] += 1
        expect_rows(f"{HUB['mmlu']} {split}", sum(numbers.values()), sum(counts))
    for task in BBH_TASKS:
        rows = load_dataset(HUB["bbh"], task, split="test")
        suites.bbh += [{"task": task, "item": i, "input": row["input"], "target": row["target"]} for i, row in enumerate(rows)]
    expect_rows(HUB["bbh"], len(suites.bbh), sum(BBH_ROWS.values()))
    for row in load_dataset(HUB["bbh_prompts"], "few_shot_prompts", split="few_shot_prompts"):
        suites.bbh_prompts[row["dataset_name"]] = strip_canary(row["chain_of_thought_prompt"])
    missing = sorted(set(BBH_TASKS) - set(suites.bbh_prompts))
    if missing:
        raise ValueError(f"{HUB['bbh_prompts']}: no chain-of-thought prompt for {', '.join(missing)}; use MATHPIPE_BENCHMARKS instead")
    for split, wanted in GSM8K_SPLITS.items():
        rows = list(load_dataset(HUB["gsm8k"], "main", split=split))
        expect_rows(f"{HUB['gsm8k']} {split}", len(rows), wanted)
        suites.texts += gsm8k_texts(split, rows)
    suites.problems["gsm8k"] = problems.rows(problems.gsm8k, rows)
    for split, wanted in MATH_SPLITS.items():
        rows = [row for subject in MATH_SUBJECTS for row in load_dataset(HUB["math"], subject, split=split)]
        expect_rows(f"{HUB['math']} {split}", len(rows), wanted)
        suites.texts += [text_row("math", split, str(i), row["problem"]) for i, row in enumerate(rows)]
        suites.texts += [text_row("math", split, f"{i}/solution", row["solution"], whole=False) for i, row in enumerate(rows)]
    suites.problems["math"] = problems.rows(problems.math, rows)
    download_dsm(suites, DSM_URL, timeout_s)
    return suites


def download_dsm(suites: Suites, base: str, timeout_s: float) -> None:
    """DeepSeekMath's own suites from below an address."""
    for name, (*_, wanted) in DSM.items():
        rows = json_rows(url := f"{base}/{name}", download(url, timeout_s), wanted)
        expect_rows(url, len(rows), wanted)
        add_dsm(suites, name, url, rows)
    own = {benchmark for benchmark, *_ in DSM.values()}
    expect_published(suites, base, [name for name in DIGESTS if name.removesuffix(" texts") in own])
