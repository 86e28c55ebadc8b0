"""Configs and inputs of the stages around the rounds: pages before them, decontamination after them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from mathpipe.pipeline.config import Runtime


@dataclass(frozen=True)
class PagesConfig:
    """WARC records to deduplicated text."""

    SECTION: ClassVar[str] = "pages"
    VERSION: ClassVar[int] = 1

    min_chars: int = 200
    """Pages with less text are rejected; not stated; we chose."""
    num_hashes: int = 125
    """MinHash: hash functions per page (near-dedup method: not stated; we chose)."""
    num_bands: int = 25
    """MinHash: bands; pages that share all hashes of one band are compared."""
    ngram_words: int = 5
    """MinHash: words per shingle."""
    min_similarity: float = 0.7
    """Jaccard similarity, estimated from the hashes, from which a page counts as a near-duplicate of an earlier one."""
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        if self.num_hashes % self.num_bands:
            raise ValueError(f"num_hashes ({self.num_hashes}) must be a multiple of num_bands ({self.num_bands})")
        if not 0 < self.min_similarity <= 1:
            raise ValueError(f"min_similarity must be in (0, 1], found {self.min_similarity}")

    def require(self, runtime: Runtime) -> None:
        """Refuse a cluster."""
        runtime.require_one_node()


@dataclass(frozen=True)
class PagesInputs:
    """What the pages stage reads."""

    crawl: Path


@dataclass(frozen=True)
class CorpusConfig:
    """Decontamination (section 2.1)."""

    SECTION: ClassVar[str] = "corpus"
    VERSION: ClassVar[int] = 1

    ngram_words: int = 10
    """A page that shares a gram of this many words with a benchmark text is removed."""
    min_ngram_words: int = 3
    """Benchmark texts shorter than `ngram_words` but at least this long must stand in the page as a whole."""
    unit: str = "page"
    """What is removed; not stated (segment or page); we chose the page."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_ngram_words <= self.ngram_words:
            raise ValueError(f"need 1 <= min_ngram_words <= ngram_words, found {self.min_ngram_words} and {self.ngram_words}")
        if self.unit != "page":
            raise ValueError(f"unit must be 'page', found {self.unit!r}")


@dataclass(frozen=True)
class CorpusInputs:
    """What decontamination reads."""

    pages: Path
    selected: Path
    benchmarks: Path
