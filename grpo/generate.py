"""Sampler on the training model itself (pretrain/generate.py), with log-probabilities that are the policy's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from mathpipe.grpo.sampler import NamedWeights, Request, Response, eval_mode
from mathpipe.pretrain.generate import Draws, grow, noise
from mathpipe.pretrain.memory import Start
from mathpipe.pretrain.model import prepare

Sample = tuple[Request, int]
"""A request and which of its samples."""
MAX_SAMPLES = 512
"""Samples that grow at the same time."""
MAX_CACHE_BYTES = 4 << 30
"""Keys and values of their responses."""
MAX_PROMPT_TOKENS = 8192
"""Tokens of prompts computed at the same time, a single longer prompt aside."""


class TransformersSampler:
    """Samples from a transformers model as it is: from the one that learns, or from a copy that takes over weights."""

    def __init__(self, model: Any, eos: int | Sequence[int]) -> None:
        """
        Args:
            eos: token, or tokens, that end a response.
        """
        self.model, self.eos = model, torch.tensor([eos] if isinstance(eos, int) else list(eos))
        self.weights = dict(model.named_parameters())

    @torch.no_grad()
    def sync(self, named_weights: NamedWeights) -> None:
        """Take over weights; those of the model itself are there already."""
        for name, weight in named_weights:
            if weight.data_ptr() != self.weights[name].data_ptr():
                self.weights[name].copy_(weight)

    def close(self) -> None:
        """Nothing to give back."""

    def sample(self, requests: Sequence[Request], max_new_tokens: int, with_logp: bool = True) -> list[list[Response]]:
        """Responses of each request.

        Raises:
            ValueError: ZeRO 3 has spread the weights over processes.
        """
        if not all(weight.numel() for weight in self.model.parameters()):
            raise ValueError('the transformers sampler needs whole weights, zero_stage 3 spreads them: take sampler "vllm" or zero_stage 2')
        prepare(self.model, self.model.device)
        samples = [(request, number) for request in requests for number in range(request.num_samples)]
        config = self.model.config
        sample_bytes = 8 * config.num_hidden_layers * config.hidden_size * max_new_tokens  # keys and values in fp32
        size = max(1, min(MAX_SAMPLES, MAX_CACHE_BYTES // sample_bytes))
        with eval_mode(self.model):
            found = iter([response for part in parts(samples, size) for response in self._grow(part, max_new_tokens, with_logp)])
        return [list(itertools.islice(found, request.num_samples)) for request in requests]

    def _grow(self, samples: Sequence[Sample], max_new_tokens: int, with_logp: bool) -> list[Response]:
        prompts = [prompt for prompt, _ in itertools.groupby(request.prompt for request, _ in samples)]
        owners = [n for n, (_, same) in enumerate(itertools.groupby(request.prompt for request, _ in samples)) for _ in same]
        temperature_N, top_p_N = (torch.tensor([getattr(request, name) for request, _ in samples]) for name in ("temperature", "top_p"))
        noise_NT = torch.from_numpy(np.stack([noise(request.seed, number, max_new_tokens) for request, number in samples]))
        draws = Draws(temperature_N, top_p_N, noise_NT) if with_logp or bool(temperature_N.any()) else None
        grown = grow(self.model, Start(prompts, owners), max_new_tokens, lambda rows, token_n: torch.isin(token_n, self.eos), draws)
        found = zip(samples, grown.ids(), grown.logp_NT.tolist(), grown.finished_N.tolist(), strict=True)
        return [
            Response(tuple(ids), tuple(logp[: len(ids)]) if with_logp else (), ends, request.temperature, request.prompt)
            for (request, _), ids, logp, ends in found
        ]


def parts(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Neighbouring samples that grow together, at most `size`."""
    part: list[Sample] = []
    tokens = 0
    for sample in samples:
        added = 0 if part and part[-1][0].prompt == sample[0].prompt else len(sample[0].prompt)
        if part and (len(part) == size or tokens + added > MAX_PROMPT_TOKENS):
            yield part
            part, tokens, added = [], 0, len(sample[0].prompt)
        part.append(sample)
        tokens += added
    if part:
        yield part
