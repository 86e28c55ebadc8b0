"""Rewards: rules by hand, what cannot be computed, a user's file."""

import contextlib
import math
import sys

import psutil
import pytest
import torch

from mathpipe.eval import grader, sandbox
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.groups import Group
from mathpipe.grpo.questions import Question
from mathpipe.grpo.rewards import Rewards, is_well_formed, length_reward
from mathpipe.grpo.sampler import Response
from mathpipe.pretrain import tokenizer as bpe

QUESTION = Question("Tom buys 3 boxes of 4 pens and finds 5 more. How many pens are there?", "17")


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(["3*4=12\n12+5=17\n\\boxed{17}"] * 50, 300)


def score(tokenizer, texts, finished=True, question=QUESTION, **settings):
    config = GrpoConfig(max_new_tokens=100, **settings)
    ids = [tuple(bpe.encode(tokenizer, text) + [tokenizer.eos_token_id] * finished) for text in texts]
    responses = [Response(one, (0.0,) * len(one), finished, 1.0, (1,)) for one in ids]
    with contextlib.closing(Rewards(config, None, tokenizer, torch.device("cpu"))) as rewards:
        return rewards.score([question], [Group(responses, list(texts), 0)])[0]


def test_parts_and_weights_by_hand(tokenizer):
    weights = {"answer": 1.0, "format": 0.5, "steps": 0.25, "length": 2.0}
    right, wrong = score(tokenizer, ["3*4=12\n12+5=17\n\\boxed{17}", "3*4=12\n12+5=18\n\\boxed{18}, or so"], rewards=weights)
    assert right.parts == {"answer": 1.0, "format": 1.0, "steps": 1.0, "length": 1.0} and right.reward == 3.75
    assert wrong.parts == {"answer": 0.0, "format": 0.0, "steps": 0.5, "length": 1.0} and wrong.reward == 2.125
    assert (right.reason, right.answer, wrong.reason, wrong.answer) == ("correct", "17", "wrong", "18")
    assert right.steps == right.ends == ()  # outcome supervision


def test_process_supervision_rewards_steps(tokenizer):
    text = "3*4=12\nwe add\n12+5=18\n\\boxed{18}"
    (found,) = score(tokenizer, [text], supervision="process")
    assert found.steps[0] == 1.0 and math.isnan(found.steps[1]) and found.steps[2:] == (0.0, 0.0)
    assert len(found.ends) == 4 and found.ends[-1] == len(bpe.encode(tokenizer, text))  # EOS


def test_a_cut_off_answer_has_no_format(tokenizer):
    (found,) = score(tokenizer, ["3*4=12\n\\boxed{17}"], finished=False, rewards={"answer": 1.0, "format": 1.0})
    assert found.parts == {"answer": 1.0, "format": 0.0}


def test_programs_are_run_and_what_they_print_is_judged(tokenizer):
    """Right, right but unclosed, wrong, failed, printing the right thing and failing, a text without one, a box beside a wrong one."""
    texts = [
        "```python\nx = 3 * 4\nprint(x + 5)\n```", "So\n```python\nprint('so')\nprint(17.0)", "```python\nprint(3 * 4)\n```",
        "```python\n1 / 0\n```", "```python\nprint(17)\nimport os\nos.kill(os.getppid(), 9)\n```", "It is 17.",
        "```python\nprint(1)\n```\n\\boxed{17}",
    ]  # fmt: skip
    found = score(tokenizer, texts, rewards={"program": 1.0, "answer": 0.5})
    assert [one.parts["program"] for one in found] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert [one.reward for one in found] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.5]
    assert [(one.reason, one.answer) for one in found] == [
        ("correct", "17"), ("correct", "17.0"), ("wrong", "12"), ("program_error", None), ("program_error", None), ("no_program", None),
        ("wrong", "1"),
    ]  # fmt: skip
    assert not any("mathpipe.eval.sandbox_worker" in child.cmdline() for child in psutil.Process().children(recursive=True))


def test_a_machine_without_a_sandbox_is_told_before_training(tokenizer, monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setattr(sandbox, "command", lambda kind: [sys.executable, "-S", "-c", "raise OSError('Landlock: not here')"])
    score(tokenizer, ["1"])  # without programs none is needed
    with pytest.raises(ValueError, match="programs are not run without a sandbox"):
        score(tokenizer, [], rewards={"program": 1.0})


@pytest.mark.parametrize(("text", "wanted"), [
    (r"3+4=7" "\n" r"\boxed{7}.", True), (r"$\boxed{\frac{1}{2}}$.", True), (r"\[ \boxed{3} \]", True), (r"\boxed{7} or \boxed{8}", False),
    (r"\boxed{7}, I think", False), (r"\boxed{7} \text{apples}", False), (r"\boxed{7", False), ("7", False), (r"\boxed{}", False),
])  # fmt: skip
def test_format(text, wanted):
    assert is_well_formed(text) == wanted


def test_length_falls_over_the_last_fifth():
    assert [length_reward(n, 1024) for n in (1, 819, 1024)] == [1.0, 1.0, 0.0]
    assert length_reward(922, 1024) == pytest.approx(102 / 204.8)


@pytest.mark.parametrize("text", [
    r"\boxed{17} \boxed{18}",  # the last one counts
    r"\boxed{12+5}",  # arithmetic is not left to the grader
    r"\boxed{17 or 18}", r"\boxed{}", "17", r"\boxed{" + "17 " * 200 + "}", r"\boxed{17", r"\boxed{\boxed{}}",
])  # fmt: skip
def test_extraction_cannot_be_hacked(tokenizer, text):
    assert score(tokenizer, [text])[0].reward == 0.0


def test_an_answer_that_takes_too_long_is_unknown_not_wrong(tokenizer, monkeypatch):
    slow = grader.Grader(timeout_s=0.05)
    monkeypatch.setattr(grader, "shared_grader", lambda: slow)
    with slow:
        text = r"3*4=12" "\n" r"\boxed{\prod_{n=1}^{10000000} (1+\sin n)}"
        question = Question("?", r"\sum_{n=1}^{10000000} \sqrt{n}")
        (found,) = score(tokenizer, [text], question=question, supervision="process", rewards={"answer": 1.0, "format": 1.0})
    assert found.reason == "timeout"
    assert math.isnan(found.reward) and math.isnan(found.parts["answer"]) and found.parts["format"] == 1.0
    assert found.steps[0] == 1.0 and math.isnan(found.steps[1])


def test_a_user_s_file(tokenizer, tmp_path):
    file = tmp_path / "short.py"
    file.write_text("def reward(question, answer, completion):\n    return None if 'hm' in completion else len(completion) + int(answer)\n")
    name = f"{file}:reward"
    found = score(tokenizer, ["\\boxed{17}", "hm"], rewards={"answer": 1.0, name: 0.5})
    assert found[0].parts == {"answer": 1.0, name: 27.0} and found[0].reward == 14.5
    assert math.isnan(found[1].reward)
    config = GrpoConfig(rewards={"answer": 1.0, name: 0.5})
    before = config.fingerprint()
    file.write_text(file.read_text() + "# changed\n")
    assert before is not None and set(before) == {str(file)} and config.fingerprint() != before
    assert GrpoConfig().fingerprint() is None


@pytest.mark.parametrize(("code", "function", "message"), [
    ("def reward(q, a, c):\n    return 1 / 0", "reward", "short.py:reward failed on the completion .*: ZeroDivisionError: division by"),
    ("def reward(q, a, c):\n    return 'good'", "reward", "short.py:reward returned 'good'"),
    ("def reward(q, a, c):\n    return float('inf')", "reward", "returned inf .* return a finite number or None"),
    ("def rewards(q, a, c):\n    return 1", "reward", r"no function 'reward' in .*short.py \(there are: rewards\)"),
    ("import nowhere_to_be_found", "reward", "short.py: cannot be imported: ModuleNotFoundError"),
    ("def reward(:", "reward", "short.py: cannot be imported: SyntaxError"),
    (None, "reward", "no file .*short.py"),
])  # fmt: skip
def test_errors_of_a_user_s_file_are_one_line(tokenizer, tmp_path, code, function, message):
    file = tmp_path / "short.py"
    if code is not None:
        file.write_text(code)
    with pytest.raises(ValueError, match=message) as caught:
        score(tokenizer, ["\\boxed{17}"], rewards={f"{file}:{function}": 1.0})
    assert "\n" not in str(caught.value)


def test_a_reward_model_must_be_given(tokenizer):
    with pytest.raises(ValueError, match="--in reward_model=DIR"):
        score(tokenizer, ["1"], rewards={"reward_model": 1.0})
