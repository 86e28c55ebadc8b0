"""crawl: WARC files under `warc/` and, where the truth is known, `labels/`.

`docs` renders the documentation inside installed packages as a small web: one host per package, one page per documented
object, real text. A few pages are planted a second time under another spelling of their URL, so that deduplication has
work whose result is known. `warc` takes files that exist; the artifact names them, since archives are large and only read.
`commoncrawl` fetches whole files or single records.
"""

from __future__ import annotations

import glob
import hashlib
import io
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from mathpipe.corpus import commoncrawl, docstrings, render
from mathpipe.corpus.crawl_config import CrawlConfig, NoInputs, package_version
from mathpipe.corpus.docstrings import Docstring
from mathpipe.corpus.fetch import Client
from mathpipe.corpus.warc import ARCHIVES, check_archive
from mathpipe.pipeline import artifact, log, stage

DOLLAR_MATH = {"sympy"}
"""Packages whose docstrings write formulas as `$…$`."""
WARC_DATE = "2024-01-01T00:00:00Z"
"""One date for all records: the same packages give the same bytes."""
NUM_NEIGHBOURS = 12


@dataclass(frozen=True)
class Page:
    """One page of the rendered web, before rendering."""

    url: str
    original_url: str
    """The same as `url`, unless the page is a planted duplicate."""
    docstring: Docstring
    neighbours: tuple[tuple[str, str], ...]


def run(config: CrawlConfig, inputs: NoInputs, out: Path) -> dict[str, Any]:
    """Write `archives.json` and, as the source has them, `warc/` and `labels/`; returns counts."""
    (out / "warc").mkdir(exist_ok=True)
    if config.source == "commoncrawl":
        return commoncrawl.fetch(config, Client(config.runtime.requests_per_s, config.max_tries), out)
    return write_docs(config, out) if config.source == "docs" else list_archives(config, out)


def write_docs(config: CrawlConfig, out: Path) -> dict[str, Any]:
    """Render the packages' documentation into WARC shards; shards that exist are kept."""
    with ProcessPoolExecutor(config.runtime.num_workers) as pool:
        limits = config.min_docstring_chars, config.max_docstring_chars, config.max_pages_per_package
        jobs = [pool.submit(docstrings.collect, name, *limits) for name in config.packages]
        found = []
        with log.Progress(out, len(jobs), "packages", "reading sources") as progress:
            for job, name in zip(jobs, config.packages, strict=True):
                found.append(job.result())
                progress.advance(1, f"{name}: {len(found[-1])} pages")
        pages = planted(arrange(found), config.num_url_duplicates)
        size = config.pages_per_shard
        shards = {out / "warc" / f"docs-{i // size:05d}.warc.gz": pages[i : i + size] for i in range(0, len(pages), size)}
        with log.Progress(out, len(pages), "pages", "rendering") as progress:
            written = [(pool.submit(write_shard, file, part), len(part)) for file, part in shards.items() if not file.exists()]
            progress.advance(len(pages) - sum(n for _, n in written))
            for shard, num_pages in written:
                shard.result()
                progress.advance(num_pages)
    write_labels(out, [(p.url, p.docstring.package, label_of(p.docstring.package, config)) for p in pages])
    artifact.write_json(out / ARCHIVES, [str(file.relative_to(out)) for file in shards])
    by_package = Counter(page.docstring.package for page in pages)
    return {
        "source": "docs", "num_pages": len(pages), "num_shards": len(shards), "num_hosts": len(by_package),
        "num_url_duplicates": sum(p.url != p.original_url for p in pages), "pages_by_package": dict(by_package),
        "size_bytes": sum(file.stat().st_size for file in shards),
    }  # fmt: skip


def label_of(package: str, config: CrawlConfig) -> str:
    """`math` or `other`, by package."""
    return "math" if package in config.math_packages else "other"


def arrange(packages: Sequence[Sequence[Docstring]]) -> list[Page]:
    """Every docstring with its URL and neighbours, in the order of a hash of the URL, as crawls mix hosts."""
    pages = []
    for found in packages:
        urls = [url_of(d) for d in found]
        links = [(d.name or ".".join(d.module) or d.package, url) for d, url in zip(found, urls, strict=True)]
        for i, (docstring, url) in enumerate(zip(found, urls, strict=True)):
            start = max(0, i - NUM_NEIGHBOURS // 2)
            near = tuple(link for link in links[start : start + NUM_NEIGHBOURS] if link[1] != url)
            pages.append(Page(url, url, docstring, near))
    return sorted(pages, key=lambda page: _digest(page.url))


def url_of(docstring: Docstring) -> str:
    """`https://docs.sympy.example/core/expr/Expr.as_poly.html`; a module's own page ends in `/`."""
    folder = "".join(f"{part}/" for part in docstring.module)
    page = f"{docstring.name}.html" if docstring.name else ""
    return f"https://docs.{docstring.package.replace('_', '-')}.example/{folder}{page}"


def planted(pages: list[Page], num_duplicates: int) -> list[Page]:
    """`pages` and duplicates of the first `num_duplicates` of them (in hashed order: a random draw), each under another spelling."""
    again = [Page(respelled(p.url), p.url, p.docstring, p.neighbours) for p in pages[:num_duplicates]]
    return sorted(pages + again, key=lambda page: _digest(page.url))


def respelled(url: str) -> str:
    """Another URL of the same page: scheme, `www.`, port, tracking parameter or index page, by turns.

    >>> respelled("https://docs.sympy.example/core/")
    'https://docs.sympy.example/core/index.html'
    """
    if url.endswith("/"):
        return url + "index.html"
    host_and_path = url.removeprefix("https://")
    host, _, path = host_and_path.partition("/")
    schemes = [f"http://{host_and_path}", f"http://www.{host_and_path}", f"https://{host}:443/{path}"]
    turns = [*schemes, f"{url}?utm_source=feed", f"{url}#notes"]
    return turns[_digest(url)[0] % len(turns)]


def _digest(url: str) -> bytes:
    return hashlib.sha256(url.encode()).digest()


def page_html(page: Page) -> str:
    """The page as served."""
    d = page.docstring
    style = _digest(page.original_url)[1]
    path = [d.package, *d.module, *([d.name] if d.name else [])]
    body = render.render_body(d.text, style, d.package in DOLLAR_MATH)
    return render.render_page(d.package, package_version(d.package) or "", path, ".".join(path) + d.signature, body, page.neighbours)


def write_shard(file: Path, pages: Sequence[Page]) -> None:
    """One gzip WARC file of HTTP responses, written under a temporary name first."""
    partial = file.with_name(f".{file.name}.tmp")
    with partial.open("wb") as stream:
        writer = WARCWriter(stream, gzip=True)
        for page in pages:
            payload = page_html(page).encode()
            status = StatusAndHeaders(
                "200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(payload)))], protocol="HTTP/1.1"
            )
            headers = {"WARC-Date": WARC_DATE, "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, page.url)}>"}
            writer.write_record(
                writer.create_warc_record(page.url, "response", io.BytesIO(payload), http_headers=status, warc_headers_dict=headers)
            )
    partial.replace(file)


def write_labels(out: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """The truth: `labels/labels.parquet` with url, package, label."""
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("url", "package", "label"))}
    artifact.write_parquet(out / "labels" / "labels.parquet", pa.table(columns))


def list_archives(config: CrawlConfig, out: Path) -> dict[str, Any]:
    """List archives, each checked to be one, and copy their labels.

    Raises:
        ValueError: a path names no file, a file is not a WARC file, or the labels lack a column.
    """
    files = config.warc_files()
    found = [*(str(file.resolve()) for file in files), *remote_archives([path for path in config.paths if "://" in path])]
    with log.Progress(out, len(found), "archives", "checking") as progress:
        for address in found:
            check_archive(address)
            progress.advance()
    artifact.write_json(out / ARCHIVES, found)
    if config.labels:
        artifact.write_parquet(out / "labels" / "labels.parquet", read_labels(Path(config.labels)))
    size_bytes = sum(file.stat().st_size for file in files)
    return {"source": "warc", "num_shards": len(found), "files": found, "size_bytes": size_bytes}


def remote_archives(paths: Sequence[str]) -> list[str]:
    """Addresses that fsspec URLs name, in name order within each glob.

    Raises:
        ValueError: no such protocol here, or a glob that matches nothing.
    """
    import fsspec

    found: list[str] = []
    for path in paths:
        try:
            system, name = fsspec.core.url_to_fs(path)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{path}: {error} (crawl.paths)") from None
        names = sorted(system.glob(name)) if glob.has_magic(name) else [name]
        if not names:
            raise ValueError(f"{path}: matches nothing (crawl.paths); give existing WARC files")
        found += [system.unstrip_protocol(one) for one in names]
    return list(dict.fromkeys(found))


def read_labels(file: Path) -> pa.Table:
    """url and label of a TSV file."""
    try:
        table = pyarrow.csv.read_csv(file, parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False))
        return table.select(["url", "label"])
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file (crawl.labels)") from None
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{file}: expected a TSV file with the columns url and label: {error}") from None


if __name__ == "__main__":
    stage.main(run)
