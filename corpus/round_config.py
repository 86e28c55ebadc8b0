"""Configs and inputs of the six steps of a round."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mathpipe.pipeline.config import Runtime, memory_bytes

MIN_MODEL_BYTES = 32 * 2**20
"""fastText with one thread initialises a tenth of its matrix and leaves the rest as allocated (mathpipe.corpus.fit). From 32 MiB
on (malloc's largest mmap threshold) that is fresh, zeroed memory in a new process; below it may meet old values."""


NEGATIVES = ("random", "uncollected", "outside_domains")
TEXT_FORMS = ("punctuation", "words")
DOMAINS = ("host", "registered_domain")
ANNOTATORS = ("policy", "file", "human")


@dataclass(frozen=True)
class ClassifierConfig:
    """fastText classifier; the hyper-parameters are section 2.1's."""

    SECTION: ClassVar[str] = "classifier"
    VERSION: ClassVar[int] = 2

    seed_path: str = ""
    """Round 1's positives: parquet or JSONL files (plain, .gz, .zst, .bz2), one or a glob, local or any fsspec address."""
    seed_dataset: str = ""
    """Or a data set of the hub, or a folder of one, as NAME or NAME:SUBSET: its split `train` is streamed."""
    seed_column: str = "text"
    """Column of `seed_path` or `seed_dataset` that holds the text; hosts are taken from a column `url` where there is one."""
    seed_hosts: tuple[str, ...] = ("docs.sympy.example", "docs.networkx.example")
    """Round 1's positives without these: random pages of these hosts."""
    num_seeds: int = 500_000
    """Positives of round 1 (section 2.1)."""
    negatives: str = "random"
    """`random`: any crawl page but the seeds (section 2.1). For small crawls in which mathematics is no rarity: `uncollected`:
    nor what the round before collected; `outside_domains`: nor on a host of a domain that the round before called math-related."""
    negatives_per_positive: float = 1.0
    """Random crawl pages per positive (section 2.1: 500,000 each)."""
    max_positives_per_host: int = 0
    """At most so many positives of one host of the crawl are learnt from, so that no site is the class; 0: no limit."""
    max_negatives_per_host: int = 0
    """The same for negatives."""
    text: str = "punctuation"
    """What the classifier sees of a page: `punctuation`: lower case, punctuation apart; `words`: letters and LaTeX commands only."""
    dim: int = 256
    """Section 2.1."""
    lr: float = 0.1
    """Section 2.1."""
    word_ngrams: int = 3
    """Section 2.1."""
    min_count: int = 3
    """Section 2.1."""
    epoch: int = 3
    """Section 2.1."""
    bucket: int = 2_000_000
    """Hash buckets of the word n-grams; not stated; fastText's default. The model takes bucket × dim × 4 bytes."""
    max_words: int = 1_000
    """Words of a page that the classifier reads; not stated; we chose."""
    held_out_frac: float = 0.1
    """Share of the examples kept from training for the F1 in the manifest; not stated; we chose."""
    held_out_hosts_frac: float = 0.1
    """Share of the hosts that a second classifier is trained without, for the out-of-domain F1; 0: none; not stated; we chose."""
    seed: int = 0
    """Draws seeds, negatives and what is held out."""

    def __post_init__(self) -> None:
        for name, known in (("negatives", NEGATIVES), ("text", TEXT_FORMS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; found {getattr(self, name)!r}")
        if self.seed_path and self.seed_dataset:
            raise ValueError("give seed_path or seed_dataset, not both")
        if not self.seed_path and not self.seed_dataset and not self.seed_hosts:
            raise ValueError("give seed_path, seed_dataset or seed_hosts")
        for name in ("held_out_frac", "held_out_hosts_frac"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), found {getattr(self, name)}")
        for name in ("max_positives_per_host", "max_negatives_per_host"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, found {getattr(self, name)}")
        if self.word_ngrams < 2:
            raise ValueError(f"word_ngrams must be at least 2, found {self.word_ngrams}: with 1 fastText makes no buckets")
        if self.bucket * self.dim * 4 < MIN_MODEL_BYTES:
            raise ValueError(f"bucket × dim × 4 = {self.bucket * self.dim * 4} bytes, need at least {MIN_MODEL_BYTES}: raise bucket")

    def describe(self) -> str:
        """For `mathpipe plan`."""
        negatives = int(self.num_seeds * self.negatives_per_positive)
        return f"at most {self.num_seeds:,} seeds and {negatives:,} negatives, model {self.bucket * self.dim * 4 / 1e9:.2g} GB"

    def require(self, runtime: Runtime) -> None:
        """Refuse to start without the seed files, or without memory for the model."""
        if self.seed_path and "://" not in self.seed_path and not self._files():
            wanted = "put parquet or JSONL with a text column there, or set classifier.seed_path or classifier.seed_dataset"
            raise ValueError(f"no seed pages at {self.seed_path}; {wanted}")
        needed = self.bucket * self.dim * 4
        if needed > memory_bytes():
            raise ValueError(f"needs {needed / 1e9:.0f} GB of memory for bucket × dim, found {memory_bytes() / 1e9:.0f} GB")

    def fingerprint(self) -> list[Any] | None:
        """Size and time of the local files of `seed_path`."""
        return [[file.stat().st_size, file.stat().st_mtime_ns] for file in self._files()] or None

    def _files(self) -> list[Path]:
        return [Path(file) for file in sorted(glob.glob(self.seed_path))]  # noqa: PTH207 (absolute too)


@dataclass(frozen=True)
class ClassifierInputs:
    """What `train` reads."""

    pages: Path
    previous: Path | None = None


@dataclass(frozen=True)
class ScoreConfig:
    """P(math) of every page."""

    SECTION: ClassVar[str] = "score"
    VERSION: ClassVar[int] = 1

    runtime: Runtime = field(default_factory=Runtime)


@dataclass(frozen=True)
class ScoreInputs:
    """What `score` reads."""

    pages: Path
    classifier: Path


@dataclass(frozen=True)
class SelectConfig:
    """Which pages are collected."""

    SECTION: ClassVar[str] = "select"
    VERSION: ClassVar[int] = 2

    top_tokens: tuple[int, ...] = (40_000_000_000, 89_000_000_000, 118_000_000_000, 120_000_000_000)
    """Most tokens collected, by round; the last value stands for all later rounds (rounds 1, 2, 4: sections 2.1 and 5.1;
    round 3: not stated; we chose 98 % of round 4)."""
    min_score: float = 0.0
    """Pages below this P(math) are never collected; not stated; we chose."""

    def __post_init__(self) -> None:
        if not self.top_tokens or min(self.top_tokens) < 1:
            raise ValueError(f"top_tokens must be a list of positive token counts, found {self.top_tokens}")

    def describe(self) -> str:
        """For `mathpipe plan`."""
        return f"at most {' / '.join(f'{count:,}' for count in self.top_tokens)} tokens by round"


@dataclass(frozen=True)
class SelectInputs:
    """What `select` reads; `previous` is the selection of the round before."""

    pages: Path
    scores: Path
    previous: Path | None = None


@dataclass(frozen=True)
class VolumeInputs:
    """What `volume` reads."""

    pages: Path
    scores: Path
    smaller: Path


@dataclass(frozen=True)
class DomainsConfig:
    """Which domains are math-related."""

    SECTION: ClassVar[str] = "domains"
    VERSION: ClassVar[int] = 2

    by: str = "host"
    """What a domain is ("the same base URL", section 2.1): a `host`, or a `registered_domain` with all its hosts, by the public
    suffix list."""
    min_collected_frac: float = 0.1
    """A domain is math-related when *more* than this share of its pages was collected (section 2.1)."""
    num_examples: int = 3
    """Collected URLs that the table shows of a domain, best score first."""

    def __post_init__(self) -> None:
        if self.by not in DOMAINS:
            raise ValueError(f"by must be one of {', '.join(DOMAINS)}; found {self.by!r}")
        if not 0 <= self.min_collected_frac < 1:
            raise ValueError(f"min_collected_frac must be in [0, 1), found {self.min_collected_frac}")


@dataclass(frozen=True)
class DomainsInputs:
    """What `domains` reads; `previous` are the domains of the round before."""

    pages: Path
    scores: Path
    selected: Path
    previous: Path | None = None


@dataclass(frozen=True)
class AnnotateConfig:
    """Which URL prefixes inside the math-related hosts hold mathematics."""

    SECTION: ClassVar[str] = "annotate"
    VERSION: ClassVar[int] = 2

    source: str = "policy"
    """Who decides. `human`: people, as in section 2.1, on the page of `mathpipe annotate`; `file`: decisions made elsewhere;
    `policy`: automatic, by the share of collected pages."""
    file: str = ""
    """file: JSONL with prefix, decision (math, not_math), reason, who."""
    accept_frac: float = 0.5
    """policy, also where it only suggests: a prefix is math from this share of collected pages on; not stated; we chose."""
    reject_frac: float = 0.1
    """The same: a prefix is not math up to this share; between the two its sub-prefixes are judged."""
    min_pages: int = 5
    """policy, human: smaller prefixes are judged with their parent."""
    overlap_frac: float = 0.0
    """human: share of the hosts on which two people decide, neither of whom sees the other's verdict."""
    max_decisions: int = 0
    """human: budget of decisions by round, after which the round goes on with what was decided; 0: no limit."""
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        if self.source not in ANNOTATORS:
            raise ValueError(f"source must be one of {', '.join(ANNOTATORS)}; found {self.source!r}")
        if self.source == "file" and not self.file:
            raise ValueError("source 'file' needs file, a JSONL of decisions")
        if not 0 <= self.reject_frac <= self.accept_frac <= 1:
            raise ValueError(f"need 0 <= reject_frac <= accept_frac <= 1, found {self.reject_frac} and {self.accept_frac}")
        if not 0 <= self.overlap_frac <= 1:
            raise ValueError(f"overlap_frac must be in [0, 1], found {self.overlap_frac}")
        for name, least in (("min_pages", 1), ("max_decisions", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")

    def database(self, root: Path) -> str:
        """Where the decisions of the profile with that folder lie: a file, or the URL of a database."""
        return self.runtime.database or str(root / "annotations.sqlite")

    def describe(self) -> str:
        """For `mathpipe plan`."""
        from_people = "people decide on the page of `mathpipe annotate`"
        return {"policy": "automatic policy", "human": from_people}.get(self.source, f"decisions from {self.file}")

    def fingerprint(self) -> list[Any] | None:
        """Size and time of the decisions file."""
        file = Path(self.file)
        return [file.stat().st_size, file.stat().st_mtime_ns] if self.source == "file" and file.is_file() else None


@dataclass(frozen=True)
class AnnotateInputs:
    """What `annotate` reads; `previous` are the decisions of the round before."""

    pages: Path
    selected: Path
    domains: Path
    scores: Path
    previous: Path | None = None


@dataclass(frozen=True)
class GrowConfig:
    """How the seeds of the next round grow."""

    SECTION: ClassVar[str] = "grow"
    VERSION: ClassVar[int] = 2

    max_new_seeds: int = 0
    """At most this many new seeds per round, drawn at random; 0: all (section 2.1)."""
    hyperlinks: bool = False
    """Whether targets of the hyperlinks on pages under annotated prefixes are new seeds too; needs pages.keep_links."""
    stop_at_overlap: float = 1.0
    """From this overlap with the round before on (section 2.1: nearly 98 %) later rounds pass the result on; 1: they never do."""
    seed: int = 0
    """Draws the new seeds when there are more."""

    def __post_init__(self) -> None:
        if not 0 < self.stop_at_overlap <= 1:
            raise ValueError(f"stop_at_overlap must be in (0, 1], found {self.stop_at_overlap}")
        if self.max_new_seeds < 0:
            raise ValueError(f"max_new_seeds must be at least 0, found {self.max_new_seeds}")


@dataclass(frozen=True)
class GrowInputs:
    """What `grow` reads."""

    pages: Path
    classifier: Path
    selected: Path
    domains: Path
    annotations: Path
    previous: Path | None = None
