"""Benchmarks of GRPO's parts: sampling and the shared prompt, each beside its alternative in the same process."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mathpipe.grpo.policy import Policy, make_groups
from mathpipe.grpo.sampler import TransformersSampler, VllmSampler
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


def sample_tokens_per_s() -> Row:
    """Sampled tokens per second, vLLM in the training process against transformers' generate; one process, one thread."""
    optim.start_processes(Runtime())
    network, tokenizer = _model()
    prompts = [encode(tokenizer, f"question {n}: " + "x" * (PROMPT_TOKENS - 12)) for n in range(QUESTIONS)]
    with tempfile.TemporaryDirectory() as folder:
        model.save(network, tokenizer, Path(folder))
        vllm = VllmSampler(Path(folder) / model.MODEL, PROMPT_TOKENS + NEW_TOKENS + 8, uses_gpu=Runtime().uses_gpu())
    generate = TransformersSampler(network, tokenizer.eos_token_id, tokenizer.pad_token_id)

    def rate(sampler: Any) -> float:
        began = time.perf_counter()
        groups = sampler.sample(prompts, SAMPLES, 1.0, NEW_TOKENS, list(range(QUESTIONS)))
        return sum(len(one.ids) for group in groups for one in group) / (time.perf_counter() - began)

    ours, peer, ratio = _paired(lambda: rate(vllm), lambda: rate(generate))
    return row("grpo.sample_tokens_per_s", ours, "tokens/s", "at least 1x", ratio >= 1, peer, "transformers generate", ratio)


def update_tokens_per_s() -> Row:
    """Response tokens per second of forward and backward with the group's prompt computed once, against whole sequences."""
    torch.set_num_threads(1)
    network, tokenizer = _model()
    policy = Policy(network)
    torch.manual_seed(0)
    prompts = torch.randint(2, 258, (2, PROMPT_TOKENS)).tolist()
    responses = torch.randint(2, 258, (2, SAMPLES, NEW_TOKENS)).tolist()
    shared = make_groups(prompts, responses, tokenizer.pad_token_id)
    apart = make_groups([p for p in prompts for _ in range(SAMPLES)], [[r] for group in responses for r in group], tokenizer.pad_token_id)

    def rate(groups: Any) -> float:
        began = time.perf_counter()
        policy.zero_grad()
        policy(groups).sum().backward()
        return int(groups.mask_NT.sum()) / (time.perf_counter() - began)

    ours, peer, ratio = _paired(lambda: rate(shared), lambda: rate(apart))
    return row("grpo.update_tokens_per_s", ours, "response tokens/s", "at least 1.5x", ratio >= 1.5, peer, "prompt per sample", ratio)


BENCHMARKS: dict[str, Benchmark] = {"grpo.sample_tokens_per_s": sample_tokens_per_s, "grpo.update_tokens_per_s": update_tokens_per_s}
