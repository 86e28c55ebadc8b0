"""Log-probabilities of sampled responses; the prompt of a group is computed once and shared by its samples.

Shapes: B questions, G samples, N = B·G, P prompt tokens, T response tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mathpipe.pretrain.model import log_probs, prepare


@dataclass(frozen=True)
class Groups:
    """Prompts padded on the left, `[B, P]`, and the responses of each, padded on the right, `[N, T]` in question order."""

    prompt_BP: Tensor
    prompt_mask_BP: Tensor
    response_NT: Tensor
    mask_NT: Tensor

    def to(self, device: Any) -> Groups:
        """The same on another device."""
        return Groups(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def make_groups(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]], pad: int) -> Groups:
    """Groups from B prompts and B lists of G responses. Padding is told by position, never by token id."""
    width = max(map(len, prompts))
    prompt, prompt_mask = torch.full((len(prompts), width), pad), torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, ids in enumerate(prompts):
        prompt[row, width - len(ids) :] = torch.tensor(ids)
        prompt_mask[row, width - len(ids) :] = True
    flat = [response for group in responses for response in group]
    longest = max(map(len, flat))
    response, mask = torch.full((len(flat), longest), pad), torch.zeros(len(flat), longest, dtype=torch.bool)
    for row, ids in enumerate(flat):
        response[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        mask[row, : len(ids)] = True
    return Groups(prompt, prompt_mask, response, mask)


class Policy(nn.Module):
    """A causal LM as DeepSpeed wraps it here: its forward returns log-probabilities of responses."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, groups: Groups, temperature: float = 1.0) -> Tensor:
        """log π(response token), `[N, T]` in fp32, 0 where the mask is false."""
        prepare(self.model, groups.prompt_BP.device)
        body = self.model.base_model
        size = len(groups.response_NT) // len(groups.prompt_BP)
        positions = (groups.prompt_mask_BP.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        prompt = body(
            input_ids=groups.prompt_BP, attention_mask=groups.prompt_mask_BP, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache.batch_repeat_interleave(size)
        before = groups.prompt_mask_BP.repeat_interleave(size, 0)
        start = positions[:, -1:].repeat_interleave(size, 0) + 1
        inputs_NT = groups.response_NT[:, :-1]
        hidden = prompt.last_hidden_state[:, -1:].repeat_interleave(size, 0)
        if inputs_NT.shape[1]:
            after = body(
                input_ids=inputs_NT,
                attention_mask=torch.cat([before, groups.mask_NT[:, :-1]], 1),
                position_ids=start + torch.arange(inputs_NT.shape[1], device=start.device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            hidden = torch.cat([hidden, after], 1)
        targets = groups.response_NT[groups.mask_NT]
        scales = None if temperature == 1.0 else torch.full(targets.shape, temperature, device=targets.device)
        flat = log_probs(hidden[groups.mask_NT], self.model.get_output_embeddings(), targets, scales)
        return torch.zeros(groups.mask_NT.shape, device=flat.device).masked_scatter(groups.mask_NT, flat)
