"""Causal attention within documents that lie one after another, without a mask: `documents`, an attention function for transformers.

A batch of packed sequences is flattened to one row of tokens (padding left out) and `cu_seq_lens_q` says where documents begin,
as transformers' flash attention has it. Where `branches` are given (branches.py) they are prompts, each followed by its responses,
which see the prompt and themselves; with a `memory` (memory.py) the row holds the prompts, then one more token of each response.
On a GPU: flash attention for varying lengths (`torch.nn.attention.varlen`), for bf16. On a CPU in fp32: matrix products and the C
kernels of `fast_cpu`, which know that half of the scores are masked. Otherwise scaled_dot_product_attention, document by document.
Padded batches and caches go to transformers' sdpa with its mask.

Shapes: N tokens of all documents, h heads, d size of a head.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mathpipe.pretrain import branches as branched
from mathpipe.pretrain import fast_cpu
from mathpipe.pretrain.memory import Memory

NAME = "documents"
BLOCK = 128
"""Queries whose scores are computed at a time on a CPU; keys behind the block are left out."""
MAX_KEPT = 1024
"""Longest document whose attention weights are kept for the backward pass; from there on sdpa, which recomputes them."""


class CpuAttention(torch.autograd.Function):
    """Causal attention within documents of the given lengths; query, key, value and result `[N, h, d]`, fp32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out, kept = torch.empty_like(query), []
        for rows, seen, first in blocks(lengths):
            q, k, v = (t.transpose(0, 1) for t in (query[rows], key[seen], value[seen]))
            weights = torch.bmm(q, k.transpose(1, 2))
            fast_cpu.call("causal_softmax", weights, *weights.shape, first, scale)
            out[rows] = torch.bmm(weights, v).transpose(0, 1)
            kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.lengths, ctx.scale = lengths, scale
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, *kept = ctx.saved_tensors
        dout = dout.contiguous()
        dquery, dkey, dvalue = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (rows, seen, _), weights in zip(blocks(ctx.lengths), kept, strict=True):
            q, k, v, do = (t.transpose(0, 1) for t in (query[rows], key[seen], value[seen], dout[rows]))
            dvalue[seen] += torch.bmm(weights.transpose(1, 2), do).transpose(0, 1)
            gradient = torch.bmm(do, v.transpose(1, 2))
            fast_cpu.call("causal_softmax_backward", gradient, weights, weights[..., 0].numel(), weights.shape[2], ctx.scale)
            dquery[rows] = torch.bmm(gradient, k).transpose(0, 1)
            dkey[seen] += torch.bmm(gradient.transpose(1, 2), q).transpose(0, 1)
        return dquery, dkey, dvalue, None, None


def blocks(lengths: list[int]) -> list[tuple[slice, slice, int]]:
    r"""(queries, keys they may see, place of the first query in its document) of every block.

    >>> blocks([130, 3])
    [(slice(0, 128, None), slice(0, 128, None), 0), (slice(128, 130, None), slice(0, 130, None), 128), \
(slice(130, 133, None), slice(130, 133, None), 0)]
    """
    starts = itertools.accumulate(lengths, initial=0)
    return [
        (slice(start + first, start + end), slice(start, start + end), first)
        for start, length in zip(starts, lengths, strict=False)
        for first in range(0, length, BLOCK)
        for end in [min(first + BLOCK, length)]
    ]


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, cu_seq_lens_q: Tensor | None = None, max_length_q: int = 0,
    branches: branched.Branches | None = None, memory: Memory | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention of a transformers layer; query, key and value `[B, h, T, d]`, result `[B, T, h, d]`."""
    batch, heads, length, size = query.shape
    scale = size**-0.5 if scaling is None else scaling
    if branches is not None or memory is not None:
        if dropout:
            raise ValueError("dropout in attention does not go with packed responses; set it to 0 in the model's config.json")
        if memory is not None:
            return memory.attend(module.layer_idx, query, key, value, scale), None
        return branched.attend(query, key, value, branches, scale), None
    plain = attention_mask is None and cu_seq_lens_q is None and key.shape[2] == length > 1
    if not plain and cu_seq_lens_q is None or dropout:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if query.device.type == "cuda" and plain:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)
    if query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
        bounds, longest = cu_seq_lens_q, max_length_q
        causal: Any = {"scale": scale, "window_size": (-1, 0), "enable_gqa": key.shape[1] != heads}
        out: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, **causal)  # type: ignore[arg-type, call-overload, misc]
        return out[None], None
    key, value = repeat_kv(key, heads // key.shape[1]), repeat_kv(value, heads // value.shape[1])
    lengths = [length] * batch if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    if fast_cpu.usable(query, key, value) and max(lengths) <= MAX_KEPT:
        flat = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
        return CpuAttention.apply(*flat, lengths, scale).view(batch, length, heads, size), None
    if plain:
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling, **kwargs)
    documents = zip(*(t.split(lengths, dim=2) for t in (query, key, value)), strict=True)
    parts = [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale) for q, k, v in documents]
    return torch.cat(parts, 2).transpose(1, 2), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def flatten(documents_BT: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Flat numbers of the tokens that are no padding (document -1), and where documents begin, as `attend` takes it.

    Tokens of a row with one document number must stand together.
    """
    length = documents_BT.shape[1]
    key = documents_BT + torch.arange(len(documents_BT), device=documents_BT.device)[:, None] * (length + 1)
    kept = (documents_BT.flatten() >= 0).nonzero().squeeze(1)
    _, counts = torch.unique_consecutive(key.flatten()[kept], return_counts=True)
    bounds = F.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(counts.max())
    return kept, {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def no_mask(ids: Tensor) -> Tensor:
    """What transformers takes for a mask made by the caller and passes on, so that it does not make one: `attend` needs none."""
    return torch.empty(1, 1, 1, 1, device=ids.device)
