"""WARC records to pages or rejects: character sets, broken records."""

from __future__ import annotations

from pathlib import Path

from corpus_artifacts import SHARED, finish, folder, needs_shared, rows

from mathpipe.corpus import crawl, pages
from mathpipe.corpus.config import PagesConfig, PagesInputs
from mathpipe.corpus.crawl_config import CrawlConfig, NoInputs


@needs_shared
def test_all_shared_archives_are_read(tmp_path: Path) -> None:
    out = folder(tmp_path, "crawl")
    facts = crawl.run(CrawlConfig(source="warc", paths=(str(SHARED / "data" / "warc" / "*.gz"),)), NoInputs(), out)
    assert facts["num_shards"] == 6
    found = folder(tmp_path, "pages")
    facts = pages.run(PagesConfig(), PagesInputs(finish(out, facts)), found)
    texts = {row["url"]: row["text"] for row in rows(found)}
    assert "公司" in "".join(texts.values()), "gb2312 pages are decoded"
    assert any("а" in text for url, text in texts.items() if "01spb.ru" in url), "windows-1251 pages are decoded"
    assert not any("\ufffd" * 5 in text for text in texts.values())
    clipped = [row for row in rows(found, "rejects") if "houstonpress" in row["url"]]
    assert [row["reason"] for row in clipped] == ["broken record"]
