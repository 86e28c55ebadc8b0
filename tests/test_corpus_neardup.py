"""Repeated pages: the three passes, chains, the oracle, real pages, planted duplicates."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_artifacts import ARCHIVES, SHARED, folder, needs_shared, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from mathpipe.corpus import neardup, pages
from mathpipe.corpus.config import PagesConfig, PagesInputs
from mathpipe.pipeline import artifact

CONFIG = PagesConfig()
WORDS = [f"word{i}" for i in range(200)]


def dropped(parts: list[list[tuple[int, str, str]]], config: PagesConfig = CONFIG) -> dict[int, tuple[str, str]]:
    """Id → (reason, URL of the earlier page) of pages (id, url, text), a list for each archive."""
    with tempfile.TemporaryDirectory() as name:
        out, keys, files = Path(name), [], []
        for number, part in enumerate(parts):
            ids, urls, texts = ([row[i] for row in part] for i in range(3))
            keys.append(out / f"{number}.keys")
            files.append(out / f"{number}.parquet")
            artifact.write_parquet(keys[-1], neardup.page_keys(config, ids, urls, texts))
            artifact.write_parquet(files[-1], pa.table({"id": pa.array(ids, pa.int64()), "url": pa.array(urls, pa.string())}))
        neardup.find(config, keys, files, out / "work", out)
        found = [pq.ParquetFile(file).read().to_pylist() for file in (out / "work" / "dropped").glob("*/*.parquet")]
    return {row["id"]: (row["reason"], row["detail"]) for table in found for row in table}


def changed(words: list[str], num: int, other: str) -> str:
    """`words` with the first `num` replaced."""
    return " ".join([f"{other}{i}" for i in range(num)] + words[num:])


def test_url_first_then_text_then_likeness_each_over_what_is_left() -> None:
    text, other = " ".join(WORDS[:100]), " ".join(WORDS[100:])
    pages_ = [
        (1, "http://a.org/x", text),
        (2, "https://www.a.org/x#top", other),  # the URL of 1: goes, so that the next one is the first with this text
        (3, "http://b.org/y", other),
        (4, "http://c.org/", other),
        (5, "http://d.org/", changed(WORDS[:100], 4, "new")),  # 94 of 98 + 4 shingles: 0.92
        (6, "http://e.org/", changed(WORDS[:100], 60, "new")),  # 38 of 98 + 60: 0.24
    ]
    assert dropped([pages_]) == {
        2: ("url duplicate", "http://a.org/x"), 4: ("text duplicate", "http://b.org/y"), 5: ("near duplicate", "http://a.org/x"),
    }  # fmt: skip


def test_of_a_chain_the_first_stays_and_of_two_unlike_pages_both() -> None:
    a, b, c = (changed(WORDS, num, "new") for num in (0, 24, 48))
    # shingles shared, of 198: a and b 174 (0.78), b and c 174 (0.78), a and c 150 (0.61)
    config = PagesConfig(num_hashes=512, num_bands=128, min_similarity=0.7)
    assert set(dropped([[(1, "http://a.org", a), (2, "http://b.org", b), (3, "http://c.org", c)]], config)) == {2, 3}
    assert set(dropped([[(1, "http://a.org", a), (2, "http://c.org", c), (3, "http://b.org", b)]], config)) == {3}


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60), st.integers(0, 3)), min_size=1, max_size=12), st.integers(1, 12))
def test_division_into_files_and_their_order_do_not_matter(drawn: list[tuple[int, int, int]], cut: int) -> None:
    config = PagesConfig(num_hashes=16, num_bands=4)
    pages_ = [(i, f"http://{host}.org/{i % 4}", changed(WORDS, num, f"v{version}")) for i, (host, num, version) in enumerate(drawn)]
    assert dropped([pages_], config) == dropped([pages_[cut:], pages_[:cut]], config)


@pytest.mark.slow
def test_slices_of_the_comparison_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    pages_ = [(i, f"http://a.org/{i}", changed(WORDS, 4 * (i // 3) + i % 3, f"v{i}")) for i in range(12)]
    whole = dropped([pages_])
    monkeypatch.setattr(neardup, "PAIRS_AT_ONCE", 1)
    assert len(whole) > 6 and dropped([pages_]) == whole


def test_chinese_pages_are_compared_by_character() -> None:
    text = "".join(chr(0x4E00 + 37 * i) for i in range(80))
    near, other = text.replace(text[40], "明"), "".join(chr(0x6E00 + 29 * i) for i in range(80))
    found = dropped([[(1, "http://a.cn", text), (2, "http://b.cn", near), (3, "http://c.cn", other)]])
    assert found == {2: ("near duplicate", "http://a.cn")}


def shingles(text: str) -> set[str]:
    words = re.sub(r"[^\w\s]", "", text.lower()).split()
    return {" ".join(words[i : i + CONFIG.ngram_words]) for i in range(max(1, len(words) - CONFIG.ngram_words + 1))}


@needs_shared
def test_datasketch_and_exact_jaccard_agree_on_real_pages(small_pages: Path) -> None:
    datasketch = pytest.importorskip("datasketch")
    errors = []
    for row in rows(small_pages)[::12]:
        words = row["text"].split()
        edited = " ".join("edited" if i % 30 == 7 else word for i, word in enumerate(words))
        ours, grams = neardup.signatures([row["text"], edited], 512, CONFIG.ngram_words), [shingles(row["text"]), shingles(edited)]
        oracle = [datasketch.MinHash(512) for _ in grams]
        for minhash, found in zip(oracle, grams, strict=True):
            minhash.update_batch([gram.encode() for gram in found])
        mine, exact = float((ours[0] == ours[1]).mean()), len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        assert abs(mine - oracle[0].jaccard(oracle[1])) < 0.125  # 512 hashes each: σ of the difference ≤ 0.031
        errors.append(mine - exact)
    assert len(errors) > 20 and abs(np.mean(errors)) < 0.015


@needs_shared
def test_no_page_left_is_like_another(small_pages: Path) -> None:
    """Of the pairs that datasketch's LSH finds among what is left, none has an exact Jaccard similarity of 0.8."""
    datasketch = pytest.importorskip("datasketch")
    grams = [shingles(row["text"]) for row in rows(small_pages)]
    index = datasketch.MinHashLSH(threshold=0.7, num_perm=64)
    for number, found in enumerate(grams):
        minhash = datasketch.MinHash(64)
        minhash.update_batch([gram.encode() for gram in found])
        for other in index.query(minhash):
            assert len(found & grams[other]) / len(found | grams[other]) < 0.8
        index.insert(number, minhash)


@needs_shared
@pytest.mark.slow
def test_planted_duplicates_of_the_shared_crawl_are_found(tmp_path: Path) -> None:
    crawl = folder(tmp_path, "crawl")
    artifact.write_json(crawl / "archives.json", [str(archive) for archive in ARCHIVES])
    out = folder(tmp_path, "pages")
    pages.run(CONFIG, PagesInputs(crawl), out)
    left = {row["url"] for row in rows(out)}
    planted = [line.split("\t") for line in (SHARED / "data/crawl/labels.tsv").read_text(encoding="utf-8").splitlines()]
    for kind, least in (("duplicate-of", 150), ("near-duplicate-of", 143)):
        pairs = [(row[0], row[3].split()[1]) for row in planted if row[3].startswith(kind)]
        assert len(pairs) == 150
        assert sum(not {one, other} <= left for one, other in pairs) >= least, kind
