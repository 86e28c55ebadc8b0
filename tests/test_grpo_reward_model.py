"""Reward models: head, loss by hand, the stages labels and reward_model, training between iterations."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForTokenClassification, GPTNeoXConfig, GPTNeoXForCausalLM, Qwen2Config, Qwen2ForCausalLM

from mathpipe.grpo import labels, reward_model, scorer, train_reward
from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.groups import Group
from mathpipe.grpo.packed import pack
from mathpipe.grpo.questions import Question
from mathpipe.grpo.reward_config import RewardModelConfig, RewardModelInputs
from mathpipe.grpo.reward_model import Labelled, LabelLoss, RewardModel, collate, draw, read_completions
from mathpipe.grpo.rewards import Rewards
from mathpipe.grpo.sampler import Response
from mathpipe.pipeline import artifact
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import model
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import PretrainConfig
from mathpipe.sft.prompts import render

HERE = Path(__file__).parent
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "initializer_range": 0.1, "context": 64}
CPU = Runtime(device="cpu", log_interval=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model artifact: Llama with random weights, tokenizer of the toy questions."""
    path = tmp_path_factory.mktemp("models") / "sft"
    path.mkdir()
    tokenizer = bpe.train([render(question) + " 1+2=3\n\\boxed{3}" for question, _, _ in toys()] * 3, 400)
    tokenizer_ids = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    model.save(model.build(PretrainConfig(**SIZES), len(tokenizer), *tokenizer_ids), tokenizer, path)
    artifact.write_json(path / "manifest.json", {"stage": "sft", "hash": "00000000", "max_number": 4, "max_result": 50})
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return bpe.load(folder / "model")


def toys():
    """(question, operator, answer): what a tiny model can learn to judge is whether the operator is the one asked for."""
    for a, b in itertools.product(range(1, 6), repeat=2):
        yield f"{a} plus {b}?", "+", a + b
        yield f"{a} times {b}?", "*", a * b


def rows(tokenizer):
    """Two solutions of every toy question, with labels as the stage labels gives them; every fifth question is held out."""
    for number, (question, right, answer) in enumerate(toys()):
        a, _, b = question.strip("?").split()
        for sign in "+*":
            text = f" {a}{sign}{b}={eval(f'{a}{sign}{b}')}\n\\boxed{{{eval(f'{a}{sign}{b}')}}}"
            ids = bpe.encode(tokenizer, text) + [tokenizer.eos_token_id]
            good = float(sign == right)
            yield {
                "question": question, "answer": str(answer), "prompt_ids": bpe.encode_prompt(tokenizer, render(question)), "ids": ids,
                "completion": text, "reason": "correct" if good else "wrong", "steps": text.split("\n"),
                "ends": list(labels.step_ends(tokenizer, ids)), "hard": [good, good], "soft": [0.75 * good, good], "exact": [1.0, math.nan],
                "held_out": number % 5 == 0,
            }  # fmt: skip


def write_labels(tokenizer, path):
    artifact.write_parquet(path / "data" / "00000.parquet", pa.Table.from_pylist(list(rows(tokenizer)), schema=labels.SCHEMA))
    artifact.write_json(path / "manifest.json", {"stage": "labels", "hash": "00000001"})
    return path


def train(folder, out, made_labels, **settings):
    out.mkdir(exist_ok=True)
    config = RewardModelConfig(runtime=CPU, batch_outputs=16, lr=5e-3, checkpoint_every=1000, eval_every=1000, **settings)
    facts = train_reward.run(config, RewardModelInputs(made_labels, folder, folder), out)
    artifact.write_json(out / "manifest.json", {"stage": "reward_model", "hash": "00000002", **facts})
    return out


@pytest.fixture(scope="module")
def trained(folder, tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    return train(folder, path / "reward", write_labels(tokenizer, path / "labels"), epochs=30.0)


def test_a_new_head_says_one_half_everywhere(folder):
    made = scorer.from_language_model(folder / "model")
    assert made(pack([[1, 2], [1, 2]], [[3], [4, 5]])).tolist() == [0.0, 0.0, 0.0]


def test_values_before_and_after_a_token(folder):
    made = scorer.from_language_model(folder / "model")
    torch.nn.init.normal_(scorer.head(made.network).weight)
    packed = pack([[1, 2]], [[3, 4]])
    after, before = made(packed), made(packed, before=True)
    hidden = made.network.base_model(torch.tensor([[1, 2, 3, 4]])).last_hidden_state[0]
    value = scorer.head(made.network)(hidden)[:, 0]
    assert torch.allclose(after, value[2:], atol=1e-5) and torch.allclose(before, value[1:3], atol=1e-5)


@pytest.mark.parametrize("other", [
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)),
    Qwen2ForCausalLM(Qwen2Config(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                                 intermediate_size=32)),
], ids=["gpt-neox", "qwen2"])  # fmt: skip
def test_other_families(other, tmp_path):
    other.save_pretrained(tmp_path)
    made = scorer.from_language_model(tmp_path)
    torch.nn.init.ones_(scorer.head(made.network).weight)
    body = other.base_model(torch.tensor([[1, 2, 3]])).last_hidden_state
    assert torch.allclose(made(pack([[1]], [[2, 3]])), body[0, 1:].sum(-1), atol=1e-4)


def test_saved_scorers_open_in_transformers_and_language_models_are_refused(folder, trained, tokenizer):
    opened = AutoModelForTokenClassification.from_pretrained(trained / "model").eval()
    assert opened.config.num_labels == 1
    row = next(rows(tokenizer))
    value = scorer.load(trained / "model")(pack([row["prompt_ids"]], [row["ids"]]))
    plain = opened(torch.tensor([[*row["prompt_ids"], *row["ids"]]])).logits[0, len(row["prompt_ids"]) :, 0]
    assert torch.allclose(value, plain, atol=1e-4)
    with pytest.raises(artifact.ContractError, match="LlamaForCausalLM, not a token classifier"):
        scorer.load(folder / "model")


def test_loss_by_hand(folder):
    module = LabelLoss(scorer.from_language_model(folder / "model"))
    torch.nn.init.constant_(scorer.head(module.scorer.network).bias, math.log(3.0))  # every probability 3/4
    batch = collate([Labelled((1,), (2, 3), (0, 1), (1.0, 0.0)), Labelled((1,), (2,), (0,), (0.5,)), Labelled((1,), (2,), (), ())])
    right, wrong = -math.log(0.75), -math.log(0.25)
    assert module(batch).tolist() == pytest.approx([right + wrong, (right + wrong) / 2, 0.0], rel=1e-5)
    assert torch.sigmoid(module(batch, values=True)).tolist() == pytest.approx([0.75, 0.75, 0.75])
    assert module(collate([])).tolist() == [0.0]


def test_labels_of_both_kinds():
    steps, ends = [1.0, math.nan, 0.0], [2, 4, 7]
    assert reward_model.label("process", [9], range(8), steps, ends) == Labelled((9,), tuple(range(8)), (2, 7), (1.0, 0.0))
    assert reward_model.label("outcome", [9], range(8), steps, ends) == Labelled((9,), tuple(range(8)), (7,), (0.0,))
    assert reward_model.label("outcome", [9], range(8), [1.0, 0.0, math.nan], ends) is None  # the grader ran out of time


def test_a_pass_shows_every_output_once_and_mixes_questions():
    outputs = [Labelled((n % 5,), (n,), (0,), (1.0,)) for n in range(15)]
    passes = train_reward.Passes(outputs, seed=0)
    first, second = passes.at(0, 15), passes.at(15, 30)
    assert sorted(one.ids for one in first) == sorted(one.ids for one in second) == sorted(one.ids for one in outputs)
    assert first != second and max(len({one.prompt for one in first[n : n + 3]}) for n in range(0, 15, 3)) > 1
    assert passes.at(12, 18) == first[12:] + second[:3]


def test_quality_by_hand():
    pairs = [(0.9, 1.0), (0.8, 0.0), (0.8, 1.0), (0.2, 0.0), (0.3, math.nan)]
    found = train_reward.quality(pairs)
    assert found["auc"] == 0.875 and found["accuracy"] == 0.75 and found["right"] == 0.5  # of four pairs one is equal
    assert found["calibration_error"] == pytest.approx((0.1 + 0.6 + 0.2) / 4)
    assert train_reward.quality([(0.3, math.nan)]) == {} and "auc" not in train_reward.quality([(0.3, 1.0)])


def test_telling_easy_questions_from_hard_ones_is_worth_nothing_inside_a_question():
    """Over all pairs the right answers score higher; of the same question the wrong ones do."""
    easy, hard = [(0.8, 1.0), (0.8, 1.0), (0.9, 0.0), (0.8, math.nan)], [(0.1, 1.0), *[(0.2, 0.0)] * 4]
    assert train_reward.quality(easy + hard)["auc"] == pytest.approx(8 / 15, abs=1e-6)
    assert train_reward.in_question([easy, hard]) == {"answer/auc_in_question": 0.0}
    assert train_reward.in_question([easy[:2], hard[1:]]) == {}


def test_a_trained_model_beats_chance_on_held_out_questions(trained):
    found = artifact.read_manifest(trained)["held_out"]
    assert found["before"]["answer/auc"] == 0.5 and found["before"]["best_of"] == 0.5
    assert found["after"]["answer/auc"] > 0.9 and found["after"]["answer/accuracy"] > 0.8
    assert found["after"]["best_of"] > 0.8 and found["after"]["step_hard/auc"] > 0.9
    assert found["before"]["answer/auc_in_question"] == 0.5 and found["after"]["answer/auc_in_question"] > 0.8


def test_rewards_of_a_model_rank_right_over_wrong(trained, tokenizer):
    question, _, answer = next(toys())
    texts = [" 1+1=2\n\\boxed{2}", " 1*1=1\n\\boxed{1}"]
    ids = [tuple(bpe.encode(tokenizer, text)) + (tokenizer.eos_token_id,) for text in texts]
    group = Group([Response(one, (), True, 1.0, (5, 6)) for one in ids], texts, 0)

    def score(**settings):
        rewards = Rewards(GrpoConfig(**settings), trained, tokenizer, torch.device("cpu"))
        return rewards.score([Question(question, str(answer))], [group])[0]

    right, wrong = score(rewards={"reward_model": 1.0})
    assert 1 > right.reward > 0.5 > wrong.reward > 0
    steps = score(supervision="process", step_rewards="reward_model")
    assert steps[0].steps[-1] == pytest.approx(right.reward, abs=1e-6) and len(steps[0].steps) == len(steps[0].ends) == 2
    assert min(steps[0].steps) > 0.5 > max(steps[1].steps)


def test_an_outcome_model_gives_no_step_rewards(folder, tokenizer, tmp_path):
    made = train(folder, tmp_path / "reward", write_labels(tokenizer, tmp_path / "labels"), kind="outcome", epochs=0.1)
    with pytest.raises(ValueError, match='reward_model.kind = "process"'):
        Rewards(GrpoConfig(supervision="process", step_rewards="reward_model"), made, tokenizer, torch.device("cpu"))


def test_replay_is_a_share_of_history():
    new, old = ([Labelled((n,), (n,), (0,), (1.0,)) for n in range(start, start + 50)] for start in (0, 1000))
    drawn = draw(new, old, 0.1, np.random.default_rng(0))
    assert len(drawn) == reward_model.OUTPUTS_PER_STEP
    assert sum(one.prompt[0] >= 1000 for one in drawn) == round(0.1 * reward_model.OUTPUTS_PER_STEP)
    assert drawn == draw(new, old, 0.1, np.random.default_rng(0)) != draw(new, old, 0.1, np.random.default_rng(1))
    assert all(one.prompt[0] < 1000 for one in draw(new, [], 0.1, np.random.default_rng(0)))


def test_training_goes_on_between_iterations(trained, tokenizer, monkeypatch):
    """Labels turned round: the model follows them; twice the same, to the last bit."""
    monkeypatch.setattr(reward_model, "OUTPUTS_PER_STEP", 32)
    config = GrpoConfig(iterations=2, rewards={"reward_model": 1.0}, reward_lr=5e-3, reward_steps=8, runtime=CPU)
    turned = [
        dataclasses.replace(one, labels=tuple(1 - value for value in one.labels))
        for one in train_reward.examples(rows(tokenizer), "process", "hard")
    ]  # fmt: skip
    ends = []
    for _ in range(2):
        made = RewardModel(config, trained, tokenizer, torch.device("cpu"))
        assert len(made.trained_on) == 80
        facts = made.learn(turned, [], iteration=0)
        assert facts["reward_loss_after"] < 0.5 * facts["reward_loss_before"]
        ends.append(torch.cat([p.detach().flatten() for p in made.module.parameters()]))
    assert torch.equal(*ends)


def test_processes_micro_batches_and_zero_stages_do_not_matter(trained, tokenizer, tmp_path):
    torch.save(train_reward.examples(rows(tokenizer), "process", "soft"), tmp_path / "data.pt")

    def work(processes, runs):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
        arguments = [str(HERE / "reward_worker.py"), str(trained), str(tmp_path / "data.pt"), str(tmp_path / "out.pt"), json.dumps(runs)]
        done = subprocess.run(
            [sys.executable, *launcher, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return torch.load(tmp_path / "out.pt")

    small = {"micro_batch_tokens": 300}
    found = work(1, {"one": {}, "small": small}) | work(2, {"two": {}, "two small": small, "three": small | {"zero_stage": 3}})
    facts, scores = found["one"]
    assert facts["reward_loss_after"] < facts["reward_loss_before"]
    for name, (other_facts, other_scores) in found.items():
        assert other_facts == pytest.approx(facts, rel=1e-4), name
        assert np.concatenate(other_scores) == pytest.approx(np.concatenate(scores), abs=2e-4), name


def test_a_killed_stage_ends_bit_identical(folder, tokenizer, trained, tmp_path, monkeypatch):
    settings = {"epochs": 3.0, "batch_outputs": 16, "lr": 5e-3, "checkpoint_every": 4, "eval_every": 5, "runtime": CPU}
    inputs = RewardModelInputs(write_labels(tokenizer, tmp_path / "labels"), folder, folder)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    facts = train_reward.run(RewardModelConfig(**settings), inputs, whole)
    real = train_reward.step_batch

    def dies(config, passes, step, size):
        if step == 9:
            raise KeyboardInterrupt
        return real(config, passes, step, size)

    monkeypatch.setattr(train_reward, "step_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        train_reward.run(RewardModelConfig(**settings), inputs, killed)
    monkeypatch.setattr(train_reward, "step_batch", real)
    assert train_reward.run(RewardModelConfig(**settings), inputs, killed) == facts
    for name in ("model/model.safetensors", "data/examples.parquet"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_completions_of_grpo_become_examples(tokenizer, tmp_path):
    texts = ["3*4=12\n12+5=18\n18-1=17\n\\boxed{17}", "3*4=12\n\\boxed{x}"]
    made = [{"question": "q?", "ids": bpe.encode(tokenizer, text), "completion": text, "reason": reason} for text, reason in
            zip(texts, ("correct", "timeout"), strict=True)]  # fmt: skip
    artifact.write_parquet(tmp_path / "0.parquet", pa.Table.from_pylist(made))
    right, unknown = read_completions([tmp_path / "0.parquet"], "process", tokenizer)
    assert right.labels == (1.0, 0.0, 0.0, 1.0) and unknown.labels == (1.0,)
    assert right.prompt == tuple(bpe.encode_prompt(tokenizer, render("q?")))
    (outcome,) = read_completions([tmp_path / "0.parquet"], "outcome", tokenizer)
    assert outcome.labels == (1.0,) and outcome.places == (len(made[0]["ids"]) - 1,)
