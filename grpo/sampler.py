"""Sampler of responses: vLLM inside the training process with live weights (engine.py: in a process of its own; generate.py:
transformers).

Samplers take token ids and return token ids with the log-probability that the policy gave each token *at the temperature it was
sampled with*, before top-p cuts the distribution. EOS is part of a response; a response without it was cut at
`max_new_tokens`. The same seeds give the same responses whatever else is asked for at the same time (up to the last bits of
log-probabilities, which depend on the batch and can in principle tip a tie).
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mathpipe.grpo.config import GrpoConfig, require_vllm
from mathpipe.pretrain import checkpoint

NamedWeights = Iterable[tuple[str, Tensor]]
CPU_ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,  # the default of 128 is longer than a short prompt, which would then be computed once per sample
    "kv_cache_memory_bytes": 384 * 2**20,  # all of it is touched in time; sequences beyond it wait
    "enable_chunked_prefill": False,  # a prompt cut in two fails with seeded requests on CPU (Generator has no offset)
}
GPU_ENGINE: dict[str, Any] = {
    "dtype": "bfloat16",
    "gpu_memory_utilization": 0.3,  # weights and cache; the rest is the trainer's: policy, moments, reference, activations
}


@dataclass(frozen=True)
class Request:
    """A prompt to sample from."""

    prompt: tuple[int, ...]
    num_samples: int
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int
    """The samples of a request differ, requests with the same prompt and seed repeat each other."""

    def __post_init__(self) -> None:
        assert self.temperature or self.num_samples == 1, "greedy samples are all the same"


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    ids: tuple[int, ...]
    logp: tuple[float, ...]
    """log-probability of each token at `temperature` (greedy: at 1), before top-p; empty where none were asked for."""
    finished: bool
    """Whether it ends with EOS."""
    temperature: float
    prompt: tuple[int, ...]


class Sampler(Protocol):
    """What training and evaluation ask of a sampler."""

    def sample(self, requests: Sequence[Request], max_new_tokens: int, with_logp: bool = True) -> list[list[Response]]:
        """`num_samples` responses per request. Without `with_logp` they carry no log-probabilities: a third faster in vLLM."""

    def sync(self, named_weights: NamedWeights) -> None:
        """Take over weights, under the names of the transformers model; every process gives all of them."""

    def close(self) -> None:
        """Give back memory and processes."""


class VllmSampler:
    """vLLM in this process, one engine per data-parallel process."""

    def __init__(self, path: Path, max_length: int, max_sequences: int = 1024, *, uses_gpu: bool, **settings: Any) -> None:
        """
        Args:
            max_length: tokens of prompt and response together, at most.
            settings: further arguments of `vllm.LLM`.
        """
        from mathpipe.eval.generation import VLLM_ENVIRONMENT

        os.environ.update(VLLM_ENVIRONMENT | os.environ)
        self.tied = tied_weights(path)
        if self.tied:  # every way to update tied weights gives wrong output; untied, the head is sent beside the embeddings
            settings |= {"hf_overrides": {"tie_word_embeddings": False}, "load_format": "dummy"}
        with forked_rng():  # LLM() reseeds the global generators
            from vllm import LLM

            engine = GPU_ENGINE if uses_gpu else CPU_ENGINE
            settings = {"distributed_executor_backend": "external_launcher"} | engine | settings
            self.engine = LLM(
                str(path), seed=0, max_model_len=max_length, max_num_seqs=max_sequences, max_num_batched_tokens=max(8192, max_length),
                logprobs_mode="processed_logprobs", skip_tokenizer_init=True, disable_log_stats=True, **settings,
            )  # fmt: skip
            core: Any = self.engine.llm_engine.engine_core
            core._finalizer.detach()  # it destroys every process group of this process, the trainer's and other engines' too
            self.engine.collective_rpc(keep_untruncated)
            if self.tied:
                self.sync(_stored_weights(path))

    def sample(self, requests: Sequence[Request], max_new_tokens: int, with_logp: bool = True) -> list[list[Response]]:
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                n=one.num_samples, temperature=one.temperature, top_p=one.top_p if one.temperature else 1.0, max_tokens=max_new_tokens,
                seed=spread(one.seed) if one.temperature else None, logprobs=0 if with_logp else None, flat_logprobs=True,
                detokenize=False,
            )
            for one in requests
        ]  # fmt: skip
        asked: Any = [{"prompt_token_ids": list(one.prompt)} for one in requests]
        with forked_rng():  # noise is drawn for seeded samples too, and dropped
            outputs: Any = self.engine.generate(asked, parameters, use_tqdm=False)
        return [
            [
                Response(
                    tuple(one.token_ids), tuple(one.logprobs.logprobs) if with_logp else (), one.finish_reason == "stop",
                    request.temperature, request.prompt,
                )
                for one in output.outputs
            ]
            for request, output in zip(requests, outputs, strict=True)
        ]  # fmt: skip

    def sync(self, named_weights: NamedWeights) -> None:
        weights = with_head(named_weights, self.tied)
        self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.engine.reset_prefix_cache()  # cached prompts belong to the old weights

    def close(self) -> None:
        core: Any = self.engine.llm_engine.engine_core
        core.engine_core.model_executor.shutdown()
        del self.engine


def spread(seed: int) -> int:
    """A seed far from those of neighbouring numbers: vLLM gives sample i of a request the noise of its seed + i, so requests with
    seeds 5 and 6 would share all but one of their noises.

    >>> spread(5) - spread(6) > 10**15
    True
    """
    return random.Random(f"sampler-{seed}").getrandbits(62)


def keep_untruncated(worker: Any) -> None:
    """Make a vLLM worker report log-probabilities after temperature and before top-p (its own are after both).

    The sampler of vLLM's first model runner (CPU) has `topk_topp_sampler`, that of the second (GPU with triton) `_sample_random`.
    """
    sampler = worker.model_runner.sampler
    if hasattr(sampler, "topk_topp_sampler"):
        inner = sampler.topk_topp_sampler.forward

        def forward(logits: Tensor, generators: Any, top_k: Any, top_p: Any) -> Any:
            if top_p is None:
                return inner(logits, generators, top_k, top_p)
            logp = logits.log_softmax(-1, dtype=torch.float32)
            return inner(logits, generators, top_k, top_p)[0], logp

        sampler.topk_topp_sampler.forward = forward
        return
    cut = sampler._sample_random
    sampler._sample_random = lambda logits, *rest: (cut(logits.clone(), *rest)[0], logits)


def tied_weights(path: Path) -> tuple[str, str] | None:
    """Names of input embedding and output head of the model at `path` where they are one tensor, else None."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(path))
    if not config.tie_word_embeddings:
        return None
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    names = {module: name for name, module in network.named_modules()}
    return f"{names[network.get_input_embeddings()]}.weight", f"{names[network.get_output_embeddings()]}.weight"


def with_head(named_weights: NamedWeights, tied: tuple[str, str] | None) -> list[tuple[str, Tensor]]:
    """The weights, with those of a tied output head under its own name."""
    weights = dict(named_weights)
    return list((weights | {tied[1]: weights[tied[0]]} if tied else weights).items())


def _stored_weights(path: Path) -> NamedWeights:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}.items()


def make_sampler(config: GrpoConfig, path: Path, network: Any, tokenizer: Any) -> Sampler:
    """The configured sampler with the weights of `path`."""
    if config.sampler == "transformers":
        from mathpipe.grpo.generate import TransformersSampler

        return TransformersSampler(network, network.generation_config.eos_token_id or tokenizer.eos_token_id)
    require_vllm(config.sampler)
    from mathpipe.grpo.engine import EngineSampler

    kind = EngineSampler if config.sampler == "vllm-engine" else VllmSampler
    return kind(path, config.max_prompt_tokens + config.max_new_tokens, uses_gpu=config.runtime.uses_gpu())


@contextlib.contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Evaluation mode inside, the former mode after."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


@contextlib.contextmanager
def forked_rng() -> Iterator[None]:
    """Whatever happens inside leaves every random number generator as it was."""
    state = checkpoint.rng_state()
    try:
        yield
    finally:
        checkpoint.set_rng_state(state)
