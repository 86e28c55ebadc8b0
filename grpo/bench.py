"""Benchmarks of GRPO's parts: sampling and the shared prompt, each beside its alternative in the same process."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mathpipe.grpo.generate import TransformersSampler
from mathpipe.grpo.packed import pack
from mathpipe.grpo.policy import Policy
from mathpipe.grpo.sampler import Request, VllmSampler
from mathpipe.pipeline.bench import Benchmark, Row, row
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import model, optim
from mathpipe.pretrain.tokenizer import encode, train

QUESTIONS, SAMPLES, NEW_TOKENS, PROMPT_TOKENS = 8, 64, 24, 85
"""Profile tiny's step: its prompts have about 85 tokens, its answers 24."""
REPEATS = 5


def _model() -> tuple[Any, Any]:
    tokenizer = train([], 300)
    config = model.PretrainConfig(initializer_range=0.08)
    return model.build(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id), tokenizer


def _paired(ours: Callable[[], float], peer: Callable[[], float]) -> tuple[float, float, float]:
    """Medians of both rates and of their ratio, measured in turns after one warm-up each."""
    pairs = [(ours(), peer()) for _ in range(REPEATS + 1)][1:]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), statistics.median(a / b for a, b in pairs)


def sample_tokens_per_s() -> list[Row]:
    """Sampled tokens per second of vLLM in the training process and of our decode loop, beside transformers' generate; one thread."""
    optim.start_processes(Runtime())
    network, tokenizer = _model()
    prompts = [tuple(encode(tokenizer, f"question {n}: " + "x" * (PROMPT_TOKENS - 12))) for n in range(QUESTIONS)]
    with tempfile.TemporaryDirectory() as folder:
        model.save(network, tokenizer, Path(folder))
        vllm = VllmSampler(Path(folder) / model.MODEL, PROMPT_TOKENS + NEW_TOKENS + 8, uses_gpu=Runtime().uses_gpu())
        plain = model.load(Path(folder) / model.MODEL)

    def rate(sampler: Any) -> float:
        began = time.perf_counter()
        groups = sampler.sample([Request(prompt, SAMPLES, 1.0, 1.0, n) for n, prompt in enumerate(prompts)], NEW_TOKENS)
        return sum(len(one.ids) for group in groups for one in group) / (time.perf_counter() - began)

    def generate() -> float:
        began = time.perf_counter()
        ids = torch.tensor([prompt for prompt in prompts for _ in range(SAMPLES)])
        settings = {"do_sample": True, "top_k": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        found = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, **settings)[:, ids.shape[1] :]
        return int((found != tokenizer.pad_token_id).sum()) / (time.perf_counter() - began)

    rows = []
    for name, sampler in (("vllm", vllm), ("transformers", TransformersSampler(network, tokenizer.eos_token_id))):
        ours, peer, ratio = _paired(lambda: rate(sampler), generate)  # noqa: B023
        name = f"grpo.sample_tokens_per_s.{name}"
        rows.append(row(name, ours, "tokens/s", "at least 1x", ratio >= 1, peer, "transformers generate", ratio))
    return rows


def update_tokens_per_s() -> Row:
    """Response tokens per second of forward and backward with the group's prompt computed once, against a prompt for every sample."""
    torch.set_num_threads(1)
    network, _ = _model()
    policy = Policy(network)
    torch.manual_seed(0)
    prompts = [prompt for prompt in torch.randint(2, 258, (2, PROMPT_TOKENS)).tolist() for _ in range(SAMPLES)]
    responses = torch.randint(2, 258, (2 * SAMPLES, NEW_TOKENS)).tolist()
    order = [n // 2 + n % 2 * SAMPLES for n in range(2 * SAMPLES)]  # neighbours with different prompts share none
    shared, apart = pack(prompts, responses), pack([prompts[n] for n in order], [responses[n] for n in order])

    def rate(packed: Any) -> float:
        began = time.perf_counter()
        policy.zero_grad()
        policy(packed)[0].sum().backward()
        return len(packed.target_M) / (time.perf_counter() - began)

    ours, peer, ratio = _paired(lambda: rate(shared), lambda: rate(apart))
    return row("grpo.update_tokens_per_s", ours, "response tokens/s", "at least 1.5x", ratio >= 1.5, peer, "prompt per sample", ratio)


BENCHMARKS: dict[str, Benchmark] = {"grpo.sample_tokens_per_s": sample_tokens_per_s, "grpo.update_tokens_per_s": update_tokens_per_s}
