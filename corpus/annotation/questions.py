"""The questions of a round: the tree of URL prefixes on math-related hosts, with what people need to decide on each.

A host is a root. A prefix is shown where it has at least `min_pages` pages (fewer are left to their parent) and fewer than the one
above it: of a chain of folders with the same pages only the deepest is asked about, or the host. Memory goes with the
prefixes, not the pages.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus import urls
from mathpipe.corpus.annotate import MAX_DEPTH
from mathpipe.corpus.annotation.records import Question, Sample
from mathpipe.corpus.domains import MICRO
from mathpipe.corpus.examples import is_member, random_keys
from mathpipe.corpus.round_config import AnnotateConfig, DomainsInputs
from mathpipe.corpus.selection import scored_pages

TRIM_PAGES = 100
"""After so many pages a prefix's samples are cut back."""


@dataclass(slots=True)
class Count:
    """Pages under a prefix."""

    num_pages: int = 0
    num_collected: int = 0
    score_sum: int = 0
    """In millionths, whose sum is the same in any order."""
    num_tokens: int = 0
    """Of uncollected pages."""
    samples: tuple[list[tuple[int, Sample]], list[tuple[int, Sample]]] = field(default_factory=lambda: ([], []))
    """(random key, page) of some pages, uncollected and collected, smallest keys first."""

    def add(self, other: Count) -> None:
        """Add the pages of a prefix below."""
        self.num_pages += other.num_pages
        self.num_collected += other.num_collected
        self.score_sum += other.score_sum
        self.num_tokens += other.num_tokens
        for mine, theirs in zip(self.samples, other.samples, strict=True):
            mine += theirs

    def trim(self, num_samples: int) -> None:
        """Keep the samples with the smallest keys, of either kind."""
        for samples in self.samples:
            samples[:] = heapq.nsmallest(num_samples, samples)

    def mixed_samples(self, num: int) -> tuple[Sample, ...]:
        """`num` pages, half of them collected, more of one kind where the other has too few; collected ones first."""
        uncollected, collected = self.samples
        num_collected = min(len(collected), max(num - num // 2, num - len(uncollected)))
        return tuple(page for _, page in collected[:num_collected] + uncollected[: num - num_collected])


def questions(pages: Path, scores: Path, selected: Path, domains: Path, config: AnnotateConfig, num_samples: int) -> list[Question]:
    """The questions on the hosts of math-related domains, parents before children; of each so many pages, half of them collected."""
    hosts = pq.read_table(domains / "math_hosts.parquet")["host"].combine_chunks()
    counts = count_folders(pages, scores, selected, hosts, num_samples)
    add_up(counts, num_samples)
    shown = set(chosen_prefixes(counts, config.min_pages))
    return [_question(prefix, counts[prefix], shown, config, num_samples) for prefix in sorted(shown)]


def count_folders(pages: Path, scores: Path, selected: Path, hosts: pa.Array, num_samples: int) -> dict[str, Count]:
    """Prefix → the pages that have it as their deepest."""
    counts: dict[str, Count] = {}
    for name, table in scored_pages(DomainsInputs(pages, scores, selected), ["url", "host", "num_tokens"]):
        collected = pq.read_table(selected / "data" / name, columns=["id"])["id"].to_numpy()
        table = table.filter(pc.is_in(table["host"], hosts))
        id_N = table["id"].to_numpy()
        score_N = np.rint(table["score"].to_numpy().astype(np.float64) * MICRO).astype(np.int64)
        columns = (is_member(id_N, collected), score_N, table["num_tokens"].to_numpy(), random_keys(id_N), id_N)
        for url, is_collected, score, num_tokens, key, page in zip(table["url"].to_pylist(), *(c.tolist() for c in columns), strict=True):
            count = counts.setdefault(urls.prefixes(url, MAX_DEPTH)[-1], Count())
            count.num_pages += 1
            count.num_collected += is_collected
            count.score_sum += score
            count.num_tokens += 0 if is_collected else num_tokens
            count.samples[is_collected].append((key, Sample(page, score / MICRO, is_collected)))
            if count.num_pages % TRIM_PAGES == 0:
                count.trim(num_samples)
    return counts


def parent_of(prefix: str) -> str:
    """The prefix one folder up, empty for a host.

    >>> [parent_of(prefix) for prefix in ("a.org/x/y/", "a.org/x/", "a.org/")]
    ['a.org/x/', 'a.org/', '']
    """
    above = prefix[:-1].rpartition("/")[0]
    return f"{above}/" if above else ""


def add_up(counts: dict[str, Count], num_samples: int) -> None:
    """Add the pages of every prefix to all above it, deepest first."""
    by_depth: dict[int, list[str]] = {}
    for prefix in counts:
        by_depth.setdefault(prefix.count("/"), []).append(prefix)
    for depth in range(MAX_DEPTH + 1, 0, -1):
        for prefix in by_depth.get(depth, []):
            parent = parent_of(prefix)
            if parent not in counts and parent:
                counts[parent] = Count()
                by_depth.setdefault(depth - 1, []).append(parent)
            counts[prefix].trim(num_samples)
            if parent:
                counts[parent].add(counts[prefix])


def chosen_prefixes(counts: dict[str, Count], min_pages: int) -> Iterator[str]:
    """The prefixes that are shown: hosts, and folders that are large enough and not repeated by one below (or by their host)."""
    largest_below: dict[str, int] = {}
    for prefix, count in counts.items():
        parent = parent_of(prefix)
        largest_below[parent] = max(largest_below.get(parent, 0), count.num_pages)
    for prefix, count in counts.items():
        host = prefix[: prefix.index("/") + 1]
        is_large = count.num_pages >= min_pages and largest_below.get(prefix, 0) < count.num_pages < counts[host].num_pages
        if prefix == host or is_large:
            yield prefix


def _question(prefix: str, count: Count, shown: set[str], config: AnnotateConfig, num_samples: int) -> Question:
    parent = parent_of(prefix)
    while parent and parent not in shown:
        parent = parent_of(parent)
    frac = count.num_collected / count.num_pages
    suggestion = "math" if frac >= config.accept_frac else "not_math" if frac <= config.reject_frac else ""
    return Question(
        prefix, parent, count.num_pages, count.num_collected, count.score_sum / MICRO / count.num_pages, count.num_tokens,
        count.mixed_samples(num_samples), suggestion,
    )  # fmt: skip
