r"""Rewards of sampled outputs: rules, a trained model, a user's file; for whole outputs and for their steps.

An output's reward is the weighted sum of its parts (`grpo.rewards`). A part that could not be computed (NaN: the grader ran out of
time, a user's function returned None) makes the sum NaN: the sample stays out of its group's statistics, it is never a silent 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mathpipe.eval.grader import BOX, extract_boxed, grade, shared_grader
from mathpipe.eval.programs import grade_programs
from mathpipe.eval.sandbox import Sandbox
from mathpipe.grpo import reward_file
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.groups import Group
from mathpipe.grpo.reward_model import ANSWER_SCORES, RewardModel
from mathpipe.grpo.sampler import Response
from mathpipe.grpo.steps import check_steps, score_steps, step_ends
from mathpipe.pretrain.tokenizer import encode_prompt
from mathpipe.sft.prompts import render

OVERLONG_FRAC = 0.2
"""Last part of `max_new_tokens` in which the length reward falls (DAPO's soft overlong punishment: 4,096 of 20,480 tokens)."""
AFTER_BOX = re.compile(r"[\s$.]*(?:\\[\])][\s.]*)?")
"""What may follow the boxed answer."""


class Asked(Protocol):
    """A question with its answer."""

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> Any: ...


@dataclass(frozen=True)
class Scored:
    """What an output earned."""

    reward: float
    """NaN: it could not be computed."""
    reason: str
    """Why the answer counts or not, whatever else is rewarded."""
    answer: str | None
    """The boxed text, or what the program printed."""
    parts: dict[str, float]
    """Reward by name, before the weights."""
    steps: tuple[float, ...]
    """Rewards of the steps under process supervision (NaN: nothing to check), else empty."""
    ends: tuple[int, ...]
    """Place of each step's last token in the response."""


class Rewards:
    """All that a GRPO stage rewards."""

    def __init__(self, config: GrpoConfig, reward_model: Path | None, tokenizer: Any, device: torch.device) -> None:
        """`reward_model` is the artifact of the stage of that name, where it takes part.

        Raises:
            ValueError: it is missing or of the wrong kind, a user's file is not what it should be, or programs cannot be run here.
        """
        self.config, self.tokenizer = config, tokenizer
        self.user = {name: reward_file.load(name) for name in config.rewards if ":" in name}
        self.asks_for_steps = config.supervision == "process" and config.step_rewards == "reward_model"
        self.sandbox = Sandbox(config.runtime.sandbox, max(1, config.runtime.num_workers // config.runtime.num_processes))
        if config.runs_programs():
            self.sandbox.run([""])  # where no sandbox works the stage ends here and not after its first samples
        self.model: RewardModel | None = None
        if config.wants_reward_model():
            if reward_model is None:
                raise ValueError("grpo.rewards or grpo.step_rewards name reward_model; give --in reward_model=DIR, made by that stage")
            self.model = RewardModel(config, reward_model, tokenizer, device)
            if self.asks_for_steps and self.model.kind != "process":
                raise ValueError(f'{reward_model}: is an outcome model; for step rewards set reward_model.kind = "process"')

    def score(self, problems: Sequence[Asked], groups: Sequence[Group]) -> list[list[Scored]]:
        """Rewards of every output of every question. With a reward model that is spread over processes, all call it equally often."""
        ends = [[self._ends(one) for one in group.responses] for group in groups]
        model_scores = self._ask_model(problems, groups, ends)
        answers = [str(problem.answer) for problem, group in zip(problems, groups, strict=True) for _ in group.texts]
        judged = iter(self.judge([text for group in groups for text in group.texts], answers))
        found = []
        for n, (problem, group) in enumerate(zip(problems, groups, strict=True)):
            outputs = zip(group.responses, group.texts, [next(judged) for _ in group.texts], ends[n], model_scores[n], strict=True)
            found.append([self._score(problem, *output) for output in outputs])
        return found

    def judge(self, texts: Sequence[str], answers: Sequence[str]) -> list[tuple[str, str | None]]:
        """(reason, answer) of each completion: of its program where programs are run, else of its box."""
        if self.config.runs_programs():
            return grade_programs(texts, answers, self.sandbox, shared_grader())
        verdicts = (grade(text, answer) for text, answer in zip(texts, answers, strict=True))
        return [(verdict.reason, verdict.extracted) for verdict in verdicts]

    def close(self) -> None:
        """End what runs programs."""
        self.sandbox.close()

    def _ends(self, response: Response) -> tuple[int, ...]:
        return step_ends(self.tokenizer, response.ids) if self.config.supervision == "process" else ()

    def _ask_model(self, problems: Sequence[Asked], groups: Sequence[Group], ends: list[list[tuple[int, ...]]]) -> list[list[list[float]]]:
        """Scores at the ends of steps, or at the last token alone; of the plain prompt, whatever the variant that the sampler saw."""
        if self.model is None:
            return [[[] for _ in group.responses] for group in groups]
        prompts, responses, places = [], [], []
        for problem, group, ends_of in zip(problems, groups, ends, strict=True):
            prompts += [encode_prompt(self.tokenizer, render(problem.question))] * len(group.responses)
            responses += [one.ids for one in group.responses]
            places += [end if self.asks_for_steps else (len(one.ids) - 1,) for one, end in zip(group.responses, ends_of, strict=True)]
        scores = iter(self.model.score(prompts, responses, places))
        return [[next(scores) for _ in group.responses] for group in groups]

    def _score(
        self, problem: Asked, response: Response, text: str, judged: tuple[str, str | None], ends: tuple[int, ...],
        model_scores: list[float],
    ) -> Scored:  # fmt: skip
        reason, found = judged
        verdict = ANSWER_SCORES.get(reason, 0.0)
        rules = {
            "answer": lambda: ANSWER_SCORES.get(grade(text, str(problem.answer)).reason, 0.0) if self.config.runs_programs() else verdict,
            "program": lambda: verdict,
            "format": lambda: float(response.finished and is_well_formed(text)),
            "length": lambda: length_reward(len(response.ids), self.config.max_new_tokens),
            "steps": lambda: exact_frac(text),
            "reward_model": lambda: model_scores[-1],
        }
        parts = {
            name: self.user[name](problem.question, str(problem.answer), text) if name in self.user else rules[name]()
            for name in self.config.rewards
        }
        reward = sum(self.config.rewards[name] * value for name, value in parts.items())
        steps: tuple[float, ...] = ()
        if self.config.supervision == "process":
            steps = tuple(model_scores if self.asks_for_steps else score_steps(text, verdict))
        return Scored(reward, reason, found, parts, steps, ends)


def is_well_formed(text: str) -> bool:
    r"""Whether a text has exactly one boxed answer, and that at its end.

    >>> is_well_formed(r"3+4=7\n\boxed{7}."), is_well_formed(r"\boxed{7} or \boxed{8}"), is_well_formed(r"\boxed{7}, I think")
    (True, False, False)
    """
    inside = extract_boxed(text)
    if inside is None or text.count(BOX) > 1:
        return False
    start, end = text.index(BOX) + len(BOX), text.rindex("}")
    return text[start:end].strip() == inside and AFTER_BOX.fullmatch(text, end + 1) is not None


def length_reward(num_tokens: int, max_new_tokens: int) -> float:
    """1 until the last OVERLONG_FRAC of the allowed tokens, from there on falling linearly, 0 with all of them used.

    >>> length_reward(80, 100), length_reward(90, 100), length_reward(100, 100)
    (1.0, 0.5, 0.0)
    """
    return min(1.0, (max_new_tokens - num_tokens) / (OVERLONG_FRAC * max_new_tokens))


def exact_frac(text: str) -> float:
    r"""Share of the steps with arithmetic in which it is exact; 0 without any, for then nothing was shown.

    >>> exact_frac("3*4=12\n12+5=18\n\\boxed{18}")
    0.5
    """
    known = [one for one in check_steps(text) if not math.isnan(one)]
    return sum(known) / len(known) if known else 0.0
