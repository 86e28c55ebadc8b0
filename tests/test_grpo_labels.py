"""Stage labels: Math-Shepherd's labels by hand, and a stage that is killed."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mathpipe.grpo import labels
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.labels import Labeller, agreement
from mathpipe.grpo.questions import Question, collect
from mathpipe.grpo.reward_config import LabelsConfig, LabelsInputs
from mathpipe.grpo.sampler import Response
from mathpipe.pipeline import artifact
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import model
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import PretrainConfig
from mathpipe.sft.generated import chain
from mathpipe.sft.problems import generate
from mathpipe.sft.prompts import render

QUESTION = Question("3 boxes of 4 pens and 5 more?", "17")


@pytest.fixture(scope="module")
def tokenizer():
    problems = itertools.islice(generate(0, 4, 50, held_out=False), 100)
    return bpe.train([render(problem.question) + chain(problem) for problem in problems], 400)


class Scripted:
    """A sampler that says what a script says after each beginning."""

    def __init__(self, tokenizer, script):
        self.tokenizer, self.script, self.asked = tokenizer, script, []

    def sample(self, requests, max_new_tokens, with_logp=True):
        found = []
        for request in requests:
            beginning = self.tokenizer.decode(request.prompt).removeprefix(render(QUESTION.question))
            self.asked.append((beginning, request.num_samples))
            texts = self.script[beginning]
            ids = [tuple(bpe.encode(self.tokenizer, text)) + (self.tokenizer.eos_token_id,) for text in texts]
            found.append([Response(one, (), True, request.temperature, request.prompt) for one in ids])
        return found


def test_labels_by_hand(tokenizer):
    """Two of four completions of the first step are right: soft 1/2, hard 1; none of the wrong second step; the last step is the answer."""
    first, wrong = "3*4=12\n", "3*4=12\n12+5=18\n"
    sampler = Scripted(tokenizer, {
        "": [first + "12+5=17\n\\boxed{17}", wrong + "\\boxed{18}"],
        first: ["12+5=17\n\\boxed{17}", "\\boxed{17}", "12+5=18\n\\boxed{18}", "12"],
        first + "12+5=17\n": ["\\boxed{17}"] * 4,
        wrong: ["\\boxed{18}"] * 4,
    })  # fmt: skip
    config = LabelsConfig(solutions=2)
    good, bad = Labeller(config, sampler, tokenizer).label([QUESTION], [0], [True])
    assert (good["soft"], good["hard"]) == ([0.5, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert (bad["soft"], bad["hard"]) == ([0.5, 0.0, 0.0], [1.0, 0.0, 0.0])
    assert good["exact"][:2] == [1.0, 1.0] and bad["exact"][:2] == [1.0, 0.0]
    assert good["reason"] == "correct" and bad["reason"] == "wrong" and good["held_out"]
    assert [len(row["steps"]) for row in (good, bad)] == [len(good["ends"]), len(bad["ends"])] == [3, 3]
    assert sorted(sampler.asked) == sorted([("", 2), (first, 4), (first + "12+5=17\n", 4), (wrong, 4)])  # what both share only once


def test_agreement_with_the_exact_checker_by_hand():
    row = {"exact": [1.0, 0.0, 1.0, math.nan], "hard": [1.0, 1.0, 0.0, 1.0], "soft": [0.25, 0.5, 0.0, 1.0]}
    found = agreement([row])  # exact so far: 1, 0, 0
    assert found["num_steps"] == 3 and found["hard"] == pytest.approx(2 / 3) and found["soft"] == pytest.approx(1 / 3)
    assert found["hard_of_exact"] == 1.0 and found["hard_of_inexact"] == 0.5
    assert agreement([{"exact": [math.nan], "hard": [1.0], "soft": [1.0]}]) == {"num_steps": 0}


@pytest.fixture(scope="module")
def sft(tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "initializer_range": 0.5, "context": 64}
    made = model.build(PretrainConfig(**sizes), len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    model.save(made, tokenizer, path)
    artifact.write_json(path / "manifest.json", {"stage": "sft", "hash": "00000000", "max_number": 4, "max_result": 50})
    return path


def test_a_killed_stage_goes_on_with_the_next_file(sft, tmp_path, monkeypatch):
    config = LabelsConfig(
        num_problems=4, num_held_out=2, solutions=2, rollouts=2, max_new_tokens=16, questions_per_shard=2, sampler="transformers",
        runtime=Runtime(device="cpu"),
    )  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    facts = labels.run(config, LabelsInputs(sft), whole)
    assert facts["num_questions"] == 6 and facts["num_solutions"] == 12
    held_out = [row["held_out"] for file in artifact.parquet_files(whole) for row in pq.read_table(file).to_pylist()]
    assert held_out == [False] * 8 + [True] * 4

    written = []

    def dies(path, table):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        real(path, table)

    real = artifact.write_parquet
    monkeypatch.setattr(artifact, "write_parquet", dies)
    with pytest.raises(KeyboardInterrupt):
        labels.run(config, LabelsInputs(sft), killed)
    monkeypatch.setattr(artifact, "write_parquet", real)
    before = written[0].stat().st_mtime_ns
    assert labels.run(config, LabelsInputs(sft), killed) == facts
    assert written[0].stat().st_mtime_ns == before
    for one, other in zip(artifact.parquet_files(whole), artifact.parquet_files(killed), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="solutions must be at least 1"):
        LabelsConfig(solutions=0)
    with pytest.raises(ValueError, match="did you mean 'vllm'"):
        LabelsConfig(sampler="vlm")
    assert replace(LabelsConfig(), questions=("gsm8k",)).conditional_inputs() == ("examples", "clean")


@pytest.mark.parametrize("seed", range(5))
def test_grpo_asks_other_questions_whatever_the_seeds(seed):
    """The same stream would let the reward model judge what it was trained on."""
    labelled, asked = (
        collect(config, (12, 100), None, None, lambda question: True).training
        for config in (LabelsConfig(num_problems=100, seed=seed).sampling(), GrpoConfig(num_steps=100, questions_per_step=1, seed=seed))
    )
    assert len({one.question for one in labelled} & {one.question for one in asked}) < 50
