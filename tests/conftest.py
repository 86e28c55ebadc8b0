"""What several test files share: a slice of the shared crawl and its pages, databases of the annotation queue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from annotation_database import new_database, own_postgres
from corpus_artifacts import ARCHIVES, SHARED, finish, folder

from mathpipe.corpus import crawl, pages
from mathpipe.corpus.annotation.store import Store
from mathpipe.corpus.config import PagesConfig, PagesInputs
from mathpipe.corpus.crawl_config import CrawlConfig, NoInputs


@pytest.fixture(scope="session")
def small_crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crawl artifact over three archives, each with every sixth page of one shared archive."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.warcwriter import WARCWriter

    folder_ = tmp_path_factory.mktemp("slice")
    for number, archive in enumerate(ARCHIVES[:3]):
        with archive.open("rb") as source, (folder_ / f"slice-{number}.warc.gz").open("wb") as target:
            writer = WARCWriter(target, gzip=True)
            for i, record in enumerate(ArchiveIterator(source)):
                if i % 6 == 1:
                    writer.write_record(record)
    config = CrawlConfig(source="warc", paths=(f"{folder_}/*.warc.gz",), labels=str(SHARED / "data" / "crawl" / "labels.tsv"))
    out = folder(folder_, "crawl")
    return finish(out, crawl.run(config, NoInputs(), out))


@pytest.fixture(scope="session")
def small_pages(small_crawl: Path) -> Path:
    out = folder(small_crawl.parent, "pages")
    return finish(out, pages.run(PagesConfig(), PagesInputs(small_crawl), out))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of our own, without a database's name."""
    yield from own_postgres()


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    return new_database(request, request.param, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for many examples."""
    return Store(new_database(request, request.param, tmp_path_factory.mktemp("shared")))
