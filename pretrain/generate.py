"""A decode loop on the training model itself, for sampling and evaluation.

A prompt that several responses share is computed once, a finished response leaves the batch, and every sample has noise of its own: it
depends on seed, number of the sample and place alone, so that the same request gives the same samples whatever else is asked for at the
same time (up to the last bits of log-probabilities, which depend on the size of the batch and can in principle tip a draw).

Shapes: N responses, n of them that still grow, T places, L tokens of prompts and beginnings, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mathpipe.pretrain import decode
from mathpipe.pretrain.attention import no_mask
from mathpipe.pretrain.memory import Memory, Start

Ends = Callable[[Tensor, Tensor], Tensor]
"""(numbers of responses, their new tokens) → whether each ends with it."""


@dataclass(frozen=True)
class Draws:
    """How each response is drawn."""

    temperature_N: Tensor
    """0 is greedy."""
    top_p_N: Tensor
    noise_NT: Tensor


@dataclass(frozen=True)
class Grown:
    """Responses; what stands behind their ends is 0."""

    ids_NT: Tensor
    logp_NT: Tensor
    """0 where tokens were not drawn."""
    tokens_N: Tensor
    finished_N: Tensor
    """Whether it ended by itself."""

    def ids(self) -> list[list[int]]:
        """The tokens of each."""
        return [ids[:count] for ids, count in zip(self.ids_NT.tolist(), self.tokens_N.tolist(), strict=True)]


@torch.no_grad()
def grow(model: Any, start: Start, max_new_tokens: int, ends: Ends, draws: Draws | None = None) -> Grown:
    """Responses behind a start, each until `ends` or `max_new_tokens`; without `draws` the likeliest tokens.

    Args:
        model: a transformers causal LM in evaluation mode, made ready by `model.prepare`.
    """
    memory, count = Memory(start, max_new_tokens), len(start.last_N)
    ids_NT, logp_NT = torch.zeros(count, max_new_tokens, dtype=torch.long), torch.zeros(count, max_new_tokens)
    tokens_N, rows = torch.zeros(count, dtype=torch.long), torch.arange(count)
    logits_nV = first_logits(model, start, memory=memory)
    plain = decode.usable(model.base_model)
    for place in range(max_new_tokens):
        if draws is None:
            token_n = logits_nV.argmax(1).cpu()
        else:
            asked = (x.to(logits_nV.device) for x in (draws.temperature_N[rows], draws.top_p_N[rows], draws.noise_NT[rows, place]))
            token_n, logp_NT[rows, place] = (x.cpu() for x in draw(logits_nV, *asked))
        ids_NT[rows, place], tokens_N[rows] = token_n, place + 1
        grows = ~ends(rows, token_n)
        rows, token_n = rows[grows], token_n[grows]
        if not len(rows) or place + 1 == max_new_tokens:
            break
        positions = memory.grow(rows)
        if plain:
            logits_nV = model.get_output_embeddings()(decode.step(model.base_model, token_n, positions, memory))
        else:
            logits_nV = _logits(model, token_n, positions, None, {"memory": memory})
    return Grown(ids_NT, logp_NT, tokens_N, torch.ones(count, dtype=torch.bool).index_fill(0, rows, False))


def first_logits(model: Any, start: Start, **attention: Any) -> Tensor:
    """Logits behind the last token of each response's start, `[N, V]` in fp32.

    Args:
        attention: what attention needs: the memory to fill, else the start's branches.
    """
    places, number_N = start.last_N.unique(return_inverse=True)
    return _logits(model, start.ids_L, start.positions_L, places, attention or {"branches": start.branches})[number_N]


def _logits(model: Any, ids: Tensor, positions: Tensor, places: Tensor | None, attention: dict[str, Any]) -> Tensor:
    """Behind these tokens, or some places of them."""
    ids, positions = ids[None].to(model.device), positions[None].to(model.device)
    arguments = {"position_ids": positions, "attention_mask": no_mask(ids), "use_cache": False}
    hidden = model.base_model(input_ids=ids, **arguments, **attention).last_hidden_state[0]
    return model.get_output_embeddings()(hidden if places is None else hidden[places]).float()  # type: ignore[no-any-return]


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
