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
    VERSION: ClassVar[int] = 2

    min_chars: int = 200
    """Pages with less text are rejected; not stated; we chose."""
    max_record_bytes: int = 33_554_432
    """Larger records are rejected, so that memory is bounded by one record of this size."""
    keep_links: bool = False
    """Whether hyperlinks between pages of the crawl are written to `links/`, for `grow.hyperlinks`."""
    num_hashes: int = 112
    """MinHash: hash functions per page (near-dedup method: not stated; we chose)."""
    num_bands: int = 28
    """MinHash: bands; pages that share all hashes of one band are compared."""
    ngram_words: int = 3
    """MinHash: words per shingle; with 5 a sentence added to a short page already makes it another."""
    min_similarity: float = 0.65
    """Jaccard similarity, estimated from the hashes, from which a page counts as a near-duplicate of an earlier one."""
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        if self.num_hashes % self.num_bands:
            raise ValueError(f"num_hashes ({self.num_hashes}) must be a multiple of num_bands ({self.num_bands})")
        if self.max_record_bytes < 1:
            raise ValueError(f"max_record_bytes must be at least 1, found {self.max_record_bytes}")
        if not 0 < self.min_similarity <= 1:
            raise ValueError(f"min_similarity must be in (0, 1], found {self.min_similarity}")


@dataclass(frozen=True)
class PagesInputs:
    """What the pages stage reads."""

    crawl: Path


@dataclass(frozen=True)
class GramsConfig:
    """What counts as text shared with a benchmark (section 2.1)."""

    ngram_words: int = 10
    """A page that shares a gram of this many words with a benchmark text is removed."""
    min_ngram_words: int = 3
    """Benchmark questions shorter than `ngram_words` but at least this long must stand in the page as a whole."""
    gram: str = "words"
    """What grams are made of: `words` (a Chinese or Japanese character is one), or `characters` (then ask for about 50)."""
    min_spelled_words: int = 0
    """Words of two or more letters without which a gram does not count: 1 lets "1 2 3 … 10" pass, which a MATH problem has."""
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        if not 1 <= self.min_ngram_words <= self.ngram_words:
            raise ValueError(f"need 1 <= min_ngram_words <= ngram_words, found {self.min_ngram_words} and {self.ngram_words}")
        if not 0 <= self.min_spelled_words <= self.ngram_words:
            raise ValueError(f"need 0 <= min_spelled_words <= ngram_words, found {self.min_spelled_words}")
        if self.gram not in ("words", "characters"):
            raise ValueError(f"gram must be 'words' or 'characters', found {self.gram!r}")


@dataclass(frozen=True)
class CorpusConfig(GramsConfig):
    """Decontamination (section 2.1)."""

    SECTION: ClassVar[str] = "corpus"
    VERSION: ClassVar[int] = 2

    unit: str = "page"
    """What is removed: the `page`, or each `segment` (paragraph between blank lines) that holds words of the gram."""
    train_splits: bool = True
    """Whether the training splits of benchmarks are benchmark texts too; false where they may be learnt from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in ("page", "segment"):
            raise ValueError(f"unit must be 'page' or 'segment', found {self.unit!r}")


@dataclass(frozen=True)
class CleanExamplesConfig(CorpusConfig):
    """The same for the examples of SFT, which may be taken from training splits."""

    SECTION: ClassVar[str] = "clean_examples"

    train_splits: bool = False
    """As above; the training problems of GSM8K and MATH are what SFT learns from (section 3.1)."""


@dataclass(frozen=True)
class ContaminationConfig(GramsConfig):
    """Should be what decontamination removes."""

    SECTION: ClassVar[str] = "contamination"
    VERSION: ClassVar[int] = 1


@dataclass(frozen=True)
class ContaminationInputs:
    """Benchmarks and what models are trained on."""

    benchmarks: Path
    corpus: Path
    sources: Path
    examples: Path

    def trained_on(self) -> dict[str, Path]:
        """Name → artifact."""
        return {"corpus": self.corpus, "sources": self.sources, "examples": self.examples}


@dataclass(frozen=True)
class CorpusInputs:
    """What decontamination reads: any artifact with the columns of pages (but score), all of it without `selected`."""

    pages: Path
    benchmarks: Path
    selected: Path | None = None
