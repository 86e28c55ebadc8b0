"""What is counted of an exploration, and groups that are drawn again."""

import math

import pytest

from mathpipe.grpo import rollout
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.groups import Group
from mathpipe.grpo.questions import Question, Questions
from mathpipe.grpo.rewards import Scored
from mathpipe.grpo.rollout import Rollout, explore
from mathpipe.grpo.sampler import Response
from mathpipe.grpo.train import step_metrics


def made(rewards, reasons, texts, finished=True):
    """A group of responses of 2 tokens."""
    responses = [Response((5, 6), (0.0, 0.0), finished, 1.0, (1,)) for _ in texts]
    scored = [Scored(reward, reason, text, {}, (), ()) for reward, reason, text in zip(rewards, reasons, texts, strict=True)]
    return Group(responses, list(texts), 0), scored


def test_an_unknown_reward_is_counted_with_its_reason_and_stays_out_of_the_means():
    """Four samples a group: 1, 0, unknown, 0 (mean 1/3, deviation √2/3), and four equal ones that are cut."""
    first = made([1.0, 0.0, math.nan, 0.0], ["correct", "wrong", "timeout", "wrong"], ["7", "8", "9", "8"])
    second = made([0.0] * 4, ["no_answer"] * 4, ["a"] * 4, finished=False)
    question = Question("?", "7")
    values = step_metrics(Rollout([question] * 2, *zip(first, second, strict=True)), {"grad_norm": 0.5, "updates": 1.0})
    assert values["reward"] == pytest.approx(1 / 7) and values["reward_std"] == pytest.approx(math.sqrt(2) / 3 / 2)
    assert (values["zero_std_frac"], values["truncated_frac"], values["distinct_frac"]) == (0.5, 0.5, 0.5)
    assert {name: count for name, count in values.items() if name.startswith("reason_")} == {
        "reason_correct": 1, "reason_wrong": 2, "reason_no_answer": 4, "reason_parse_error": 0, "reason_timeout": 1, **dict.fromkeys(
            ["reason_no_program", *(f"reason_program_{how}" for how in ("error", "timeout", "memory", "output", "killed"))], 0
        ),
    }  # fmt: skip


def test_groups_of_equal_rewards_are_filled_again_at_most_so_often(monkeypatch):
    """Questions 0 and 3 have unequal rewards. Slot 0 stays; slot 1 takes question 1, then 3; with one round fewer the last stays."""
    questions = Questions([Question(str(n), "") for n in range(6)], [], 0, 0)
    spread = {"0", "3"}

    class Rewards:
        def score(self, asked, groups):
            return [made([1.0, float(one.question not in spread)], ["correct"] * 2, "ab")[1] for one in asked]

    monkeypatch.setattr(rollout, "sample_groups", lambda *arguments: [made([0, 0], "  ", "ab")[0]] * len(arguments[3]))
    for rounds, wanted, refilled in ((0, ["0", "1"], 0), (1, ["0", "3"], 1), (2, ["0", "3"], 1)):
        config = GrpoConfig(num_steps=1, questions_per_step=2, group_size=2, refill_rounds=rounds)
        found = explore(config, None, Rewards(), None, questions, 0)
        assert [one.question for one in found.questions] == wanted and found.num_refilled == refilled
    spread.remove("3")
    found = explore(GrpoConfig(num_steps=1, questions_per_step=2, group_size=2, refill_rounds=2), None, Rewards(), None, questions, 0)
    assert [one.question for one in found.questions] == ["0", "5"] and found.num_refilled == 2
