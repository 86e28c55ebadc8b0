"""Keys and values of prompts and of the responses that grow behind them, one token of each at a time.

A prompt stands there once, however many responses it has. All responses have the same number of tokens; a finished one is left out
of `rows` and costs nothing more.

Shapes: N responses, n of them that still grow, L tokens of all prompts, C tokens a response may have; h heads, k heads of keys and
values, d size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv

from mathpipe.pretrain import branches, fast_cpu

KEY_BLOCK = 32
"""The kernel reads keys in blocks of this size, and so beyond the last one."""


class Memory:
    """What the responses of some prompts have computed so far, layer by layer; `attention.attend` fills and reads it."""

    def __init__(self, prompts: Sequence[int], owners: Sequence[int], capacity: int) -> None:
        """
        Args:
            prompts: tokens of each prompt.
            owners: the prompt of each response.
            capacity: C; tokens beyond it cannot be added.
        """
        self.rows = self.start_n = self.length_n = torch.empty(0, dtype=torch.long)
        self.branches = branches.Branches(tuple((length, ()) for length in prompts))
        lengths_N, owner_N = torch.tensor(prompts), torch.tensor(owners)
        self.length_N = lengths_N[owner_N]
        self.start_N = (lengths_N.cumsum(0) - lengths_N)[owner_N]
        self.capacity, self.place = -capacity % KEY_BLOCK + capacity, -1
        self.layers: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def grow(self, rows: Tensor) -> None:
        """The next pass adds a token to each of these responses."""
        self.rows, self.place = rows, self.place + 1
        self.start_n, self.length_n = self.start_N[rows], self.length_N[rows]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention; query `[1, h, L or n, d]`, result `[1, L or n, h, d]`: first of the prompts, then of a token of each response."""
        if self.place < 0:
            self._start(layer, key[0], value[0])
            return branches.attend(query, key, value, self.branches, scale)
        if not fast_cpu.usable(query, key, value):
            return self._scaled_dot_product(self.layers[layer], query, key, value, scale)
        query, key, value = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        return self.read(layer, query, key, value, scale)[None]

    def read(self, layer: int, query_nhd: Tensor, key_nkd: Tensor, value_nkd: Tensor, scale: float) -> Tensor:
        """Attention of a token of each response on a CPU, `[n, h, d]`; all contiguous."""
        stored, out = self.layers[layer], torch.empty_like(query_nhd)
        count, heads, size = query_nhd.shape
        numbers = count, heads, key_nkd.shape[1], size, stored[0].shape[2], self.capacity, self.place
        fast_cpu.call("decode", query_nhd, key_nkd, value_nkd, *stored, out, self.rows, self.start_n, self.length_n, *numbers, scale)
        return out

    def _start(self, layer: int, key_kLd: Tensor, value_kLd: Tensor) -> None:
        heads, _, size = key_kLd.shape
        keys = key_kLd.new_empty(len(self.length_N), heads, size, self.capacity)
        values = key_kLd.new_empty(len(self.length_N), heads, self.capacity, size)
        padded = F.pad(torch.stack([key_kLd, value_kLd]), (0, 0, 0, KEY_BLOCK))
        self.layers[layer] = padded[0].transpose(1, 2).contiguous(), padded[1], keys, values

    def _scaled_dot_product(self, stored: tuple[Tensor, ...], query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """The same with sdpa on a padded copy of the prompts, for GPUs and machines without a C compiler."""
        prompt_kdL, prompt_kLd, keys, values = stored
        device = query.device
        rows, start, length = (x.to(device) for x in (self.rows, self.start_n, self.length_n))
        keys[rows, :, :, self.place], values[rows, :, self.place] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        places = torch.arange(int(length.max()), device=device)
        seen = torch.minimum(start[:, None] + places, (start + length - 1)[:, None])
        k = torch.cat([prompt_kdL[:, :, seen].permute(2, 0, 3, 1), keys[rows, :, :, : self.place + 1].transpose(2, 3)], 2)
        v = torch.cat([prompt_kLd[:, seen].transpose(0, 1), values[rows, :, : self.place + 1]], 2)
        k, v = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (k, v))
        mask = F.pad(places < length[:, None], (0, self.place + 1), value=True)[:, None, None]
        out = F.scaled_dot_product_attention(query[0].transpose(0, 1)[:, :, None], k, v, attn_mask=mask, scale=scale)
        return out[None, :, :, 0]
