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
    VERSION: ClassVar[int] = 2

    source: str = "docs"
    """`docs`: documentation of installed packages, rendered page by page; `warc`: WARC files that exist; `commoncrawl`: fetched."""
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
    """warc: files and globs, relative to the current directory or as fsspec URLs (`s3://…`, `https://…`)."""
    labels: str = ""
    """warc: optional TSV with the columns `url` and `label` (math or other); used for metrics only."""
    snapshots: tuple[str, ...] = ()
    """commoncrawl: crawl ids, for example `CC-MAIN-2024-10`."""
    index: str = "none"
    """commoncrawl: `none` fetches whole WARC files; `columnar` and `cdx` look up single records and fetch those."""
    num_files: int = 0
    """commoncrawl, whole files: how many of all snapshots' files; 0 takes all."""
    draw: str = "even"
    """commoncrawl, whole files: `even` spreads them over the listing, `first` takes its beginning."""
    read_from: str = ""
    """commoncrawl, whole files: an fsspec address (`s3://commoncrawl/`) from which `pages` reads them, instead of copies."""
    hosts: tuple[str, ...] = ()
    """commoncrawl, single records: pages of these hosts."""
    domains: tuple[str, ...] = ()
    """commoncrawl, single records: pages of these domains and all hosts below them."""
    url_prefixes: tuple[str, ...] = ()
    """commoncrawl, single records: pages whose URL begins so (`mathoverflow.net/questions`; scheme and `www.` do not count)."""
    mime_types: tuple[str, ...] = ("text/html", "application/xhtml+xml")
    """commoncrawl, single records: detected types that are fetched; empty takes all."""
    coalesce_gap_bytes: int = 65_536
    """commoncrawl, single records: records of a file that lie closer together are fetched with one request."""
    shard_bytes: int = 268_435_456
    """commoncrawl, single records: a WARC file of the artifact holds records up to this size together."""
    base_url: str = "https://data.commoncrawl.org/"
    """commoncrawl: where listings, WARC files and the columnar index lie."""
    index_url: str = "https://index.commoncrawl.org/"
    """commoncrawl: the CDX server."""
    max_tries: int = 12
    """commoncrawl: tries in a row without a new byte before the stage gives up."""
    runtime: Runtime = field(default_factory=Runtime)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("source", ("docs", "warc", "commoncrawl")), ("index", ("none", "columnar", "cdx")), ("draw", ("even", "first")),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, found {getattr(self, name)!r}")
        if self.source == "warc" and not self.paths:
            raise ValueError("source 'warc' needs paths, for example paths = [\"archive/*.warc.gz\"]")
        unknown = set(self.math_packages) - set(self.packages)
        if self.source == "docs" and unknown:
            raise ValueError(f"math_packages names {', '.join(sorted(unknown))}, which packages does not")
        if self.source == "commoncrawl":
            self._check_commoncrawl()
        for name in ("min_docstring_chars", "max_pages_per_package", "pages_per_shard", "shard_bytes", "max_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")

    def _check_commoncrawl(self) -> None:
        if not self.snapshots:
            raise ValueError("source 'commoncrawl' needs snapshots, for example snapshots = [\"CC-MAIN-2024-10\"]")
        if self.index != "none" and not self.hosts + self.domains + self.url_prefixes:
            raise ValueError(f"index {self.index!r} needs hosts, domains or url_prefixes; index 'none' fetches whole files")
        if self.read_from and (self.index != "none" or "://" not in self.read_from or not self.read_from.endswith("/")):
            raise ValueError(f"read_from goes with index 'none' and must be an address that ends in '/', found {self.read_from!r}")
        if self.num_files < 0 or self.coalesce_gap_bytes < 0:
            raise ValueError(f"num_files ({self.num_files}) and coalesce_gap_bytes ({self.coalesce_gap_bytes}) must not be negative")
        for name in ("base_url", "index_url"):
            if not getattr(self, name).startswith(("http://", "https://")) or not getattr(self, name).endswith("/"):
                raise ValueError(f"{name} must be an http(s) URL that ends in '/', found {getattr(self, name)!r}")

    def fingerprint(self) -> dict[str, Any]:
        """docs: versions of Python and the packages; warc: names, sizes and times of local files; what lies elsewhere is immutable."""
        if self.source == "docs":
            return {"python": platform.python_version(), **{name: package_version(name) for name in self.packages}}
        if self.source == "commoncrawl":
            return {}
        files = [*self.warc_files(), *([Path(self.labels)] if self.labels else [])]
        return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()}

    def describe(self) -> str:
        """For `mathpipe plan`."""
        if self.source == "docs":
            return f"{len(self.packages)} packages, at most {self.max_pages_per_package:,} pages each"
        if self.source == "commoncrawl":
            what = f"records of {', '.join((*self.hosts, *self.domains, *self.url_prefixes))}" if self.index != "none" else (
                f"{self.num_files:,} WARC files" if self.num_files else "all WARC files"
            )  # fmt: skip
            return f"{what} of {', '.join(self.snapshots)}"
        sizes = [file.stat().st_size for file in self.warc_files() if file.is_file()]
        remote = sum("://" in path for path in self.paths)
        return f"{len(sizes):,} WARC files, {sum(sizes) / 1e9:,.1f} GB" + (f", and {remote} remote addresses" if remote else "")

    def require(self, runtime: Runtime) -> None:
        """Refuse to start without the archives."""
        absent = [file for file in self.warc_files() if not file.is_file()]
        if absent:
            raise ValueError(f"no WARC file at {absent[0]}; put archives there or set crawl.paths")

    def warc_files(self) -> list[Path]:
        """The local files that `paths` names, in name order within each glob; a name that matches nothing stays as it is."""
        local = [pattern for pattern in self.paths if "://" not in pattern]
        found = [Path(name) for pattern in local for name in sorted(glob.glob(pattern)) or [pattern]]  # noqa: PTH207 (absolute too)
        return list(dict.fromkeys(found))


def package_version(name: str) -> str | None:
    """Version of an installed package; None where there is no distribution of that name."""
    if name == STANDARD_LIBRARY:
        return platform.python_version()
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
