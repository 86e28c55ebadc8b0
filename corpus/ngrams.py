"""Exact n-gram matches of pages with benchmark texts.

A gram is hashed by a polynomial of its words' hashes (modulo 2⁶⁴). A Bloom filter leaves a few places of a batch of pages,
their grams are looked up in sorted tables, and what is left is compared word by word: a reported match is a true one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mathpipe.corpus.words import MULTIPLIER, Words

BATCH_CHARS = 200_000
"""Characters taken at a time: the arrays of a batch stay in the processor's cache."""


class BenchmarkText(NamedTuple):
    """A text to look for; `is_question`: whether it counts as a whole when it is shorter than a gram."""

    benchmark: str
    item: str
    text: str
    is_question: bool = True


@dataclass(frozen=True)
class Match:
    """A gram that a page shares with a benchmark text; `word` is the number of its first word in the page."""

    benchmark: str
    item: str
    gram: str
    word: int
    num_words: int


def gram_hashes(hash_W: np.ndarray, n: int) -> np.ndarray:
    """Σ hash[i + k] · MULTIPLIER^(n − 1 − k) of every run of `n` words; W word hashes give max(0, W − n + 1) values."""
    if n == 1 or len(hash_W) < n:
        return hash_W[: max(0, len(hash_W) - n + 1)]
    half = n // 2
    left = gram_hashes(hash_W, half)
    total = left[: len(left) - half] * _power(half)
    total += left[half:]
    if n % 2:
        total = total[:-1] * _power(1)
        total += hash_W[n - 1 :]
    return total


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(MULTIPLIER, exponent, 2**64))


class Bloom:
    """A set of hashes in 16 to 32 bits each, two of them set."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.shift = np.uint64(64 - max(len(hashes), 2**8).bit_length() - 4)
        bits = np.zeros(2 ** (64 - int(self.shift)), bool)
        for probe in (hashes, _mixed(hashes)):
            bits[(probe >> self.shift).view(np.int64)] = True
        self.table = np.packbits(bits, bitorder="little")

    def places(self, hashes: np.ndarray) -> np.ndarray:
        """Where `hashes` has one of the set, or one of the few others that pass."""
        found = np.flatnonzero(self._has(hashes))
        return found[self._has(_mixed(hashes[found])).view(bool)]

    def _has(self, hashes: np.ndarray) -> np.ndarray:
        bit = (hashes >> self.shift).view(np.int64)
        found = self.table.take(bit >> 3)
        found >>= (bit & 7).astype(np.uint8)
        found &= 1
        return found


def _mixed(hashes: np.ndarray) -> np.ndarray:
    return (hashes ^ (hashes >> np.uint64(32))) * np.uint64(MULTIPLIER)


class Grams:
    """Places of grams in a text of W words, to be found in other texts by their hashes.

    Each gram holds, among its first words, `stride` runs of `probe` words: one of them begins at a multiple of `stride` wherever
    the gram stands, so only the runs that do are looked up in the filter.
    """

    def __init__(self, hash_W: np.ndarray, word_of_length: dict[int, np.ndarray], probe: int, stride: int) -> None:
        """`word_of_length`: gram length → numbers of the first words."""
        self.probe, self.stride = probe, stride
        probe_W = gram_hashes(hash_W, probe)
        is_inside_W = np.zeros(len(probe_W), bool)
        for word_G in word_of_length.values():
            for offset in range(stride):
                is_inside_W[word_G + offset] = True
        self.bloom = Bloom(probe_W[is_inside_W])
        self.tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for length, word_G in word_of_length.items():
            hash_G = _hashes_at(hash_W, length, word_G)
            order = np.argsort(hash_G, kind="stable")
            self.tables[length] = hash_G[order], word_G[order]

    def hits(self, hash_W: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """(length, number of the first word, places with the same hash) of what may be a gram."""
        found = self.bloom.places(gram_hashes(hash_W, self.probe)[:: self.stride]) * self.stride
        word_C = (found[:, None] - np.arange(self.stride)).ravel()
        word_C = word_C[word_C >= 0]
        hash_C = np.zeros(len(word_C), np.uint64)
        for offset in range(max(self.tables, default=0)):
            hash_C = hash_C * np.uint64(MULTIPLIER) + hash_W.take(word_C + offset, mode="clip")
            if offset + 1 in self.tables:
                hash_G, word_G = self.tables[offset + 1]
                first_C = np.searchsorted(hash_G, hash_C)
                hit_H = np.flatnonzero(hash_G.take(first_C, mode="clip") == hash_C)
                last_H = np.searchsorted(hash_G, hash_C[hit_H], "right")
                for word, first, last in zip(word_C[hit_H].tolist(), first_C[hit_H].tolist(), last_H.tolist(), strict=True):
                    yield offset + 1, word, word_G[first:last]


class Index:
    """Grams of benchmark texts: all runs of `n` words, and questions of `shortest` to n − 1 words as a whole."""

    def __init__(self, texts: Sequence[BenchmarkText], n: int, shortest: int, gram: str = "words", min_spelled: int = 0) -> None:
        """`gram`: `words` or `characters`; `min_spelled`: words of two or more letters that a gram must hold to be one."""
        self.sources, self.gram = [(text.benchmark, text.item) for text in texts], gram
        self.words = Words([text.text for text in texts], gram)
        hash_W = self.words.hashes()
        first_T = np.array(self.words.first, np.int64)
        length_T = np.diff(first_T, append=len(hash_W))
        is_question_T = np.array([text.is_question for text in texts], bool)
        left_W = np.repeat(first_T + length_T, length_T) - np.arange(len(hash_W))  # words to the end of the text
        word_of_length = {n: np.flatnonzero(left_W >= n)}
        for length in range(shortest, n):
            word_of_length[length] = first_T[is_question_T & (length_T == length)]
        if min_spelled:
            spelled_W = np.append(0, np.cumsum(self.words.is_spelled()))
            word_of_length = {k: v[spelled_W[v + k] - spelled_W[v] >= min_spelled] for k, v in word_of_length.items()}
        word_of_length = {length: word_G for length, word_G in word_of_length.items() if len(word_G)}
        long = {n: word_of_length.pop(n)} if n in word_of_length else {}
        stride = n // 4 + 1
        self.grams = [Grams(hash_W, long, n + 1 - stride, stride), Grams(hash_W, word_of_length, shortest, 1)]

    def matches(self, texts: Sequence[str]) -> list[list[Match]]:
        """For every page its matches, in the order of the page; of several texts of a benchmark with the same gram the first."""
        found: list[list[Match]] = []
        for batch in _batches(texts):
            in_batch: list[list[Match]] = [[] for _ in batch]
            for text, match in self._confirmed(Words(batch, self.gram)):
                in_batch[text].append(match)
            found += [sorted(matches, key=lambda match: (match.word, match.num_words)) for matches in in_batch]
        return found

    def _confirmed(self, page: Words) -> Iterator[tuple[int, Match]]:
        """(page, match) of every gram that stands in one page and, word for word, in a benchmark."""
        hash_W = page.hashes()
        for length, word, places in itertools.chain.from_iterable(grams.hits(hash_W) for grams in self.grams):
            number = page.text_of(word)
            if word + length > len(page) or page.text_of(word + length - 1) != number:
                continue
            run, seen = page.run(word, length), set()
            for place in places.tolist():
                benchmark, item = self.sources[self.words.text_of(place)]
                if benchmark not in seen and self.words.run(place, length) == run:
                    seen.add(benchmark)
                    yield number, Match(benchmark, item, " ".join(run), word - page.first[number], length)


def _hashes_at(hash_W: np.ndarray, length: int, word_G: np.ndarray) -> np.ndarray:
    """`gram_hashes` of the runs that begin at `word_G` only."""
    total = np.zeros(len(word_G), np.uint64)
    for offset in range(length):
        total = total * np.uint64(MULTIPLIER) + hash_W[word_G + offset]
    return total


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive texts of about BATCH_CHARS characters together."""
    first = num_chars = 0
    for number, text in enumerate(texts):
        num_chars += len(text)
        if num_chars >= BATCH_CHARS or number == len(texts) - 1:
            yield texts[first : number + 1]
            first, num_chars = number + 1, 0
