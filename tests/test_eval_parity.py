r"""The evaluation beside lm-evaluation-harness, item by item: real questions, a small model trained here to answer in the form.

508 items: MMLU 312, BBH 96, GSM8K 100. Prompts, MMLU's choices and log-likelihoods (within 1e-3) and the model's words agree on every
item. The differences on purpose (eval/reference.py lists them) are held exactly: both completions are the same words, cut at the
stop strings of each, and the harness's answer is what its rule finds; where no named difference shows, the answers are identical.
"""

from __future__ import annotations

import importlib.metadata
import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mathpipe.eval import bbh, benchmarks, extraction, reference
from mathpipe.eval.config import BENCHMARKS_VARIABLE, BenchmarksConfig
from mathpipe.eval.generation import LoadedModel, choice_logprobs, cut, open_generator
from mathpipe.eval.grader import Grader
from mathpipe.eval.task import Row
from mathpipe.eval.tasks import TASKS
from mathpipe.pretrain import tokenizer as bpe

LM: Any = pytest.importorskip("lm_eval.api.model", reason="lm-eval is not installed: pip install -e .[dev]").LM
SHARED = Path(os.environ.get("MATHPIPE_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "benchmarks"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent (set MATHPIPE_SHARED)")
CONTEXT, NEW_TOKENS = 4096, 32
PER_GROUP = {"mmlu": 6, "bbh": 4, "gsm8k": 100}
GROUPS = {"mmlu": 52, "bbh": 24, "gsm8k": 1}
"""Subjects and tasks with questions that are short enough."""
MAX_CHARS = 4500
"""Longer prompts (of the history subjects, for instance) would take most of the time."""
HARNESS_STOPS = {"bbh": ("</s>", "Q", "\n\n"), "gsm8k": ("Q:", "</s>", "<|im_end|>")}
HARNESS_RULE = {"bbh": re.compile(r"(?<=the answer is )(.*)(?=.)"), "gsm8k": re.compile(r"The answer is (\-?[0-9\.\,]+).")}
SPORTS = "sports_understanding"


@dataclass(frozen=True)
class Asked:
    """What one item got from ours, the harness's back end, and ours as a model of the harness."""

    row: Row
    prompt: str
    whole: str
    """What the model says when nothing stops it."""
    completion: str
    logprobs: list[float]
    theirs: dict[str, Any]
    wrapped: dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The benchmarks."""
    out = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(BENCHMARKS_VARIABLE, str(SHARED))
        benchmarks.run(BenchmarksConfig(source="local"), benchmarks.BenchmarksInputs(), out)
    return out


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, list[Row]]:
    """The first items of every subject and task."""
    found: dict[str, list[Row]] = {}
    for name, count in PER_GROUP.items():
        seen: dict[str, int] = {}
        task = TASKS[name]
        for row in task.rows(folder):
            if seen.get(row["group"], 0) < count and len(task.prompt(row, task.num_shots, False)) <= MAX_CHARS:
                seen[row["group"]] = seen.get(row["group"], 0) + 1
                found.setdefault(name, []).append(row)
    return found


@pytest.fixture(scope="module")
def model(rows: dict[str, list[Row]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 0.2M parameters that has seen how answers are written, right ones and some that break a rule of the harness."""
    draw = random.Random(0)
    texts = [f"\nA: {row['question'][: draw.choice((0, 20, 40))]} The answer is {row['target']}.\n\nQ:" for row in rows["gsm8k"]]
    for row in rows["bbh"]:
        thought = draw.choice(("", "", "Q", row["question"][:20], row["question"][-30:]))
        end = draw.choice((".", ".", ".", ".", "", ". No, so the answer is (B).", " by Queen Q."))
        texts.append(f" step by step.\n{thought} So the answer is {row['target']}{end}\n\nQ:")
    tokenizer = bpe.train([*texts, *(TASKS[name].prompt(row, 2, False) for name, few in rows.items() for row in few[::6])], 2048)
    encoded = [bpe.encode(tokenizer, text) for text in texts]
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=False,
            max_position_embeddings=CONTEXT, initializer_range=0.05, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(70):
        ids = [token for _ in range(99) for token in draw.choice(encoded)][:1536]
        batch = torch.tensor(ids).view(12, 128)
        optimizer.zero_grad()
        network(batch, labels=batch).loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("model")
    network.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def asked(rows: dict[str, list[Row]], model: Path) -> dict[str, list[Asked]]:
    """Every item, asked in the three ways."""
    loaded = LoadedModel(model, "cpu")
    ours = open_generator("own", loaded, CONTEXT, 16384)
    harness = reference.open_reference(LoadedModel(model, "cpu"), CONTEXT)
    wrapped = reference.open_reference(loaded, CONTEXT, ours)
    found = {}
    for name, few in rows.items():
        task = TASKS[name]
        prompts = [task.prompt(row, task.num_shots, False) for row in few]
        tokens = [loaded.encode(prompt) for prompt in prompts]
        assert max(map(len, tokens)) + NEW_TOKENS <= CONTEXT, "nothing is cut"
        if name == "mmlu":
            letters = [loaded.encode(f"Answer: {letter}")[len(loaded.encode("Answer:")) :] for letter in "ABCD"]
            answers: list[Any] = [("", "", values) for values in choice_logprobs(ours, tokens, letters)]
        else:
            said = [ours.generate(tokens, NEW_TOKENS, stop) for stop in ((), task.stop)]
            answers = [(whole, text, []) for (whole,), (text,) in zip(*said, strict=True)]
        both = [reference.run_reference(name, few, lm, task.num_shots, NEW_TOKENS) for lm in (harness, wrapped)]
        found[name] = [
            Asked(row, prompt, *answer, theirs, again)
            for row, prompt, answer, theirs, again in zip(few, prompts, answers, *both, strict=True)
        ]
    return found


def test_at_least_500_items(asked: dict[str, list[Asked]]) -> None:
    assert {name: len({one.row["group"] for one in few}) for name, few in asked.items()} == GROUPS
    assert sum(len(few) for few in asked.values()) >= 500


def harness_s(prompt: str, row: Row) -> str:
    """The harness's prompt, of ours."""
    return prompt.replace("step by step. ", "step by step.\n") + "\n" if row["group"] == SPORTS else prompt


def test_prompts_are_the_harness_s(asked: dict[str, list[Asked]]) -> None:
    for one in (one for few in asked.values() for one in few):
        assert harness_s(one.prompt, one.row) == one.theirs["prompt"] == one.wrapped["prompt"]


@pytest.mark.parametrize(("name", "groups"), {"mmlu": 57, "bbh": 27, "gsm8k": 1, "math": 7}.items())
def test_prompts_of_every_subject_and_task_are_the_harness_s(folder: Path, name: str, groups: int) -> None:
    """The last item of each, however long, with all worked examples; of some with fewer."""
    if name == "math" and not importlib.metadata.version("antlr4-python3-runtime").startswith("4.11"):
        pytest.skip("lm-eval's task wants antlr4-python3-runtime 4.11: pip install -e .[dev]")
    task = TASKS[name]
    few = list({row["group"]: row for row in task.rows(folder)}.values())
    assert len(few) == groups
    for shots, some in ((task.num_shots, few), (2, few[:4]), (0, few[:4])):
        for row, theirs in zip(some, reference.run_reference(name, some, Told(), shots, 8), strict=True):
            assert harness_s(task.prompt(row, shots, False), row) == theirs["prompt"]
            assert (theirs["item"], theirs["completion"], theirs["num_shots"]) == (row["item"], "", shots)


class Told(LM):
    """Says what it is told, in the order of the questions; or nothing."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        super().__init__()
        self.texts = texts

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(0.0, False)] * len(requests)

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [cut(text, one.args[1]["until"]) for text, one in zip(self.texts or [""] * len(requests), requests, strict=True)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError


def test_mmlu_log_likelihoods_and_choices(asked: dict[str, list[Asked]]) -> None:
    chosen = set()
    for one in asked["mmlu"]:
        for other in (one.theirs, one.wrapped):
            assert one.logprobs == pytest.approx(other["logprobs"], abs=1e-3)
            assert "ABCD"[one.logprobs.index(max(one.logprobs))] == other["extracted"]
            assert (other["extracted"] == one.row["target"]) == (other["reason"] == "correct")
        chosen.add(one.theirs["extracted"])
    assert len(chosen) > 1, "the model does not always say the same letter"


@pytest.mark.parametrize("name", ["bbh", "gsm8k"])
def test_completions_are_the_same_words_cut_at_other_stop_strings(asked: dict[str, list[Asked]], name: str) -> None:
    few = [one for one in asked[name] if one.row["group"] != SPORTS]
    for one in few:
        assert one.theirs["completion"] == one.wrapped["completion"] == cut(one.whole, HARNESS_STOPS[name])
        assert one.completion == cut(one.whole, TASKS[name].stop)
    longer = [one for one in few if one.theirs["completion"] != one.completion]
    assert bool(longer) == (name == "bbh"), "BBH's stop strings cut answers, GSM8K's do not"
    assert len({one.completion for one in few}) > 3
    for one in asked["bbh"]:  # the one task whose prompt differs: the harness's model, ours inside, still agrees with its back end
        assert one.theirs["completion"] == one.wrapped["completion"]


@pytest.mark.parametrize("name", ["bbh", "gsm8k"])
def test_answers_of_the_model_are_identical_but_for_the_rules_that_differ(asked: dict[str, list[Asked]], name: str) -> None:
    for one in asked[name]:
        assert {key: one.theirs[key] for key in ("extracted", "reason")} == {key: one.wrapped[key] for key in ("extracted", "reason")}
        if one.row["group"] != SPORTS:
            compare(name, one.row, one.completion, one.theirs)


@pytest.mark.parametrize("name", ["bbh", "gsm8k"])
def test_planted_answers_are_identical_but_for_the_rules_that_differ(rows: dict[str, list[Row]], name: str) -> None:
    """Right and wrong answers to every item, in the form and beside it, whatever the model has learned."""
    for_each, draw = [], random.Random(1)
    for row in rows[name]:
        target, thought = draw.choice((row["target"], draw.choice(rows[name])["target"])), row["question"][: draw.choice((0, 0, 20, 40))]
        if name == "bbh":
            end = draw.choice((".", ".", ".", ".", ".", "", ". No, so the answer is (B).", " by Queen Q.", "\n\nSo it is.", ". Q: 1?"))
            for_each.append(f"{thought} So the answer is {target}{end}\n\nQ: more\nA: the answer is 3.")
        else:
            start = draw.choice((" The answer is ", " The answer is ", " The answer is $", " It is "))
            end = draw.choice((".", ".", ".", " apples.", "", ".00."))
            for_each.append(f" {thought}{start}{target}{end}\n\nQ: more\nA: The answer is 3.")
    found = reference.run_reference(name, rows[name], Told(for_each), TASKS[name].num_shots, NEW_TOKENS)
    compared = Counter(
        compare(name, row, cut(text, TASKS[name].stop), theirs) for row, text, theirs in zip(rows[name], for_each, found, strict=True)
    )
    assert min(compared["correct"], compared["wrong"]) >= len(rows[name]) // 6, compared
    assert compared["no_answer"] > 0 or name == "bbh"


def compare(name: str, row: Row, completion: str, theirs: dict[str, Any]) -> str:
    """Hold both answers and verdicts against each other; our verdict, "" where a named difference applies."""
    found = HARNESS_RULE[name].findall(theirs["completion"])
    assert theirs["extracted"] == (found[0].strip() if found else None)
    if differs(name, completion):
        return ""
    ours, answer = TASKS[name].extract(completion, row), theirs["extracted"] or ""
    assert ours == ((answer.rstrip(".,") if name == "gsm8k" else answer) or None), completion
    with Grader() as grader:
        verdict = TASKS[name].grade(ours, row, grader)
    if name == "gsm8k" and verdict == "correct" and (ours or "").replace(",", "") != row["target"]:
        assert theirs["reason"] == "wrong", "3.00 is 3 here alone"
        return ""
    assert (verdict == "correct") == (theirs["reason"] == "correct"), completion
    return verdict


def differs(name: str, completion: str) -> bool:
    """Whether a difference on purpose applies to this completion."""
    if name == "gsm8k":
        found = extraction.SENTENCE.search(completion)
        behind = completion[found.end() : found.end() + 1] if found else ""
        return "\\boxed" in completion or (found is not None and behind in ("", "\n") and not found[1].endswith((".", ",")))
    before, marker, rest = completion.partition(bbh.MARKER)
    line = rest.partition("\n")[0]
    if not marker:
        return False
    stopped = len(cut(completion, HARNESS_STOPS[name])) < len(before + marker + line)
    return marker in rest or stopped or not (line.startswith(" ") and line.endswith("."))
