"""Samplers: vLLM inside the training process with live weights, or transformers' generate.

Both take token ids and return token ids with the log-probability that the sampler gave each token; EOS is part of a response,
a response without it was cut at `max_new_tokens`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mathpipe.eval.generation import VLLM_ENVIRONMENT
from mathpipe.pretrain import checkpoint

Prompts = Sequence[Sequence[int]]
CPU_ENGINE = {
    "dtype": "float32",
    "block_size": 32,  # the default of 128 is longer than a short prompt, which would then be computed once per sample
    "kv_cache_memory_bytes": 384 * 2**20,  # all of it is touched in time; sequences beyond it wait
}
GPU_ENGINE = {"dtype": "bfloat16"}


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    ids: tuple[int, ...]
    logp: tuple[float, ...]
    """log-probability of each token under the sampler, at temperature 1 scale of the sampling distribution."""
    finished: bool
    """Whether it ends with EOS."""


class Sampler(Protocol):
    """What training and evaluation ask of a sampler."""

    def sample(
        self, prompts: Prompts, num_samples: int, temperature: float, max_new_tokens: int, seeds: Sequence[int], with_logp: bool = True
    ) -> list[list[Response]]:
        """`num_samples` responses per prompt; `temperature` 0 is greedy. The same seeds give the same responses.

        Without `with_logp` a response carries no log-probabilities, which is a third faster in vLLM.
        """

    def sync(self, model: Any) -> None:
        """Take over the weights of `model`."""


class VllmSampler:
    """vLLM in this process. One engine per data-parallel process; tensor parallelism is left to larger profiles."""

    def __init__(self, model_path: Path, max_length: int, max_sequences: int = 1024, *, uses_gpu: bool) -> None:
        os.environ.update(VLLM_ENVIRONMENT | os.environ)
        state = checkpoint.rng_state()
        from vllm import LLM

        self.engine = LLM(
            str(model_path), **(GPU_ENGINE if uses_gpu else CPU_ENGINE), enforce_eager=True,
            distributed_executor_backend="external_launcher", seed=0, max_model_len=max_length, max_num_seqs=max_sequences,
            max_num_batched_tokens=max(8192, max_length),
            enable_chunked_prefill=False,  # a prompt cut in two fails with seeded requests on CPU (Generator has no offset)
            skip_tokenizer_init=True, disable_log_stats=True,
        )  # fmt: skip
        checkpoint.set_rng_state(state)  # LLM() reseeds the global generators

    def sample(
        self, prompts: Prompts, num_samples: int, temperature: float, max_new_tokens: int, seeds: Sequence[int], with_logp: bool = True
    ) -> list[list[Response]]:
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                n=num_samples, temperature=temperature, max_tokens=max_new_tokens, seed=seed if temperature else None,
                logprobs=0 if with_logp else None, flat_logprobs=True, detokenize=False,
            )
            for seed in seeds
        ]  # fmt: skip
        asked: Any = [{"prompt_token_ids": list(ids)} for ids in prompts]
        outputs: Any = self.engine.generate(asked, parameters, use_tqdm=False)
        return [
            [
                Response(tuple(one.token_ids), tuple(one.logprobs.logprobs) if with_logp else (), one.finish_reason == "stop")
                for one in output.outputs
            ]
            for output in outputs
        ]

    def sync(self, model: Any) -> None:
        self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": list(model.named_parameters())})
        self.engine.reset_prefix_cache()  # cached prompts belong to the old weights


class TransformersSampler:
    """transformers' generate on the training model itself; nothing to synchronise."""

    def __init__(self, model: Any, eos: int, pad: int, batch: int = 512) -> None:
        self.model, self.eos, self.pad, self.batch = model, eos, pad, batch

    def sync(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def sample(
        self, prompts: Prompts, num_samples: int, temperature: float, max_new_tokens: int, seeds: Sequence[int], with_logp: bool = True
    ) -> list[list[Response]]:
        per_call = max(1, self.batch // num_samples)
        found: list[list[Response]] = []
        with eval_mode(self.model), forked_rng():
            for start in range(0, len(prompts), per_call):
                part = prompts[start : start + per_call]
                torch.manual_seed(seeds[start])
                found += self._generate(part, num_samples, temperature, max_new_tokens)
        return found

    def _generate(self, prompts: Prompts, num_samples: int, temperature: float, max_new_tokens: int) -> list[list[Response]]:
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        device = next(self.model.parameters()).device
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
        output = self.model.generate(
            ids.to(device), attention_mask=mask.to(device), max_new_tokens=max_new_tokens, num_return_sequences=num_samples,
            eos_token_id=self.eos, pad_token_id=self.pad, return_dict_in_generate=True, output_logits=True, **how,
        )  # fmt: skip
        logits = torch.stack(output.logits, 1).float() / (temperature or 1.0)
        new = output.sequences[:, width:]
        logp = torch.log_softmax(logits, -1).gather(-1, new[..., None])[..., 0].cpu()
        rows = [self._cut(tokens, values) for tokens, values in zip(new.tolist(), logp.tolist(), strict=True)]
        return [rows[n : n + num_samples] for n in range(0, len(rows), num_samples)]

    def _cut(self, tokens: list[int], values: list[float]) -> Response:
        finished = self.eos in tokens
        length = tokens.index(self.eos) + 1 if finished else len(tokens)
        return Response(tuple(tokens[:length]), tuple(values[:length]), finished)


@contextlib.contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Evaluation mode inside, the former mode after."""
    before = model.training
    model.eval()
    yield
    model.train(before)


@contextlib.contextmanager
def forked_rng() -> Iterator[None]:
    """Whatever happens inside leaves every random number generator as it was."""
    state = checkpoint.rng_state()
    yield
    checkpoint.set_rng_state(state)
