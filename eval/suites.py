"""Names and sizes of the benchmark suites, and the rows every source of them must deliver."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]

LETTERS = ("A", "B", "C", "D")
"""Of the choices."""
_MMLU_SUBJECTS = """abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
    econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
    high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
    high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
    human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
    medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
    professional_law professional_medicine professional_psychology public_relations security_studies sociology
    us_foreign_policy virology world_religions"""
MMLU_SUBJECTS = tuple(_MMLU_SUBJECTS.split())
MMLU_CATEGORIES = {
    "humanities": """formal_logic high_school_european_history high_school_us_history high_school_world_history international_law
        jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law world_religions""",
    "social sciences": """econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics
        high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations security_studies
        sociology us_foreign_policy""",
    "other": """business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing medical_genetics
        miscellaneous nutrition professional_accounting professional_medicine virology""",
}
"""Category → subjects (Hendrycks et al.; anatomy is STEM as in lm-evaluation-harness); all others are STEM."""
_MMLU_VAL = """11 14 16 11 29 16 8 11 11 22 11 11 26 12 16 41 14 10 32 22 9 18 22 21 43 29 26 17 60 23 22 26 23 12 13 11 18 11 11 25 11
    86 38 100 33 34 35 31 170 31 69 12 27 22 11 18 19"""
_MMLU_TEST = """100 135 152 100 265 144 100 100 100 173 102 100 235 114 145 378 126 100 310 203 100 165 198 193 390 270 238 151 545 216
    204 237 223 131 121 108 163 112 103 234 100 783 346 895 306 311 324 282 1534 272 612 110 245 201 100 166 171"""
MMLU_ROWS = {"dev": (5,) * len(MMLU_SUBJECTS), "val": tuple(map(int, _MMLU_VAL.split())), "test": tuple(map(int, _MMLU_TEST.split()))}
"""Split → rows of each subject."""
_BBH_TASKS = """boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages formal_fallacies
    geometric_shapes hyperbaton logical_deduction_five_objects logical_deduction_seven_objects
    logical_deduction_three_objects movie_recommendation multistep_arithmetic_two navigate object_counting
    penguins_in_a_table reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks
    sports_understanding temporal_sequences tracking_shuffled_objects_five_objects
    tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects web_of_lies word_sorting"""
BBH_TASKS = tuple(_BBH_TASKS.split())
BBH_ROWS = dict.fromkeys(BBH_TASKS, 250) | {"causal_judgement": 187, "penguins_in_a_table": 146, "snarks": 178}
GSM8K_SPLITS = {"train": 7473, "test": 1319}
MATH_SPLITS = {"train": 7500, "test": 5000}

PROBLEM_COLUMNS = ("item", "group", "question", "choices", "answer")
"""Of every mathematics suite; `choices` is empty where an answer is to be found, else `answer` is a letter."""
MMLU_COLUMNS = ("subject", "split", "item", "question", "choices", "answer")
"""`answer` is the index of the right choice."""
BBH_COLUMNS = ("task", "item", "input", "target")
PROMPT_COLUMNS = ("task", "prompt")
TEXT_COLUMNS = ("url", "text", "benchmark", "split", "item", "whole")
"""`whole`: whether the text names its item even where it is shorter than a gram: a question does, an answer does not."""
DECONTAMINATED = ("mmlu", "bbh", "gsm8k", "math", "cmath", "ocw", "sat", "agieval-gaokao-cloze", "agieval-gaokao-qa")
"""Benchmarks whose texts belong out of the corpus (section 2.1, with MMLU, BBH, OCW and SAT)."""


@dataclass
class Suites:
    """Benchmarks from one source, not yet written."""

    source: str
    """`local`, `hub` or `stand-in`."""
    origin: str
    """Folder or data sets they were read from."""
    mmlu: list[dict[str, Any]] = field(default_factory=list)
    bbh: list[dict[str, Any]] = field(default_factory=list)
    bbh_prompts: dict[str, str] = field(default_factory=dict)
    """Task → description and worked examples, without the canary line."""
    problems: dict[str, list[Row]] = field(default_factory=dict)
    """Mathematics suite → its test problems, rows of PROBLEM_COLUMNS."""
    texts: list[dict[str, Any]] = field(default_factory=list)
    """Texts of further benchmarks (GSM8K, MATH, …), rows of TEXT_COLUMNS."""

    def tables(self) -> dict[str, tuple[tuple[str, ...], list[Row]]]:
        """File → its columns and rows, all that is asked of models."""
        prompts = [{"task": task, "prompt": prompt} for task, prompt in self.bbh_prompts.items()]
        tables: dict[str, tuple[tuple[str, ...], list[Row]]] = {name: (PROBLEM_COLUMNS, rows) for name, rows in self.problems.items()}
        return {"mmlu": (MMLU_COLUMNS, self.mmlu), "bbh": (BBH_COLUMNS, self.bbh), "bbh_prompts": (PROMPT_COLUMNS, prompts)} | tables


def digest(columns: Iterable[str], rows: Iterable[Row]) -> str:
    """SHA-256 of rows, in their order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps([row[name] for name in columns], ensure_ascii=False).encode() + b"\n")
    return found.hexdigest()


def mmlu_category(subject: str) -> str:
    """Category of a subject.

    >>> mmlu_category("virology"), mmlu_category("anatomy")
    ('other', 'STEM')
    """
    return next((name for name, subjects in MMLU_CATEGORIES.items() if subject in subjects.split()), "STEM")


def text_row(part: str, split: str, item: str, text: str, whole: bool = True) -> dict[str, Any]:
    """One text to decontaminate against; `part` is a benchmark, or a benchmark and a subject of it.

    >>> text_row("mmlu/anatomy", "test", "7", "Which bone …")["url"]
    'mmlu/anatomy/test/7'
    """
    benchmark, _, subject = part.partition("/")
    name = f"{subject}/{item}".lstrip("/")
    return {"url": f"{part}/{split}/{item}", "text": text, "benchmark": benchmark, "split": split, "item": name, "whole": whole}


def mmlu_texts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Questions and choices, each a text of its own.

    Short choices ("the null hypothesis") and short questions asked with several sets of choices ("Which is true?") are part
    of an item but do not name it: as whole texts they would remove every page with these words.
    """
    choices_of: dict[str, set[tuple[str, ...]]] = {}
    for row in rows:
        choices_of.setdefault(row["question"], set()).add(tuple(row["choices"]))
    texts = []
    for row in rows:
        place = f"mmlu/{row['subject']}", row["split"]
        texts.append(text_row(*place, str(row["item"]), row["question"], whole=len(choices_of[row["question"]]) == 1))
        texts += choice_texts(*place, str(row["item"]), row["choices"])
    return texts


def choice_texts(part: str, split: str, item: str, choices: list[str]) -> list[dict[str, Any]]:
    """The choices of one question as texts."""
    return [text_row(part, split, f"{item}/{chr(ord('A') + i)}", choice, whole=False) for i, choice in enumerate(choices)]


def bbh_texts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """BBH inputs as texts."""
    return [text_row(f"bbh/{row['task']}", "test", str(row["item"]), row["input"]) for row in rows]
