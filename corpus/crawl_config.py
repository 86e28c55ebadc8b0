"""Config of the crawl stage: where pages come from."""

from __future__ import annotations

import glob
import importlib.metadata
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mathpipe.pipeline.config import Runtime

STANDARD_LIBRARY = "python"
"""Name in `crawl.packages` of the standard library."""


@dataclass(frozen=True)
class NoInputs:
    """A stage at the head of the chain."""


@dataclass(frozen=True)
class CrawlConfig:
    """Where pages come from."""

    SECTION: ClassVar[str] = "crawl"
    VERSION: ClassVar[int] = 1

    source: str = "docs"
    """`docs`: documentation of installed packages, rendered page by page; `warc`: local WARC files."""
    packages: tuple[str, ...] = (
        "sympy", "networkx", "scipy", "numpy", "mpmath",
        "torch", "transformers", "pandas", "matplotlib", "huggingface_hub", "datasets", "openai",
        "setuptools", "tornado", "docutils", "luigi", "fsspec", "pydantic", "rich", STANDARD_LIBRARY,
    )  # fmt: skip
    """docs: import names of the packages, one host each; `python` is the standard library."""
    math_packages: tuple[str, ...] = ("sympy", "networkx", "scipy", "numpy", "mpmath")
    """docs: packages whose pages carry the truth label `math`; used for metrics only."""
    min_docstring_chars: int = 300
    """docs: shorter docstrings make no page."""
    max_docstring_chars: int = 20_000
    """docs: longer ones are cut at a paragraph."""
    max_pages_per_package: int = 700
    """docs: source files are taken in a hashed order until the package has this many pages."""
    pages_per_shard: int = 1_000
    """docs: distinct pages in one WARC file."""
    num_url_duplicates: int = 200
    """docs: pages that are planted again under another spelling of their URL."""
    paths: tuple[str, ...] = ()
    """warc: files and globs, relative to the current directory."""
    labels: str = ""
    """warc: optional TSV with the columns `url` and `label` (math or other); used for metrics only."""
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        if self.source not in ("docs", "warc"):
            raise ValueError(f"source must be 'docs' or 'warc', found {self.source!r}")
        if self.source == "warc" and not self.paths:
            raise ValueError("source 'warc' needs paths, for example paths = [\"archive/*.warc.gz\"]")
        unknown = set(self.math_packages) - set(self.packages)
        if self.source == "docs" and unknown:
            raise ValueError(f"math_packages names {', '.join(sorted(unknown))}, which packages does not")
        for name in ("min_docstring_chars", "max_pages_per_package", "pages_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")

    def fingerprint(self) -> dict[str, Any]:
        """docs: versions of Python and the packages; warc: names, sizes and times of the files."""
        if self.source == "docs":
            return {"python": platform.python_version(), **{name: package_version(name) for name in self.packages}}
        files = [*self.warc_files(), *([Path(self.labels)] if self.labels else [])]
        return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()}

    def describe(self) -> str:
        """For `mathpipe plan`."""
        if self.source == "docs":
            return f"{len(self.packages)} packages, at most {self.max_pages_per_package:,} pages each"
        sizes = [file.stat().st_size for file in self.warc_files() if file.is_file()]
        return f"{len(sizes):,} WARC files, {sum(sizes) / 1e9:,.1f} GB"

    def require(self, runtime: Runtime) -> None:
        """Refuse to start without the archives."""
        absent = [file for file in self.warc_files() if not file.is_file()]
        if absent:
            raise ValueError(f"no WARC file at {absent[0]}; put archives there or set crawl.paths")

    def warc_files(self) -> list[Path]:
        """The files that `paths` names, in name order within each glob; a name that matches nothing stays as it is."""
        found = [Path(name) for pattern in self.paths for name in sorted(glob.glob(pattern)) or [pattern]]  # noqa: PTH207 (absolute too)
        return list(dict.fromkeys(found))


def package_version(name: str) -> str | None:
    """Version of an installed package; None where there is no distribution of that name."""
    if name == STANDARD_LIBRARY:
        return platform.python_version()
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
