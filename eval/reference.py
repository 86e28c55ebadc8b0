r"""The reference: items through lm-evaluation-harness 0.4.13, offline, from the same rows, with its own definitions of the tasks.

Prompts, worked examples, stop strings, filters and metrics are the harness's; only its data sets are replaced by rows of the benchmarks
artifact, and its limit of new tokens by the task's. `hf` is its own transformers back end, `ours` an engine of generation.py as an `LM`.
tests/test_eval_parity.py compares both with the tasks here, item by item. They differ on purpose in this:
1. BBH ends at "\n\nQ:" here, in the harness at "Q", "\n\n" and "</s>", which cut answers that contain them; GSM8K there also at "</s>"
   and "<|im_end|>".
2. BBH's answer is what follows the last "the answer is", without a full stop; the harness takes the first one, less its last
   character whatever that is. Of an answer to a multiple-choice question the first option counts here.
3. GSM8K's answer may be boxed and is compared by value: 160.00 is 160. Of the harness's two filters strict-match decides, which wants
   a character behind the number, and the text is compared.
4. MATH is judged by math-verify, in the harness by its exact_match: equality after rules of its own, then sympy.
5. BBH's sports_understanding goes on behind "step by step." in the published examples, in the harness on a new line.
6. Prompts that do not fit lose their last worked examples here, in the harness tokens from the left.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mathpipe.eval.generation import Generator, LoadedModel, choice_logprobs
from mathpipe.eval.mmlu import likeliest
from mathpipe.eval.task import Row

if TYPE_CHECKING:
    from lm_eval.api.model import LM

BATCH_SIZE = 16
"""Prompts of a batch of the harness's back end."""


@dataclass(frozen=True)
class Definition:
    """Where the harness defines a task, and how it is read."""

    file: str
    """`{group}` is a subject or task."""
    doc: Callable[[Row], dict[str, Any]]
    """A row as the harness's data set has it."""
    filter: str
    """The one of its filters that counts."""
    metric: str


DEFINITIONS = {
    "mmlu": Definition(
        "mmlu/default/mmlu_{group}.yaml", lambda row: {name: row[name] for name in ("question", "choices", "answer")}, "none", "acc"
    ),
    "bbh": Definition(
        "bbh/cot_fewshot/{group}.yaml", lambda row: {"input": row["question"], "target": row["target"]}, "get-answer", "exact_match"
    ),
    "gsm8k": Definition(
        "gsm8k/gsm8k-cot.yaml", lambda row: {"question": row["question"], "answer": row["target"]}, "strict-match", "exact_match"
    ),
    "math": Definition(  # the other subjects' files differ in the name of the data set alone
        "minerva_math/minerva_math_algebra.yaml",
        lambda row: {"problem": row["question"], "solution": rf"\boxed{{{row['target']}}}"}, "none", "exact_match",
    ),
}  # fmt: skip
"""Tasks of this evaluation that the harness defines too."""


def open_reference(loaded: LoadedModel, max_context: int, generator: Generator | None = None) -> LM:
    """The model for the harness: in its own transformers back end or, with a generator, in ours.

    Raises:
        ValueError: the harness is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError('evaluate.engine is "lm-eval", which is not installed; pip install -e ".[dev]", or take engine = "own"')
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every truncated prompt and every replaced data set
    if generator is not None:
        return _ours(loaded, generator, max_context)
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=BATCH_SIZE, max_length=max_context)


def run_reference(name: str, rows: Sequence[Row], lm: LM, num_shots: int, max_new_tokens: int) -> list[dict[str, Any]]:
    """What the harness makes of these rows of a task, in their order: item, prompt, completion, extracted, reason, logprobs.

    Raises:
        ValueError: the harness defines no such task, or lacks a package for it.
    """
    if name not in DEFINITIONS:
        raise ValueError(f"lm-eval defines no task {name!r} as it is asked here; name some of {', '.join(DEFINITIONS)} in evaluate.tasks")
    from lm_eval import evaluator

    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    tasks = {f"{name}-{group}": _task(name, group, asked, num_shots, max_new_tokens) for group, asked in groups.items()}
    samples = evaluator.evaluate(lm, {"tasks": tasks, "groups": {}, "group_map": {}}, bootstrap_iters=0)["samples"]
    found: dict[str, dict[str, Any]] = {}
    for group, asked in groups.items():
        for sample in samples[f"{name}-{group}"]:
            if sample["filter"] == DEFINITIONS[name].filter:
                row = asked[sample["doc_id"]]
                asked_as = {"item": row["item"], "num_shots": num_shots, "prompt": sample["arguments"][0][0]}
                found[row["item"]] = asked_as | _read(name, sample)
    return [found[row["item"]] for row in rows]


def _task(name: str, group: str, rows: list[Row], num_shots: int, max_new_tokens: int) -> Any:
    """The harness's task with these rows as its test split."""
    import lm_eval.tasks
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    definition = DEFINITIONS[name]
    try:
        config = load_yaml(Path(lm_eval.tasks.__file__).parent / definition.file.format(group=group))
    except (ImportError, AssertionError) as error:
        raise ValueError(f'lm-eval cannot load its task for {name!r} ({error}); pip install -e ".[dev]"') from error
    splits = {"test": [definition.doc(row) for row in rows], "dev": [definition.doc(shot) for shot in rows[0].get("shots", ())]}
    config = {key: value for key, value in config.items() if key not in ("tag", "training_split", "dataset_path", "dataset_name")}
    config |= {
        "task": f"{name}-{group}",
        "num_fewshot": num_shots,
        "custom_dataset": lambda **_: {split: Dataset.from_list(docs) for split, docs in splits.items()},
    }
    if "generation_kwargs" in config:
        config["generation_kwargs"] = config["generation_kwargs"] | {"max_gen_toks": max_new_tokens}
    return ConfigurableTask(config=config)


def _read(name: str, sample: dict[str, Any]) -> dict[str, Any]:
    """Completion, answer and verdict of a sample."""
    right = bool(sample[DEFINITIONS[name].metric])
    if name == "mmlu":
        logprobs = [float(one[0]) for one in sample["filtered_resps"]]
        answer: str | None = likeliest(logprobs)
        return {"completion": "", "extracted": answer, "reason": "correct" if right else "wrong", "logprobs": logprobs}
    completion, answer = sample["resps"][0][0], sample["filtered_resps"][0]
    if name == "math":
        from lm_eval.tasks.minerva_math import utils

        answer = utils.get_unnormalized_answer(completion)
    missing = answer in ("[invalid]", "[invalidanswer]")
    reason = "correct" if right else "no_answer" if missing else "wrong"
    return {"completion": completion, "extracted": None if missing else answer, "reason": reason, "logprobs": []}


def _ours(loaded: LoadedModel, generator: Generator, max_context: int) -> LM:
    """A generator as a model of the harness."""
    from lm_eval.api.model import TemplateLM

    class OurLM(TemplateLM):
        eot_token_id = loaded.tokenizer.eos_token_id
        max_length = max_context

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return loaded.encode(string)

        def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
            """Summed log-probabilities; whether a choice is the likeliest text of all is not said (no metric used here asks)."""
            choices: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
            asked = [(tuple(context[-(max_context + 1 - len(choice)) :]), tuple(choice)) for _, context, choice in requests]
            for context, choice in asked:
                choices.setdefault(context, set()).add(choice)
            together: dict[tuple[tuple[int, ...], ...], list[tuple[int, ...]]] = {}
            for context, asked_for in choices.items():
                together.setdefault(tuple(sorted(asked_for)), []).append(context)
            found: dict[Any, float] = {}
            for few, contexts in together.items():
                scores = choice_logprobs(generator, [list(context) for context in contexts], [list(choice) for choice in few])
                found |= {(c, few[n]): value for c, values in zip(contexts, scores, strict=True) for n, value in enumerate(values)}
            return [(found[key], False) for key in asked]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            ways: dict[tuple[int, tuple[str, ...]], list[int]] = {}
            for number, request in enumerate(requests):
                settings = request.args[1]
                ways.setdefault((settings["max_gen_toks"], tuple(settings["until"])), []).append(number)
            texts = [""] * len(requests)
            for (new_tokens, until), numbers in ways.items():
                prompts = [loaded.encode(requests[n].args[0])[-(max_context - new_tokens) :] for n in numbers]
                for n, (text,) in zip(numbers, generator.generate(prompts, new_tokens, until), strict=True):
                    texts[n] = text
            return texts

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError("no task of this evaluation asks for it")

    return OurLM()
