"""Prompts and responses as one row of tokens without padding; a prompt that neighbours share stands there once.

Every output is known by position alone: responses may contain the EOS or the pad token's id anywhere.

Shapes: N outputs, M tokens of all responses in the order of outputs, L tokens of prompts and responses as packed, H hidden.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from mathpipe.pretrain import optim
from mathpipe.pretrain.attention import no_mask
from mathpipe.pretrain.branches import Branches
from mathpipe.pretrain.model import prepare

Tokens = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Packed:
    """Prompts, each followed by its responses."""

    ids_L: Tensor
    """The tokens."""
    positions_L: Tensor
    """Place of each in its own sequence: a response goes on where its prompt ends."""
    predict_M: Tensor
    """Place in L whose hidden state predicts the response token."""
    place_M: Tensor
    """Place in L of the response token."""
    target_M: Tensor
    """The response token."""
    output_M: Tensor
    """Number of its output."""
    lengths_N: Tensor
    """Tokens of each response."""
    branches: Branches
    """What attention sees."""

    def to(self, device: torch.device | str) -> Packed:
        """The same on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Packed(**{name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()})


def pack(prompts: Tokens, responses: Tokens) -> Packed:
    """Outputs with the prompt of each; equal neighbouring prompts are one.

    Raises:
        ValueError: a prompt or a response without a token.

    >>> packed = pack([[5, 6], [5, 6], [7]], [[8], [9, 0], [8]])
    >>> packed.ids_L.tolist(), packed.positions_L.tolist()
    ([5, 6, 8, 9, 0, 7, 8], [0, 1, 2, 2, 3, 0, 1])
    >>> packed.predict_M.tolist(), packed.place_M.tolist(), packed.output_M.tolist()
    ([1, 1, 3, 5], [2, 3, 4, 6], [0, 1, 1, 2])
    """
    if not prompts or not all(map(len, prompts)) or not all(map(len, responses)):
        raise ValueError("there must be an output, and each must have a token in its prompt and one in its response")
    ids: list[int] = []
    positions: list[Tensor] = []
    predict: list[Tensor] = []
    groups = []
    for prompt, members in _groups(prompts):
        last, lengths = len(ids) + len(prompt) - 1, tuple(len(responses[n]) for n in members)
        ids += prompt
        positions.append(torch.arange(len(prompt)))
        for n, length in zip(members, lengths, strict=True):
            predict.append(torch.arange(len(ids) - 1, len(ids) - 1 + length))
            predict[-1][0] = last
            positions.append(torch.arange(len(prompt), len(prompt) + length))
            ids += responses[n]
        groups.append((len(prompt), lengths))
    lengths_N = torch.tensor([len(response) for response in responses])
    place_M = torch.cat([torch.arange(own.start, own.stop) for own in Branches(tuple(groups)).responses])
    ids_L = torch.tensor(ids)
    return Packed(
        ids_L, torch.cat(positions), torch.cat(predict), place_M, ids_L[place_M],
        torch.arange(len(responses)).repeat_interleave(lengths_N), lengths_N, Branches(tuple(groups)),
    )  # fmt: skip


def _groups(prompts: Tokens) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt, numbers of its outputs) of equal neighbours."""
    for prompt, numbers in itertools.groupby(range(len(prompts)), key=lambda n: list(prompts[n])):
        yield prompt, list(numbers)


def split(prompts: Tokens, responses: Tokens, max_tokens: int) -> list[list[int]]:
    """Numbers of the outputs of each micro-batch, in order, at most `max_tokens` tokens as packed, or a single output.

    Outputs of one prompt stay together where they fit.

    >>> split([[5, 6], [5, 6], [7], [7]], [[8], [9], [8, 8], [9]], 6)
    [[0, 1], [2, 3]]
    >>> split([[5, 6], [5, 6], [7], [7]], [[8], [9], [8, 8], [9]], 3)
    [[0], [1], [2], [3]]
    """
    found: list[list[int]] = [[]]
    left = max_tokens
    for prompt, numbers in _groups(prompts):
        whole = len(prompt) + sum(len(responses[n]) for n in numbers)
        is_new = True  # the prompt is not in the last micro-batch yet
        if left < whole <= max_tokens and found[-1]:
            found, left = [*found, []], max_tokens
        for n in numbers:
            if found[-1] and left < len(responses[n]) + is_new * len(prompt):
                found, left, is_new = [*found, []], max_tokens, True
            found[-1].append(n)
            left -= len(responses[n]) + is_new * len(prompt)
            is_new = False
    return found


class Output(Protocol):
    """A prompt with its response: a sample, or an example of a reward model."""

    @property
    def prompt(self) -> Sequence[int]: ...

    @property
    def ids(self) -> Sequence[int]: ...


def micro_batches(outputs: Sequence[Output], max_tokens: int) -> list[list[int]]:
    """Output numbers of each micro-batch, as many on every process: where one has fewer, its largest are halved."""
    parts = split([one.prompt for one in outputs], [one.ids for one in outputs], max_tokens)
    wanted = int(optim.highest(len(parts)))
    while len(parts) < wanted:
        number = max(range(len(parts)), key=lambda n: len(parts[n]))
        middle = len(parts[number]) // 2
        parts[number : number + 1] = [parts[number][:middle], parts[number][middle:]]
    return parts


def hidden(model: Any, packed: Packed) -> Tensor:
    """Last hidden states `[L, H]` of a transformers model (causal LM, token classifier); each response sees its prompt and itself."""
    prepare(model, packed.ids_L.device)
    ids = packed.ids_L[None]
    out = model.base_model(
        input_ids=ids, position_ids=packed.positions_L[None], attention_mask=no_mask(ids), use_cache=False, branches=packed.branches
    )
    return out.last_hidden_state[0]  # type: ignore[no-any-return]
