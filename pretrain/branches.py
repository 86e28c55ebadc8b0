"""Attention of prompts, each followed in the row of tokens by its responses: a response sees its prompt and itself.

The prompt of a group is computed once, forward and backward. On a CPU in fp32 the responses of a group go through batched matrix
products together, padded to the longest of a few inside the scores alone; linear layers see no padding. On a GPU flash attention
for varying lengths reads a copy of the keys in which each response follows its prompt (bf16); otherwise sdpa, group by group.

Shapes: L tokens, h heads, d size of a head; n responses of T tokens at most, P tokens of their prompt, S = P + T keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from mathpipe.pretrain import fast_cpu

BLOCK = 128
"""Queries of a response whose scores are computed at a time on a CPU; keys behind the block are left out."""
SCORES = 1 << 17
"""Scores of one head that exist at the same time on a CPU, as far as whole responses allow: they stay in the cache."""
KEPT_KEYS = 256
"""Up to so many keys attention weights are kept for the backward pass; where more are seen they are computed again."""


@dataclass(frozen=True)
class Block:
    """Queries computed together: of n responses of one prompt, or of one prompt."""

    rows_nT: Tensor
    """Their tokens; -1 behind the end of a shorter response."""
    seen_nS: Tensor
    """Tokens of the prompt and of the response up to its last query here; a query sees those up to itself."""

    @property
    def first(self) -> int:
        """Place of the first query among the keys."""
        return self.seen_nS.shape[1] - self.rows_nT.shape[1]


@dataclass(frozen=True)
class Branches:
    """Prompts, each followed by its responses."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]
    """(tokens of the prompt, tokens of each response)."""

    @cached_property
    def documents(self) -> list[tuple[slice, slice]]:
        """(prompt seen, own tokens) of prompts, which see none, and of responses, in the order of tokens."""
        found, start = [], 0
        for prompt, responses in self.groups:
            found.append((slice(start, start), slice(start, start + prompt)))
            places = itertools.accumulate(responses, initial=start + prompt)
            found += [(found[-1][1], slice(place, place + length)) for place, length in zip(places, responses, strict=False)]
            start += prompt + sum(responses)
        return found

    @property
    def responses(self) -> list[slice]:
        """Tokens of every response."""
        return [own for prompt, own in self.documents if prompt.stop > prompt.start]

    @cached_property
    def blocks(self) -> list[Block]:
        """All queries, for the CPU."""
        found: list[Block] = []
        for prompt, together in itertools.groupby(self.documents, key=lambda document: document[0]):
            own = [response for _, response in together]
            for part in _parts(own, prompt.stop - prompt.start):
                found += _blocks(prompt, part)
        return found

    @cached_property
    def varying(self) -> tuple[Tensor, Tensor, Tensor]:
        """For flash attention: the places of all that each document sees, and bounds of the documents' queries and keys."""
        seen = [torch.arange(part.start, part.stop) for document in self.documents for part in document]
        queries = torch.tensor([own.stop - own.start for _, own in self.documents])
        keys = queries + torch.tensor([prompt.stop - prompt.start for prompt, _ in self.documents])
        return torch.cat(seen), _bounds(queries), _bounds(keys)


def _bounds(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def _parts(own: list[slice], prompt: int) -> Iterator[list[slice]]:
    """Neighbours whose scores fit SCORES, at least one."""
    part: list[slice] = []
    for response in own:
        longest = max(one.stop - one.start for one in [*part, response])
        if part and (len(part) + 1) * min(longest, BLOCK) * (prompt + longest) > SCORES:
            yield part
            part = []
        part.append(response)
    yield part


def _blocks(prompt: slice, own: list[slice]) -> Iterator[Block]:
    start_n1, end_n1 = (torch.tensor([[getattr(one, name)] for one in own]) for name in ("start", "stop"))
    shared = torch.arange(prompt.start, prompt.stop).expand(len(own), -1)
    longest = int((end_n1 - start_n1).max())
    for first in range(0, longest, BLOCK):
        places = start_n1 + torch.arange(min(first + BLOCK, longest))
        places = places.masked_fill(places >= end_n1, -1)
        yield Block(places[:, first:].contiguous(), torch.cat([shared, places], 1))


def attend(query: Tensor, key: Tensor, value: Tensor, branches: Branches, scale: float) -> Tensor:
    """Attention; query, key and value `[1, h, L, d]`, result `[1, L, h, d]`."""
    heads = query.shape[1]
    if query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        longest = [int(bounds.diff().max()) for bounds in branches.varying[1:]]
        seen, queries, keys = (x.to(query.device) for x in branches.varying)
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
        causal: Any = {"scale": scale, "window_size": (-1, 0), "enable_gqa": key.shape[1] != heads}  # the last query sees every key
        out: Any = varlen_attn(q, k[seen], v[seen], queries, keys, *longest, **causal)
        return out[None]
    key, value = repeat_kv(key, heads // key.shape[1]), repeat_kv(value, heads // value.shape[1])
    if fast_cpu.usable(query, key, value):
        return CpuBranches.apply(*(t[0].transpose(0, 1) for t in (query, key, value)), branches, scale)[None]
    parts = [_scaled_dot_product(query[0], key[0], value[0], block, scale) for block in branches.blocks]
    rows = torch.cat([block.rows_nT.flatten() for block in branches.blocks]).to(query.device)
    return torch.zeros_like(query[0].transpose(0, 1)).index_copy(0, rows[rows >= 0], torch.cat(parts)[rows >= 0])[None]


def _scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, block: Block, scale: float) -> Tensor:
    """Attention of a block's queries, `[n·T, h, d]`, from `[h, L, d]`."""
    rows, seen = block.rows_nT.to(query.device), block.seen_nS.to(query.device)
    q, k, v = (t[:, index].transpose(0, 1) for t, index in ((query, rows), (key, seen), (value, seen)))
    places = torch.arange(seen.shape[1], device=seen.device)
    mask = places <= places[block.first :, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2).flatten(0, 1)


class CpuBranches(torch.autograd.Function):
    """Attention on a CPU; query, key, value and result `[L, h, d]`, fp32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, branches: Branches, scale: float) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out, kept = torch.empty_like(query), []
        for block in branches.blocks:
            q, k, v = _gather(query, block.rows_nT), _gather(key, block.seen_nS), _gather(value, block.seen_nS)
            weights = _weights(q, k, block.first, scale)
            _scatter(torch.bmm(weights, v), block.rows_nT, out, add=False)
            kept.append(weights if block.seen_nS.shape[1] <= KEPT_KEYS else None)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.branches, ctx.scale = branches, scale
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, *kept = ctx.saved_tensors
        dout = dout.contiguous()
        dquery, dkey, dvalue = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for block, weights in zip(ctx.branches.blocks, kept, strict=True):
            q, do = _gather(query, block.rows_nT), _gather(dout, block.rows_nT)
            k, v = _gather(key, block.seen_nS), _gather(value, block.seen_nS)
            if weights is None:
                weights = _weights(q, k, block.first, ctx.scale)
            _scatter(torch.bmm(weights.transpose(1, 2), do), block.seen_nS, dvalue, add=True)
            gradient = torch.bmm(do, v.transpose(1, 2))
            fast_cpu.call("causal_softmax_backward", gradient, weights, weights[..., 0].numel(), weights.shape[2], ctx.scale)
            _scatter(torch.bmm(gradient, k), block.rows_nT, dquery, add=False)
            _scatter(torch.bmm(gradient.transpose(1, 2), q), block.seen_nS, dkey, add=True)
        return dquery, dkey, dvalue, None, None


def _weights(query: Tensor, key: Tensor, first: int, scale: float) -> Tensor:
    weights = torch.bmm(query, key.transpose(1, 2))
    fast_cpu.call("causal_softmax", weights, *weights.shape, first, scale)
    return weights


def _gather(x_Lhd: Tensor, places_nT: Tensor) -> Tensor:
    """`[h·n, T, d]`; 0 where a place is -1."""
    (n, length), (_, heads, size) = places_nT.shape, x_Lhd.shape
    out = x_Lhd.new_empty(heads * n, length, size)
    fast_cpu.call("gather", x_Lhd, places_nT, out, n * length, heads, size)
    return out


def _scatter(x: Tensor, places_nT: Tensor, out_Lhd: Tensor, add: bool) -> None:
    """The inverse: `[h·n, T, d]` to its places or, with `add`, on top of what is there."""
    fast_cpu.call("scatter", x, places_nT, out_Lhd, places_nT.numel(), *out_Lhd.shape[1:], int(add))
