"""Benchmarks of a whole GRPO step beside TRL's GRPOTrainer: time, its parts, and peak memory.

The same model, prompts, group, lengths, reward and fp32 on both sides; ours runs as the stage does (explore, Learner, sync).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.learner import Learner
from mathpipe.grpo.policy import Policy
from mathpipe.grpo.questions import Question, Questions
from mathpipe.grpo.rewards import Rewards
from mathpipe.grpo.rollout import explore
from mathpipe.grpo.sampler import make_sampler
from mathpipe.grpo.trainer import load_reference, make_engine
from mathpipe.pipeline.bench import Benchmark, Racer, Row, done, race, row, wait
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import model, optim
from mathpipe.pretrain.tokenizer import train
from mathpipe.sft.problems import generate
from mathpipe.sft.prompts import render

HERE = "mathpipe.grpo.bench_trl"
SIZES = {"0.9M": (128, 352, 4, 4), "4.9M": (256, 688, 6, 4), "19.2M": (512, 1376, 6, 8)}
"""Parameters without embeddings → hidden size, intermediate size, layers, heads."""
VOCABULARY = 369
NUM_QUESTIONS = 512
SHARED = Path(os.environ.get("MATHPIPE_SHARED", Path(__file__).parents[2] / "shared"))
STEPS = 3
SETTINGS: dict[str, Any] = {"lr": 1e-5, "kl_coef": 0.04, "beta2": 0.95, "warmup_steps": 0, "max_prompt_tokens": 512}
SPEED: dict[str, Any] = {"questions_per_step": 8, "group_size": 8, "max_new_tokens": 64}
MEMORY: dict[str, Any] = {"questions_per_step": 1, "group_size": 64, "max_new_tokens": 512, "micro_batch_tokens": 4096}
REWARD = f"{Path(__file__)}:letters"


def letters(question: str, answer: str, completion: str) -> float:
    """A reward that differs within every group: the share of letters."""
    return sum(letter.isalpha() for letter in completion) / max(1, len(completion))


def generated() -> list[Question]:
    """The family that profile tiny asks."""
    return [Question(one.question, str(one.answer)) for one in itertools.islice(generate(0, 30, 900, held_out=False), NUM_QUESTIONS)]


def gsm8k() -> list[Question]:
    """GSM8K's training split, as the paper asks it; with this vocabulary three times as long."""
    file = SHARED / "data" / "benchmarks" / "gsm8k" / "train.jsonl"
    if not file.exists():
        raise FileNotFoundError(f"{file}: GSM8K's training split is not there; set MATHPIPE_SHARED to the folder that has data/")
    lines = file.read_text(encoding="utf-8").splitlines()[:NUM_QUESTIONS]
    return [Question(json.loads(line)["question"], json.loads(line)["answer"].rpartition("####")[2].strip()) for line in lines]


def start(source: str, size: str) -> tuple[Any, Any, list[Question]]:
    """Network, tokenizer and questions. The EOS is a token that the network does not know: every response has all its tokens."""
    problems = {"generated": generated, "gsm8k": gsm8k}[source]()
    tokenizer = train([render(one.question) for one in problems], VOCABULARY)
    pad = tokenizer.pad_token_id
    tokenizer.add_special_tokens({"eos_token": "<never>"})
    hidden, intermediate, layers, heads = SIZES[size]
    config = model.PretrainConfig(hidden_size=hidden, intermediate_size=intermediate, num_layers=layers, num_heads=heads)
    return model.build(config, VOCABULARY, tokenizer.eos_token_id, pad), tokenizer, problems


def our_steps(sampler: str, source: str, size: str, settings: dict[str, Any]) -> Iterator[dict[str, float]]:
    """Steps as the stage grpo does them; yields seconds of their parts."""
    runtime = Runtime(device="cpu", num_threads=torch.get_num_threads())
    config = GrpoConfig(sampler=sampler, rewards={REWARD: 1.0}, num_steps=10**6, runtime=runtime, **SETTINGS, **settings)
    network, tokenizer, problems = start(source, size)
    with tempfile.TemporaryDirectory() as folder:
        model.save(network, tokenizer, Path(folder))  # now: in a process group only the first process writes
        path, device = Path(folder) / model.MODEL, optim.start_processes(runtime)
        learner = Learner(config, make_engine(config, Policy(network), config.lr), load_reference(config, path, device))
        sampling = make_sampler(config, path, network, tokenizer)
    rewards, questions = Rewards(config, None, tokenizer, device), Questions(problems, [], 0, 0)
    for step in itertools.count():
        rollout = explore(config, sampling, rewards, tokenizer, questions, step)
        learner.learn(rollout, step)
        began = time.perf_counter()
        sampling.sync(optim.named_weights(learner.policy, network))
        sync_s = time.perf_counter() - began
        yield {"sample_s": rollout.sample_s, "reward_s": rollout.reward_s, **learner.seconds, "sync_s": sync_s}


def trl_steps(source: str, size: str, settings: dict[str, Any], amount: Callable[[], float], **changes: Any) -> None:
    """The same by TRL's GRPOTrainer with transformers' generate (its vLLM mode fails on CPUs), each when told; prints the amount."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Turns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            done(amount())

    network, tokenizer, problems = start(source, size)
    samples, processes = settings["questions_per_step"] * settings["group_size"], int(os.environ.get("WORLD_SIZE", "1"))

    def reward(completions: list[str], **kwargs: Any) -> list[float | None]:
        return [letters("", "", text) for text in completions]

    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)  # TRL reads the reference from there
        network.config._name_or_path = network.name_or_path = folder
        arguments = {
            "output_dir": folder, "per_device_train_batch_size": samples // processes, "num_generations": settings["group_size"],
            "max_completion_length": settings["max_new_tokens"], "max_steps": 10**6, "beta": 0.04, "loss_type": "grpo",
            "learning_rate": 1e-5, "adam_beta2": 0.95, "lr_scheduler_type": "constant", "bf16": False, "use_cpu": True,
            "gradient_checkpointing": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_steps": 10**6,
        }  # fmt: skip
        trainer = GRPOTrainer(
            model=network, processing_class=tokenizer, callbacks=[Turns()], args=GRPOConfig(**arguments | changes),
            train_dataset=Dataset.from_list([{"prompt": render(one.question)} for one in problems]),
            reward_funcs=reward,
        )  # fmt: skip
        trainer.train()


COMPETITORS = (("ours", "vllm"), ("ours", "transformers"), ("trl", "generate"))
"""Side and sampler."""


def step_time() -> list[Row]:
    """Seconds of an optimizer step of 8 x 8 completions of 64 tokens on two cores: sampling, reward, reference, update, sync.

    Two processes with a thread each on both sides: at a million parameters TRL as one process with two threads takes 1.6 times as long.
    """
    found = []
    for source, size in itertools.product(("generated", "gsm8k"), SIZES):
        racers = [Racer(HERE, *competitor, source, size, num_processes=2) for competitor in COMPETITORS]
        vllm, own, peer = (1 / rate for rate in race(racers, STEPS)[0])
        for name, ours, goal in (("best", min(vllm, own), 0.4), ("vllm", vllm, 0.4), ("transformers", own, 0.7)):
            name, ratio = f"grpo.step_time.{source}.{size}.{name}", peer / ours
            found.append(row(name, ours, "s", f"at most {goal}x", ours <= goal * peer, peer, "TRL GRPOTrainer", ratio))
    return found


def step_split() -> list[Row]:
    """Seconds of the parts of our step, one process with one thread; of the sync the share of the step."""
    found = []
    for size, sampler in itertools.product(SIZES, ("vllm", "transformers")):
        steps = [json.loads(line) for line in _measured("split", sampler, size)]
        seconds = {name: statistics.median(one[name] for one in steps[1:]) for name in steps[0]}
        for name, value in seconds.items():
            share, is_sync = value / sum(seconds.values()), name == "sync_s"
            unit, goal = f"s, {100 * share:.1f} % of the step", "at most 5 %" if is_sync else "a figure"
            found.append(row(f"grpo.step_split.{size}.{sampler}.{name}", value, unit, goal, share <= 0.05 or not is_sync))
    return found


def step_memory() -> list[Row]:
    """Peak memory (MB, of the whole process) of steps with one group of 64 completions of 512 tokens, ours beside TRL's.

    TRL with the group as its batch, and in micro-batches of 8 with activation checkpointing, which takes it longer.
    """
    found = []
    for size in ("0.9M", "4.9M"):
        ours = float(_measured("memory", "ours", size)[-1])
        for kind, goal in (("trl", "at most 0.5x"), ("trl-frugal", "a figure")):
            peer = float(_measured("memory", kind, size)[-1])
            met = ours <= 0.5 * peer or kind == "trl-frugal"
            found.append(row(f"grpo.step_memory.{size}.{kind}", ours, "MB", goal, met, peer, "TRL GRPOTrainer", peer / ours))
    return found


def _measured(kind: str, side: str, size: str) -> list[str]:
    """What a process of this module prints of each of a few steps."""
    command = [sys.executable, "-m", HERE, kind, side, "generated", size]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    steps = "step\n" * (2 if kind == "memory" else STEPS + 1)
    output = subprocess.run(command, env=env, input=steps, check=True, capture_output=True, text=True).stdout
    return [line.removeprefix("done ") for line in output.splitlines() if line.startswith("done ")]


def peak_mb() -> float:
    """Most memory this process ever had; unlike ru_maxrss not that of the one that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024  # type: ignore[index]


def main(kind: str, side: str, source: str, size: str) -> None:
    """One side, step by step as told: a competitor of a race (`ours`, `trl`), or `split` or `memory` of one."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    share = 1 / int(os.environ.get("WORLD_SIZE", "1"))
    if kind == "memory" and side != "ours":
        frugal = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 8, "gradient_checkpointing": True}
        trl_steps(source, size, MEMORY, peak_mb, **frugal if side == "trl-frugal" else {})
    elif kind == "trl":
        trl_steps(source, size, SPEED, lambda: share)
    steps = our_steps("transformers" if kind == "memory" else side, source, size, MEMORY if kind == "memory" else SPEED)
    while True:
        wait()
        seconds = next(steps)
        print("done", {"memory": peak_mb(), "split": json.dumps(seconds)}.get(kind, share), flush=True)


BENCHMARKS: dict[str, Benchmark] = {"grpo.step_time": step_time, "grpo.step_split": step_split, "grpo.step_memory": step_memory}

if __name__ == "__main__":
    main(*sys.argv[1:])
