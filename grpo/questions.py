"""The questions of every exploration, and those held out.

`generated` is the family of word problems (sft/problems.py): no held-out problem shares template and numbers with a training
one. Any other name is a source of the stage examples, of which the chain-of-thought examples with a known answer are asked
(section 4.2: questions of GSM8K and MATH from the SFT data); those held out are then questions that this stage never trains on,
though SFT has seen them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mathpipe.grpo.config import GENERATED, GrpoConfig
from mathpipe.pipeline.artifact import ContractError
from mathpipe.sft import schema
from mathpipe.sft.problems import Problem, generate

HELD_OUT_SEED = 1_000_003
"""Held-out problems are the same for every training seed."""
HELD_OUT_BUCKETS = 20
"""Of the questions of a data set one in this many is held out."""


@dataclass(frozen=True)
class Question:
    """A question and its final answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Questions:
    """An endless sequence of training questions, the same for every number of processes, and the held-out ones."""

    training: Sequence[Question]
    held_out: Sequence[Question]
    num_too_long: int
    """Training questions left out for a too long prompt."""
    seed: int

    def at(self, place: int) -> Question:
        """Question at a place of the sequence; from the second pass on in another order."""
        number, place = divmod(place, len(self.training))
        order = np.random.default_rng([self.seed, number]).permutation(len(self.training)) if number else None
        return self.training[place if order is None else int(order[place])]

    def of_step(self, config: GrpoConfig, step: int, slot: int, attempt: int = 0) -> Question:
        """Question number `slot` of an exploration; the next `attempt` stands in for one whose rewards were equal."""
        return self.at((attempt * config.num_steps + step) * config.questions_per_step + slot)


def collect(
    config: GrpoConfig, family: tuple[int, int], examples: Path | None, clean: Path | None, fits: Callable[[str], bool]
) -> Questions:
    """Training questions whose prompts fit, and `num_held_out` others.

    Args:
        family: largest number and largest result of generated problems.
        fits: whether the prompt of a question is short enough.

    Raises:
        ValueError: nearly no question fits, or there are too few.
    """
    if config.questions == (GENERATED,):
        training, held_out, num_too_long = _generated(config, *family, fits)
    else:
        if examples is None:
            raise ValueError(f"grpo.questions {list(config.questions)} are sources of the stage examples; give --in examples=DIR")
        asked = _of_examples(config, examples, clean)
        fitting = [one for one in asked if fits(one.question)]
        num_too_long = len(asked) - len(fitting)
        held_out = [one for one in fitting if _is_held_out(one.question)][: config.num_held_out]
        training = [one for one in fitting if not _is_held_out(one.question)]
        order = np.random.default_rng([config.seed, 0]).permutation(len(training))
        training = [training[n] for n in order]
    if not training or not held_out:
        raise ValueError(f"grpo.max_prompt_tokens {config.max_prompt_tokens} leaves out nearly every question ({num_too_long:,})")
    return Questions(training, held_out, num_too_long, config.seed)


def _generated(
    config: GrpoConfig, max_number: int, max_result: int, fits: Callable[[str], bool]
) -> tuple[list[Question], list[Question], int]:
    wanted = config.num_steps * config.questions_per_step * (1 + config.refill_rounds)
    kept: list[Question] = []
    num_too_long = 0
    for problem in generate(10_000 + config.seed, max_number, max_result, held_out=False):
        if len(kept) == wanted or num_too_long > 100 + 10 * len(kept):
            break
        if fits(problem.question):
            kept.append(_question(problem))
        else:
            num_too_long += 1
    return kept, [_question(problem) for problem in held_out_problems(config.num_held_out, max_number, max_result)], num_too_long


def held_out_problems(num_problems: int, max_number: int, max_result: int) -> list[Problem]:
    """Distinct held-out problems of the generated family."""
    distinct = {p.question: p for p in itertools.islice(generate(HELD_OUT_SEED, max_number, max_result, held_out=True), 20 * num_problems)}
    if len(distinct) < num_problems:
        raise ValueError(f"only {len(distinct)} distinct held-out problems with numbers up to {max_number}, {num_problems} asked for")
    return list(distinct.values())[:num_problems]


def _question(problem: Problem) -> Question:
    return Question(problem.question, str(problem.answer))


def _of_examples(config: GrpoConfig, examples: Path, clean: Path | None) -> list[Question]:
    found: dict[str, Question] = {}
    sources: set[str] = set()
    for example in schema.load(examples, clean):
        sources.add(example.source)
        if example.source in config.questions and example.format == "cot" and example.answer:
            found.setdefault(example.question, Question(example.question, example.answer))
    missing = [name for name in config.questions if name not in sources]
    if missing:
        there = f"there are: {', '.join(sorted(sources))}"
        raise ContractError(f"{examples}: no examples of {', '.join(missing)} ({there}); see grpo.questions")
    return list(found.values())


def _is_held_out(question: str) -> bool:
    return hashlib.sha256(question.encode()).digest()[0] % HELD_OUT_BUCKETS == 0
