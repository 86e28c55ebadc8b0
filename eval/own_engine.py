"""Answers from our own forward pass and decode loop (pretrain/generate.py), which compute what prompts have in common once.

Few-shot prompts of a task differ in their last question alone: sorted, neighbours with a common beginning become one prompt with
many questions behind it. Only the last position of each reaches the output layer; a finished completion leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mathpipe.eval.generation import LoadedModel, Tokens, cut
from mathpipe.pretrain.generate import Draws, first_logits, grow, noise
from mathpipe.pretrain.memory import Start
from mathpipe.pretrain.model import prepare

MIN_SHARED = 16
"""Fewer common tokens than this are computed again for every prompt."""
MAX_ROWS = 512
"""Completions that grow at the same time."""
MAX_CACHE_BYTES = 2 << 30
"""Keys and values of what they do not share."""


class OwnGenerator:
    """Answers of one model."""

    def __init__(self, loaded: LoadedModel, batch_tokens: int) -> None:
        """
        Args:
            batch_tokens: tokens computed in one pass, a single longer prompt aside.
        """
        self.loaded, self.batch_tokens = loaded, batch_tokens
        self.model = loaded.model
        prepare(self.model, self.model.device)

    @torch.no_grad()
    def next_logprobs(self, prompts: Sequence[Tokens], tokens: Sequence[int]) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in prompts]
        for part in parts(prompts, self.batch_tokens, len(prompts), lambda length: 0):
            logp_NV = first_logits(self.model, part.start()).log_softmax(1)
            for row, values in zip(part.rows, logp_NV[:, list(tokens)].tolist(), strict=True):
                found[row] = values
        return found

    def generate(
        self, prompts: Sequence[Tokens], max_new_tokens: int, stop: Sequence[str] = (), num_samples: int = 1, temperature: float = 0.0,
        top_p: float = 1.0, seeds: Sequence[int] | None = None,
    ) -> list[list[str]]:  # fmt: skip
        seeds = range(len(prompts)) if seeds is None else seeds
        found: list[list[str]] = [[] for _ in prompts]
        times = num_samples if temperature else 1
        config = self.model.config
        token_bytes = 2 * config.num_hidden_layers * config.hidden_size * self.model.dtype.itemsize
        size: Callable[[int], int] = lambda own: times * (own + max_new_tokens) * token_bytes  # noqa: E731
        for part in parts(prompts, self.batch_tokens, max(1, MAX_ROWS // times), size, share=times == 1):
            start = part.start(times)
            draws = None
            if temperature:
                stream = [noise(seeds[row], number, max_new_tokens) for row in part.rows for number in range(times)]
                each = torch.ones(len(stream))
                draws = Draws(each * temperature, each * top_p, torch.from_numpy(np.stack(stream)))
            grown = grow(self.model, start, max_new_tokens, Ends(self.loaded, stop, len(part.rows) * times), draws)
            texts = [cut(self.loaded.decode(ids), stop) for ids in grown.ids()]
            for n, row in enumerate(part.rows):
                found[row] = texts[n * times : (n + 1) * times] * (num_samples // times)
        return found


class Ends:
    """Whether a completion ends with its new token: with an end token, or because its text has a stop string now.

    A stop string ends inside the new token, so only tokens that hold the last character of one are looked at, with as many tokens
    before them as a stop string has bytes. What is looked at is text: it does not matter how the string is cut into tokens.
    """

    def __init__(self, loaded: LoadedModel, stop: Sequence[str], count: int) -> None:
        self.loaded, self.stop = loaded, stop
        self.eos = frozenset(loaded.eos)
        self.window = max((len(text.encode()) for text in stop), default=0) + 2
        self.ids: list[Tokens] = [[] for _ in range(count)]
        self.closes: dict[int, bool] = {}

    def __call__(self, rows: Tensor, token_n: Tensor) -> Tensor:
        return torch.tensor([self._add(row, token) for row, token in zip(rows.tolist(), token_n.tolist(), strict=True)])

    def _add(self, row: int, token: int) -> bool:
        ids = self.ids[row]
        ids.append(token)
        if token in self.eos:
            return True
        closes = self.closes.get(token)
        if closes is None:
            text = self.loaded.decode([token])
            closes = self.closes[token] = any(one[-1] in text or ("\ufffd" in text and not one[-1].isascii()) for one in self.stop)
        if not closes:
            return False
        text = self.loaded.decode(ids[-self.window :])
        return any(one in text for one in self.stop)


@dataclass
class Group:
    """Prompts with a common beginning of `shared` tokens."""

    rows: list[int]
    shared: int


@dataclass
class Part:
    """Prompts computed together."""

    prompts: Sequence[Tokens]
    groups: list[Group] = field(default_factory=list)

    @property
    def rows(self) -> list[int]:
        """Their numbers."""
        return [row for group in self.groups for row in group.rows]

    def start(self, times: int = 1) -> Start:
        """The row of tokens, each prompt `times` over."""
        if times > 1:
            owners = [n for n in range(len(self.rows)) for _ in range(times)]
            return Start([self.prompts[row] for row in self.rows], owners)
        owners = [n for n, group in enumerate(self.groups) for _ in group.rows]
        own = [self.prompts[row][group.shared :] for group in self.groups for row in group.rows]
        return Start([self.prompts[group.rows[0]][: group.shared] for group in self.groups], owners, own)


def parts(
    prompts: Sequence[Tokens], batch_tokens: int, max_rows: int, num_bytes: Callable[[int], int], share: bool = True
) -> Iterator[Part]:
    """All prompts, sorted, in parts of at most `batch_tokens` tokens, `max_rows` prompts and MAX_CACHE_BYTES; each has at least one.

    A prompt joins the group before it where that saves tokens.

    Args:
        num_bytes: of a prompt with so many tokens of its own.
        share: whether prompts may join.
    """
    part, tokens, longest, count = Part(prompts), 0, 0, 0
    for row in sorted(range(len(prompts)), key=prompts.__getitem__):
        last = part.groups[-1] if part.groups else Group([row], 0)
        size = len(last.rows)
        first = prompts[last.rows[0]][: last.shared if size > 1 else -1]
        shared = common(first, prompts[row]) if share and count else 0
        saved = size * shared - (size - 1) * last.shared if shared >= MIN_SHARED else 0
        joins = saved > 0
        added, own = len(prompts[row]) - max(0, saved), len(prompts[row]) - (shared if joins else 0)
        full = tokens + added > batch_tokens or count >= max_rows or (count + 1) * num_bytes(max(longest, own)) > MAX_CACHE_BYTES
        if count and full:
            yield part
            part, tokens, longest, count, joins, added = Part(prompts), 0, 0, 0, False, len(prompts[row])
        if joins:
            last.rows.append(row)
            last.shared = shared
        else:
            part.groups.append(Group([row], len(prompts[row])))
        tokens, count, longest = tokens + added, count + 1, max(longest, own)
    if count:
        yield part


def common(first: Tokens, second: Tokens) -> int:
    """How many tokens both begin with, leaving the second at least one of its own.

    >>> common([1, 2, 3, 4], [1, 2, 5]), common([1, 2, 3], [1, 2, 3])
    (2, 2)
    """
    limit = min(len(first), len(second) - 1)
    return next((n for n, (a, b) in enumerate(zip(first[:limit], second, strict=False)) if a != b), limit)
