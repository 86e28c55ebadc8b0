"""The training stages as processes, on a toy model: they learn, and a killed one ends as if nothing had happened."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mathpipe.pipeline import artifact
from mathpipe.pretrain.model import load

CONFIG = """
[runtime]
log_interval = 1
[tokenizer]
vocab_size = 300
[tokens]
held_out_frac = 0.1
[pretrain]
hidden_size = 32
intermediate_size = 64
num_layers = 2
num_heads = 2
initializer_range = 0.1
context = 64
batch_tokens = 256
micro_batch_tokens = 128
total_tokens = 38400
warmup_steps = 5
eval_every = 50
checkpoint_every = 20
[examples]
num_examples = 400
max_number = 4
[sft]
context = 384
batch_sequences = 4
micro_batch_sequences = 2
num_steps = 60
checkpoint_every = 10
[grpo]
group_size = 8
questions_per_step = 4
num_steps = 12
iterations = 2
max_new_tokens = 8
max_prompt_tokens = 256
sampler = "transformers"
num_held_out = 20
held_out_samples = 2
eval_every = 5
checkpoint_every = 3
[grpo.rewards]
answer = 1.0
"{reward}:digits" = 1.0
"""
REWARD = """
def digits(question, answer, completion):
    return sum(character.isdigit() for character in completion) / 8
"""
"""Beside the answer, which the toy model never gets right: what it can learn."""


def command(folder, stage, inputs, out, *more):
    module = {"tokenizer": "pretrain.train_tokenizer", "tokens": "pretrain.tokens", "examples": "sft.collect"}.get(stage, f"{stage}.train")
    named = [word for name in inputs for word in ("--in", f"{name}={folder / name}")]
    processes = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if "two" in out.name else []
    start = [sys.executable, *processes, "-m", f"mathpipe.{module}", "--config", str(folder / "toy.toml")]
    return [*start, *named, "--out", str(out), *more]


def run(folder, stage, inputs, out=None, *more):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command(folder, stage, inputs, out or folder / stage, *more), env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]


def run_killed(folder, stage, inputs, out, *more):
    """Start a stage, kill -9 it after its first complete checkpoint, run it again to its end."""
    process = subprocess.Popen(
        command(folder, stage, inputs, out, *more), env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/step-*/complete.json")):
        assert process.poll() is None, "the stage ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    everybody = [process, *psutil.Process(process.pid).children(recursive=True)]  # torchrun's children are in sessions of their own
    for one in everybody:
        one.kill()
    for one in everybody:
        one.wait()
    assert not artifact.is_complete(out)
    at_checkpoint = load(min(out.glob("checkpoints/step-*/complete.json")).parent / "model")  # opened while training goes on
    assert at_checkpoint.config.eos_token_id is not None
    run(folder, stage, inputs, out, *more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stages")
    (path / "reward.py").write_text(REWARD)
    (path / "toy.toml").write_text(CONFIG.replace("{reward}", str(path / "reward.py")))
    texts = [f"The sum of {a} and {b} is {a + b}. Therefore the product of {a} and {b} is {a * b}." for a in range(30) for b in range(20)]
    table = pa.table({"url": [f"http://h/{n}" for n in range(len(texts))], "text": texts})
    artifact.write_parquet(path / "corpus" / "data" / "0.parquet", table)
    artifact.write_json(path / "corpus" / "manifest.json", {"stage": "corpus", "hash": "00000000", "num_pages": len(texts)})
    run(path, "tokenizer", ["corpus"])
    run(path, "tokens", ["corpus", "tokenizer"])
    run(path, "pretrain", ["tokens", "tokenizer"])
    run(path, "examples", [])
    run(path, "sft", ["pretrain", "examples"])
    return path


def without_times(rows):
    return [{key: value for key, value in row.items() if not key.endswith("_s") and key not in ("mfu", "peak_memory_gb")} for row in rows]


def assert_same_run(one: Path, other: Path):
    assert without_times(artifact.read_metrics(one)) == without_times(artifact.read_metrics(other))
    pairs = zip(load(one / "model").parameters(), load(other / "model").parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not (other / "checkpoints").exists()


def test_pretraining_learns(folder):
    manifest = artifact.read_manifest(folder / "pretrain")
    assert manifest["held_out"]["after"]["held_out_loss"] < 0.6 * manifest["held_out"]["before"]["held_out_loss"]
    assert manifest["num_tokens"] == 38400
    assert [row["step"] for row in artifact.read_metrics(folder / "pretrain") if "loss" in row] == list(range(1, 151))


def test_killed_pretraining_ends_bit_identical(folder):
    run_killed(folder, "pretrain", ["tokens", "tokenizer"], folder / "pretrain-killed")
    assert_same_run(folder / "pretrain", folder / "pretrain-killed")


def test_sft_learns_and_counts(folder):
    manifest = artifact.read_manifest(folder / "sft")
    assert manifest["loss"]["after"] < 0.5 * manifest["loss"]["before"]
    made = artifact.read_manifest(folder / "examples")
    assert manifest["num_examples"] == made["num_examples"] == sum(made["num_by_format"].values()) == 400
    assert made["programs"] == {"ok": made["num_by_format"]["pot"] + made["num_by_format"]["tir"]}
    assert (manifest["max_number"], manifest["max_result"]) == (4, 100)
    assert manifest["packing"]["bfd"]["padding_frac"] <= manifest["packing"]["shuffle"]["padding_frac"] < 0.4
    assert not (folder / "sft" / "encoded").exists()


@pytest.mark.slow  # one loop: pre-training is killed in its place
def test_killed_sft_ends_bit_identical(folder):
    run_killed(folder, "sft", ["pretrain", "examples"], folder / "sft-killed")
    assert_same_run(folder / "sft", folder / "sft-killed")


def test_grpo_runs_resumes_and_reports(folder):
    run(folder, "grpo", ["sft"])
    left = folder / "grpo-killed" / "completions" / "step-00012-1.parquet"  # of a killed run with two processes
    artifact.write_parquet(left, pa.table({"question": ["?"]}))
    run_killed(folder, "grpo", ["sft"], folder / "grpo-killed")
    assert_same_run(folder / "grpo", folder / "grpo-killed")
    assert not left.exists()
    manifest = artifact.read_manifest(folder / "grpo")
    held_out = manifest["held_out"]
    assert held_out["n"] == 20
    assert set(held_out["sampled"]) == {"before", "after"}
    assert 0 < held_out["greedy"]["p_value"] <= 1
    rows = pq.read_table(folder / "grpo" / "completions" / "step-00001-0.parquet").to_pylist()
    assert len(rows) == 32
    assert json.loads(json.dumps(rows[0]["reason"])) in ("correct", "wrong", "no_answer", "parse_error")
    questions = {row["question"] for file in (folder / "grpo" / "completions").glob("*.parquet") for row in pq.read_table(file).to_pylist()}
    held = {row["question"] for row in pq.read_table(folder / "grpo" / "held_out.parquet").to_pylist()}
    assert not questions & held
    first, last = (load(path) for path in (folder / "grpo" / "iterations" / "1" / "model", folder / "grpo" / "model"))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters(), strict=True))
    kl = {row["step"]: row["kl"] for row in artifact.read_metrics(folder / "grpo") if "kl" in row}
    assert kl[1] == kl[7] == 0 < kl[6], "an iteration starts with the policy as its reference"


def test_finished_stage_has_nothing_to_do_for_two_processes(folder):
    """By torchrun: the second process does not wait for the first one, which returns at once."""
    before = (folder / "sft" / "manifest.json").read_bytes()
    two = command(folder, "sft", ["pretrain", "examples"], folder / "sft-two")
    two[two.index(str(folder / "sft-two"))] = str(folder / "sft")
    assert subprocess.run(two, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=120).returncode == 0
    assert (folder / "sft" / "manifest.json").read_bytes() == before


def test_killed_ppo_with_two_processes_and_varied_groups_ends_bit_identical(folder):
    """Groups of two, so that some are equal and are filled again."""
    settings = {"method": "ppo", "kl": "k1_reward", "num_steps": 6, "iterations": 1, "temperatures": [0.8, 1.2], "refill_rounds": 1}
    settings["group_size"] = 2
    more = [word for name, value in settings.items() for word in ("--set", f"grpo.{name}={json.dumps(value)}")]
    run(folder, "grpo", ["sft"], folder / "ppo-two", *more)
    run_killed(folder, "grpo", ["sft"], folder / "ppo-two-killed", *more)
    assert_same_run(folder / "ppo-two", folder / "ppo-two-killed")
    rows = artifact.read_metrics(folder / "ppo-two")
    assert sum(row.get("refilled", 0) for row in rows) > 0 and all(row["value_loss"] > 0 for row in rows if "value_loss" in row)


@pytest.mark.slow
def test_two_processes_train_like_one(folder):
    """The same batches in another layout: losses agree to rounding."""
    out = folder / "sft-two"
    run(folder, "sft", ["pretrain", "examples"], out)
    one, two = (artifact.read_metrics(path) for path in (folder / "sft", out))
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(one[:20], two[:20], strict=True)) < 1e-3


@pytest.mark.parametrize(
    ("stage", "setting", "message"),
    [
        ("pretrain", "pretrain.context=100000", "exceeds max_position"),
        ("sft", "sft.batch_sequences=1000", "fewer than"),
        ("sft", "sft.context=5000", "reads 4,096 tokens at most"),
    ],
)
def test_bad_settings_are_one_line_and_exit_2(folder, stage, setting, message, tmp_path):
    inputs = {"pretrain": ["tokens", "tokenizer"], "sft": ["pretrain", "examples"]}[stage]
    found = subprocess.run([*command(folder, stage, inputs, tmp_path / "out"), "--set", setting], capture_output=True, text=True)
    assert found.returncode == 2
    assert message in found.stderr.strip().splitlines()[-1]
    assert not artifact.is_complete(tmp_path / "out")
