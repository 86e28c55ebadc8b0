"""Keys and values of prompts and of the responses that grow behind them, one token of each at a time.

A prompt stands there once, however many responses it has; what a response alone begins with (its question behind worked examples
that it shares with others) stands with its own tokens. A finished response is left out of `rows` and costs nothing more.

Shapes: N responses, n of them that still grow, L tokens of all prompts and beginnings, C tokens a response may have; h heads, k
heads of keys and values, d size of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from mathpipe.pretrain import branches, fast_cpu

KEY_BLOCK = 32
"""The kernel reads keys in blocks of this size, and so beyond the last one."""
Tokens = Sequence[int]


class Start:
    """One row of tokens that N responses go on from: every prompt, and behind it the beginnings of its responses."""

    def __init__(self, prompts: Sequence[Tokens], owners: Sequence[int], own: Sequence[Tokens] | None = None) -> None:
        """
        Args:
            owners: the prompt of each response, in the order of prompts.
            own: the beginning of each response; None: none has any.
        """
        own = [()] * len(owners) if own is None else own
        ids: list[int] = []
        positions: list[int] = []
        groups, found = [], []
        for number, rows in itertools.groupby(range(len(owners)), key=owners.__getitem__):
            length, first = len(prompts[number]), len(ids)
            ids += prompts[number]
            positions += range(length)
            beginnings = [own[row] for row in rows]
            for beginning in beginnings:
                place = len(ids)
                ids += beginning
                positions += range(length, length + len(beginning))
                found.append((first, length, place, len(beginning), len(ids) - 1 if beginning else first + length - 1))
            groups.append((length, tuple(len(beginning) for beginning in beginnings if beginning)))
        self.ids_L, self.positions_L = torch.tensor(ids), torch.tensor(positions)
        self.prompt_N, self.prompt_tokens_N, self.own_N, self.own_tokens_N, self.last_N = torch.tensor(found).T.contiguous()
        """Of each response: place and length of its prompt, of its beginning, place of its last token."""
        self.branches = branches.Branches(tuple(groups))


class Memory:
    """What the responses of some prompts have computed so far, layer by layer; `attention.attend` fills and reads it."""

    def __init__(self, start: Start, max_new_tokens: int) -> None:
        """
        Args:
            max_new_tokens: tokens beyond a response's beginning that can be added to it.
        """
        self.start, self.place = start, -1
        self.rows = self.start_n = self.length_n = self.own_n = torch.empty(0, dtype=torch.long)
        capacity = int(start.own_tokens_N.max()) + max_new_tokens
        self.capacity = -capacity % KEY_BLOCK + capacity
        self.layers: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def grow(self, rows: Tensor) -> Tensor:
        """The next pass adds a token to each of these responses, at these positions."""
        self.rows, self.place = rows, self.place + 1
        self.start_n, self.length_n = self.start.prompt_N[rows], self.start.prompt_tokens_N[rows]
        self.own_n = self.start.own_tokens_N[rows] + self.place
        return self.length_n + self.own_n

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention; query `[1, h, L or n, d]`, result `[1, L or n, h, d]`: first of the start, then of a token of each response."""
        if self.place < 0:
            self._keep(layer, key[0], value[0])
            return branches.attend(query, key, value, self.start.branches, scale)
        if not fast_cpu.usable(query, key, value):
            return self._scaled_dot_product(self.layers[layer], query, key, value, scale)
        query, key, value = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        return self.read(layer, query, key, value, scale)[None]

    def read(self, layer: int, query_nhd: Tensor, key_nkd: Tensor, value_nkd: Tensor, scale: float) -> Tensor:
        """Attention of a token of each response on a CPU, `[n, h, d]`; all contiguous."""
        stored, out = self.layers[layer], torch.empty_like(query_nhd)
        count, heads, size = query_nhd.shape
        places = self.rows, self.start_n, self.length_n, self.own_n
        numbers = count, heads, key_nkd.shape[1], size, stored[0].shape[2], self.capacity
        fast_cpu.call("decode", query_nhd, key_nkd, value_nkd, *stored, out, *places, *numbers, scale)
        return out

    def _keep(self, layer: int, key_kLd: Tensor, value_kLd: Tensor) -> None:
        heads, _, size = key_kLd.shape
        make = key_kLd.new_empty if fast_cpu.usable(key_kLd) else key_kLd.new_zeros  # what sdpa masks must not be NaN
        keys = make(len(self.start.own_N), heads, size, self.capacity)
        values = make(len(self.start.own_N), heads, self.capacity, size)
        for row, (place, count) in enumerate(zip(self.start.own_N.tolist(), self.start.own_tokens_N.tolist(), strict=True)):
            if count:
                keys[row, :, :, :count] = key_kLd[:, place : place + count].transpose(1, 2)
                values[row, :, :count] = value_kLd[:, place : place + count]
        padded = F.pad(torch.stack([key_kLd, value_kLd]), (0, 0, 0, KEY_BLOCK))
        self.layers[layer] = padded[0].transpose(1, 2).contiguous(), padded[1], keys, values

    def _scaled_dot_product(self, stored: tuple[Tensor, ...], query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """The same with sdpa on a padded copy of the prompts, for GPUs and machines without a C compiler."""
        prompt_kdL, prompt_kLd, keys, values = stored
        device = query.device
        rows, start, length, own = (x.to(device) for x in (self.rows, self.start_n, self.length_n, self.own_n))
        keys[rows, :, :, own], values[rows, :, own] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        places, own_places = (torch.arange(int(count), device=device) for count in (length.max(), own.max() + 1))
        seen = torch.minimum(start[:, None] + places, (start + length - 1)[:, None])
        k = torch.cat([prompt_kdL[:, :, seen].permute(2, 0, 3, 1), keys[rows, :, :, : len(own_places)].transpose(2, 3)], 2)
        v = torch.cat([prompt_kLd[:, seen].transpose(0, 1), values[rows, :, : len(own_places)]], 2)
        k, v = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (k, v))
        mask = torch.cat([places < length[:, None], own_places <= own[:, None]], 1)[:, None, None]
        out = F.scaled_dot_product_attention(query[0].transpose(0, 1)[:, :, None], k, v, attn_mask=mask, scale=scale)
        return out[None, :, :, 0]
