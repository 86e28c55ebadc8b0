"""Sampler on the training model itself: a decode loop of its own, with log-probabilities that are the policy's.

The prompt of a group is computed once, a finished response leaves the batch, and every sample has noise of its own: it depends on
seed, number of the sample and place alone, so that the same request gives the same samples whatever else is asked for at the same
time (up to the last bits of log-probabilities, which depend on the size of the batch and can in principle tip a draw).

Shapes: N samples, n of them that still grow, T places, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mathpipe.grpo.sampler import NamedWeights, Request, Response, eval_mode
from mathpipe.pretrain import decode
from mathpipe.pretrain.attention import no_mask
from mathpipe.pretrain.memory import Memory
from mathpipe.pretrain.model import prepare

Sample = tuple[Request, int]
"""A request and which of its samples."""
MAX_SAMPLES = 512
"""Samples that grow at the same time."""
MAX_CACHE_BYTES = 4 << 30
"""Keys and values of their responses."""
ALL = slice(None)
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

    @torch.no_grad()
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
        memory = Memory([len(prompt) for prompt in prompts], owners, max_new_tokens)
        temperature_N, top_p_N = (torch.tensor([getattr(request, name) for request, _ in samples]) for name in ("temperature", "top_p"))
        noise_NT = torch.from_numpy(np.stack([noise(request.seed, number, max_new_tokens) for request, number in samples]))
        ids_NT, logp_NT = torch.zeros(noise_NT.shape, dtype=torch.long), torch.zeros(noise_NT.shape)
        tokens_N = torch.zeros(len(samples), dtype=torch.long)
        rows = torch.arange(len(samples))
        logits_nV = self._first_logits(prompts, memory)[owners]
        next_logits = self._plain_logits if decode.usable(self.model.base_model) else self._logits
        for place in range(max_new_tokens):
            asked = (x.to(logits_nV.device) for x in (temperature_N[rows], top_p_N[rows], noise_NT[rows, place]))
            token_n, logp_n = (x.cpu() for x in draw(logits_nV, *asked))
            ids_NT[rows, place], logp_NT[rows, place], tokens_N[rows] = token_n, logp_n, place + 1
            grows = ~torch.isin(token_n, self.eos)
            rows, token_n = rows[grows], token_n[grows]
            if not len(rows) or place + 1 == max_new_tokens:
                break
            memory.grow(rows)
            logits_nV = next_logits(token_n, memory.length_n + place, memory)
        finished = torch.ones(len(samples), dtype=torch.bool).index_fill(0, rows, False).tolist()
        found = zip(samples, ids_NT.tolist(), logp_NT.tolist(), tokens_N.tolist(), finished, strict=True)
        return [
            Response(tuple(ids[:count]), tuple(logp[:count]) if with_logp else (), ends, request.temperature, request.prompt)
            for (request, _), ids, logp, count, ends in found
        ]

    def _first_logits(self, prompts: Sequence[Sequence[int]], memory: Memory) -> Tensor:
        """Behind every prompt."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.tensor(list(itertools.chain(*prompts)))
        positions = torch.cat([torch.arange(length) for length in lengths])
        return self._logits(ids, positions, memory, lengths.cumsum(0) - 1)

    def _logits(self, ids: Tensor, positions: Tensor, memory: Memory, places: Tensor | slice = ALL) -> Tensor:
        """Behind these tokens, or some places of them, in fp32."""
        ids, positions = ids[None].to(self.model.device), positions[None].to(self.model.device)
        arguments = {"position_ids": positions, "attention_mask": no_mask(ids), "use_cache": False, "memory": memory}
        hidden = self.model.base_model(input_ids=ids, **arguments).last_hidden_state[0]
        return self.model.get_output_embeddings()(hidden[places]).float()  # type: ignore[no-any-return]

    def _plain_logits(self, ids: Tensor, positions: Tensor, memory: Memory) -> Tensor:
        """The same of a token of each response, without transformers' modules."""
        return self.model.get_output_embeddings()(decode.step(self.model.base_model, ids, positions, memory))  # type: ignore[no-any-return]


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


def noise(seed: int, number: int, places: int) -> np.ndarray:
    """Uniform noise of a sample at each place, `[T]`: the start of a stream that seed and number choose.

    >>> bool((noise(3, 1, 9)[:4] == noise(3, 1, 4)).all()), bool((noise(3, 1, 4) == noise(4, 0, 4)).any())
    (True, False)
    """
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, number])).random(places)


def draw(logits_nV: Tensor, temperature_n: Tensor, top_p_n: Tensor, noise_n: Tensor) -> tuple[Tensor, Tensor]:
    """A token of each row and its log-probability at the row's temperature (greedy, temperature 0: at 1), before top-p.

    The token is where the summed probabilities, of the nucleus alone, pass the noise in [0, 1).
    """
    greedy_n = temperature_n == 0
    logp_nV = torch.log_softmax(logits_nV / torch.where(greedy_n, 1.0, temperature_n)[:, None], 1)
    probs_nV = logp_nV.exp()
    if bool((top_p_n < 1).any()):
        sorted_nV, order_nV = probs_nV.sort(dim=1, descending=True, stable=True)
        before_nV = sorted_nV.cumsum(1) - sorted_nV
        cut_nV = (before_nV >= top_p_n[:, None]) & (top_p_n < 1)[:, None]
        probs_nV = probs_nV.masked_fill(torch.zeros_like(cut_nV).scatter(1, order_nV, cut_nV), 0.0)
    summed_nV = probs_nV.cumsum(1, dtype=torch.float64)
    token_n = torch.searchsorted(summed_nV, noise_n[:, None] * summed_nV[:, -1:], right=True)[:, 0].clamp(max=logits_nV.shape[1] - 1)
    token_n = torch.where(greedy_n, logits_nV.argmax(1), token_n)
    return token_n, logp_nV.gather(1, token_n[:, None])[:, 0]
