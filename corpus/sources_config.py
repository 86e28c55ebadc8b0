"""Config of the sources stage: text that is trained on beside the math corpus (torch-free)."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mathpipe.corpus.crawl_config import package_version
from mathpipe.pipeline.config import Runtime

NEEDS = {"files": "paths", "dataset": "name", "python": "packages", "latex": "packages", "pages": ""}
"""Kind of source → the key that it cannot do without."""


@dataclass(frozen=True)
class TextSource:
    """One source of text."""

    kind: str
    """`files`: parquet or JSONL; `dataset`: of the hub, streamed; `python`: source files of installed packages; `latex`: their
    documentation with formulas, as LaTeX (stands in for arXiv offline); `pages`: pages of our crawl that the last round left."""
    paths: tuple[str, ...] = ()
    """files: paths and globs, or addresses that datasets opens (`hf://datasets/owner/name/*.parquet`); .gz and .zst too."""
    name: str = ""
    """dataset: as the hub calls it, or a local folder."""
    subset: str = ""
    """dataset: its configuration; empty where it has one only."""
    split: str = "train"
    """dataset: which part of it."""
    column: str = "text"
    """files, dataset: the column with the text; `url` is taken where rows have it."""
    packages: tuple[str, ...] = ()
    """python, latex: import names of installed packages; `python` is the standard library."""
    max_tokens: int = 0
    """Stop after this many, at 4 bytes a token; 0 takes all."""

    def __post_init__(self) -> None:
        if self.kind not in NEEDS:
            raise ValueError(f"kind must be one of {', '.join(NEEDS)}, found {self.kind!r}")
        needed = NEEDS[self.kind]
        if needed and not getattr(self, needed):
            raise ValueError(f"kind {self.kind!r} needs {needed}")
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens must not be negative, found {self.max_tokens}")

    def local_files(self) -> list[Path]:
        """What `paths` names on this machine, in name order within each glob; a name that matches nothing stays as it is."""
        local = [pattern for pattern in self.paths if "://" not in pattern]
        return [Path(name) for pattern in local for name in sorted(glob.glob(pattern)) or [pattern]]  # noqa: PTH207 (absolute too)


def offline_sources() -> dict[str, TextSource]:
    """What every machine has. Code is that of packages whose documentation is not in the crawl."""
    code = ("sqlalchemy", "deepspeed", "daft", "starlette", "jinja2", "urllib3", "requests", "uvicorn", "psutil")
    return {
        "arxiv": TextSource("latex", packages=("scipy", "torch", "numpy", "networkx"), max_tokens=200_000),
        "code": TextSource("python", packages=code, max_tokens=300_000),
        "general": TextSource("pages", max_tokens=300_000),
    }


@dataclass(frozen=True)
class SourcesConfig:
    """Code, arXiv, general text: what stands beside the math corpus in the paper's mixture (section 2.3)."""

    SECTION: ClassVar[str] = "sources"
    VERSION: ClassVar[int] = 1

    sources: dict[str, TextSource] = field(default_factory=offline_sources)
    """Name, as in `pretrain.phases`, → where its text comes from."""
    min_chars: int = 200
    """Shorter documents are rejected."""
    max_chars: int = 1_000_000
    """Longer documents are rejected."""
    seed: int = 0
    """Order in which files and data sets are read."""
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        for name in self.sources:
            if not re.fullmatch("[a-z][a-z0-9_]*", name) or name == "math":
                raise ValueError(f"a source is named in lower-case letters, digits and _, and not math (the corpus); found {name!r}")
        if not self.sources:
            raise ValueError("sources is empty; name one, for example sources.code = { kind = 'python', packages = ['requests'] }")
        if not 1 <= self.min_chars <= self.max_chars:
            raise ValueError(f"need 1 <= min_chars <= max_chars, found {self.min_chars} and {self.max_chars}")

    def fingerprint(self) -> Mapping[str, Any]:
        """Versions of packages, sizes and times of local files; what the hub holds is taken as it is."""
        packages = {name for source in self.sources.values() for name in source.packages}
        files = [file for source in self.sources.values() for file in source.local_files() if file.is_file()]
        versions = {name: package_version(name) for name in sorted(packages)}
        return versions | {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}

    def describe(self) -> str:
        """For `mathpipe plan`."""
        parts = [
            f"{name} ({source.kind}{f', at most {source.max_tokens:,} tokens' if source.max_tokens else ''})"
            for name, source in self.sources.items()
        ]
        return ", ".join(parts)

    def require(self, runtime: Runtime) -> None:
        """Refuse to start without the files."""
        for name, source in self.sources.items():
            for file in source.local_files():
                if not file.is_file():
                    raise ValueError(f"no file at {file}; put it there or set sources.sources.{name}.paths")


@dataclass(frozen=True)
class SourcesInputs:
    """The crawl's pages, and which of them the last round selected."""

    pages: Path
    selected: Path
