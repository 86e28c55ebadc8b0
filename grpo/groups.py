"""Groups of samples that differ: a ladder of temperatures, variants of the prompt, near-duplicates drawn again.

A group's samples are spread evenly over the cells temperature × prompt variant; each keeps its own temperature and prompt, at which
its log-probabilities are taken in training too. Drawing near-duplicates again changes the distribution the samples come from, which
the loss does not correct: equal answers count for less than their probability.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasketch import MinHash

from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.sampler import Request, Response, Sampler
from mathpipe.pretrain.tokenizer import encode_prompt
from mathpipe.sft.prompts import render

SHINGLE_WORDS = 3
NUM_HASHES = 128
"""Of a MinHash: standard error of a similarity 0.09 at most."""
WORD = re.compile(r"\d+|[^\W\d]+|[^\w\s]")
"""A number, a word or a sign: `3*4=12` are five, else a short calculation were one word."""


@dataclass(frozen=True)
class Group:
    """The samples of a question."""

    responses: list[Response]
    texts: list[str]
    num_duplicates: int
    """Near-duplicates that are left after the last round; 0 where none are looked for."""


def prompts(config: GrpoConfig, tokenizer: Any, question: str) -> list[tuple[int, ...]]:
    """The question's prompt in every variant."""
    asked = [f"{variant} {question}" if variant else question for variant in config.prompt_variants]
    return [tuple(encode_prompt(tokenizer, render(one, config.prompt))) for one in asked]


def fits(config: GrpoConfig, tokenizer: Any, question: str) -> bool:
    """Whether the question's prompts are short enough in every variant."""
    return max(map(len, prompts(config, tokenizer, question))) <= config.max_prompt_tokens


def cells(config: GrpoConfig) -> list[tuple[float, int]]:
    """(temperature, number of the prompt variant) of each of a group's samples, `[G]`.

    >>> cells(GrpoConfig(group_size=4, temperatures=(0.7, 1.0)))
    [(0.7, 0), (0.7, 0), (1.0, 0), (1.0, 0)]
    """
    every = list(itertools.product(config.temperatures, range(len(config.prompt_variants))))
    return [every[n * len(every) // config.group_size] for n in range(config.group_size)]


def sample_groups(config: GrpoConfig, sampler: Sampler, tokenizer: Any, questions: Sequence[str], seeds: Sequence[int]) -> list[Group]:
    """A group for each question; the same seed gives the same group, whatever is asked beside it.

    Raises:
        ValueError: a prompt is longer than `max_prompt_tokens`.
    """
    prompts_of = [prompts(config, tokenizer, question) for question in questions]
    for question, found in zip(questions, prompts_of, strict=True):
        longest = max(map(len, found))
        if longest > config.max_prompt_tokens:
            raise ValueError(f"a prompt has {longest} tokens, grpo.max_prompt_tokens allows {config.max_prompt_tokens}: {question[:60]!r}")
    drawn: list[dict[int, Response]] = [{} for _ in questions]
    todo = [list(range(config.group_size)) for _ in questions]
    for attempt in range(1 + (config.resample_rounds if config.duplicate_jaccard else 0)):
        places, requests = [], []
        for n, wanted in enumerate(todo):
            for cell, members in _by_cell(config, wanted):
                places.append((drawn[n], members))
                prompt, seed = prompts_of[n][cell[1]], _derived(seeds[n], cell, attempt)
                requests.append(Request(prompt, len(members), cell[0], config.top_p, seed))
        for (group, members), found in zip(places, sampler.sample(requests, config.max_new_tokens), strict=True):
            group.update(zip(members, found, strict=True))
        if config.duplicate_jaccard:
            todo = [
                near_duplicates(_texts(tokenizer, group), config.duplicate_jaccard, last=wanted) if wanted else []
                for group, wanted in zip(drawn, todo, strict=True)
            ]  # fmt: skip
        if not any(todo):
            break
    left = [len(wanted) if config.duplicate_jaccard else 0 for wanted in todo]
    return [
        Group([group[n] for n in range(config.group_size)], _texts(tokenizer, group), num) for group, num in zip(drawn, left, strict=True)
    ]


def near_duplicates(texts: Sequence[str], jaccard: float, last: Sequence[int] = ()) -> list[int]:
    """Numbers, ascending, of the texts at least this similar to one before them that is none itself.

    Similarity is the share of equal MinHash values over word 3-grams: the estimated Jaccard index.

    Args:
        last: texts that stand behind all others, whatever their number.

    >>> near_duplicates(["2+3=5, so 5", "2 + 3 = 5, so 5", "4+4=8"], 0.9)
    [1]
    >>> near_duplicates(["2+3=5, so 5", "2 + 3 = 5, so 5", "4+4=8"], 0.9, last=[0])
    [0]
    """
    signature = {text: _minhash(text) for text in set(texts)}
    kept: list[np.ndarray] = []
    found = []
    for n in [*(n for n in range(len(texts)) if n not in last), *last]:
        values = signature[texts[n]]
        if kept and (np.stack(kept) == values).mean(1).max() >= jaccard:
            found.append(n)
        else:
            kept.append(values)
    return sorted(found)


def _minhash(text: str) -> np.ndarray:
    words = WORD.findall(text.lower())
    shingles = {" ".join(words[n : n + SHINGLE_WORDS]) for n in range(max(1, len(words) - SHINGLE_WORDS + 1))}
    made = MinHash(NUM_HASHES)
    made.update_batch([one.encode() for one in sorted(shingles)])
    return made.hashvalues


def _texts(tokenizer: Any, group: Mapping[int, Response]) -> list[str]:
    return [tokenizer.decode(group[n].ids, skip_special_tokens=True) for n in range(len(group))]


def _by_cell(config: GrpoConfig, members: Sequence[int]) -> Iterator[tuple[tuple[float, int], list[int]]]:
    cell_of = cells(config)
    return ((cell, list(found)) for cell, found in itertools.groupby(members, key=cell_of.__getitem__))


def _derived(seed: int, cell: tuple[float, int], attempt: int) -> int:
    return random.Random(f"{seed}-{cell}-{attempt}").getrandbits(62)
