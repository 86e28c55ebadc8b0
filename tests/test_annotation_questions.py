"""The questions of a round: which prefixes are shown, with which figures and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_artifacts import SHARED, finish, folder, needs_shared
from hypothesis import given
from hypothesis import strategies as st
from round_artifacts import make_pages, make_scores

from mathpipe.corpus import domains, selection, urls
from mathpipe.corpus.annotation.questions import Count, chosen_prefixes, questions
from mathpipe.corpus.annotation.records import Question
from mathpipe.corpus.round_config import AnnotateConfig, DomainsConfig, DomainsInputs, SelectConfig, SelectInputs
from mathpipe.pipeline import artifact

LINES = [
    [(f"https://m.example/q/algebra/{i}.html", 0.9 - i / 100) for i in range(6)]
    + [(f"https://m.example/q/shop/{i}.html", 0.1) for i in range(6)],
    [(f"https://m.example/q/{i}.html", 0.8 if i == 0 else 0.2) for i in range(3)] + [("http://m.example/about/us.html", 0.3)],
    [(f"https://one.example/a/b/{i}.html", 0.95 if i else 0.05) for i in range(4)] + [("https://cold.example/", 0.0)],
]
"""A host with mathematics in q/algebra/ and none in q/shop/; one with all pages in one folder; one that is not math-related."""
ASKED = AnnotateConfig(min_pages=4, accept_frac=0.8, reject_frac=0.2)


def collect(base: Path, files: list[list[tuple[str, float]]], max_tokens: int) -> list[Path]:
    """Artifacts of pages (10 tokens each), scores, selection and domains."""
    pages = make_pages(base, [[{"url": url} for url, _ in lines] for lines in files])
    scores = make_scores(base, [[score for _, score in lines] for lines in files])
    out = folder(base, "select")
    config = SelectConfig(top_tokens=(max_tokens,), min_score=0.5)
    selected = finish(out, selection.run(config, SelectInputs(pages, scores), out))
    out = folder(base, "domains")
    return [pages, scores, selected, finish(out, domains.run(DomainsConfig(), DomainsInputs(pages, scores, selected), out))]


def test_the_tree_by_hand(tmp_path: Path) -> None:
    found = questions(*collect(tmp_path, LINES, 1000), ASKED, 4)
    figures = [(q.prefix, q.parent, q.num_pages, q.num_collected, q.num_tokens, q.suggestion) for q in found]
    assert figures == [
        ("m.example/", "", 16, 7, 90, ""),
        ("m.example/q/", "m.example/", 15, 7, 80, ""),
        ("m.example/q/algebra/", "m.example/q/", 6, 6, 0, "math"),
        ("m.example/q/shop/", "m.example/q/", 6, 0, 60, "not_math"),
        ("one.example/", "", 4, 3, 10, ""),
    ], "about/ is too small, a/ and a/b/ repeat their host, cold.example is not asked about"
    q = found[1]
    assert q.mean_score == pytest.approx((sum(0.9 - i / 100 for i in range(6)) + 0.6 + 0.8 + 0.4) / 15, abs=1e-6)
    assert q.gain == 8 * 7 / 15
    assert [sample.is_collected for sample in q.samples] == [True, True, False, False], "half of either kind"
    scores = {number * 1000 + i: score for number, lines in enumerate(LINES) for i, (_, score) in enumerate(lines)}
    assert all(sample.score == pytest.approx(scores[sample.id], abs=1e-6) for sample in q.samples)
    assert [sample.is_collected for sample in found[4].samples] == [True, True, True, False], "more where the other kind has too few"
    assert [sample.is_collected for sample in found[3].samples] == [False] * 4


def test_of_a_chain_with_the_same_pages_the_deepest_folder_is_shown(tmp_path: Path) -> None:
    files = [[(f"https://a.example/x/y/z/{i}.html", 0.9) for i in range(5)] + [("https://a.example/top.html", 0.9)]]
    assert [q.prefix for q in questions(*collect(tmp_path, files, 1000), ASKED, 4)] == ["a.example/", "a.example/x/y/z/"]
    (tmp_path / "b").mkdir()
    files[0].append(("https://a.example/x/y/other.html", 0.9))
    found = questions(*collect(tmp_path / "b", files, 1000), ASKED, 4)
    assert [q.prefix for q in found] == ["a.example/", "a.example/x/y/", "a.example/x/y/z/"]


def test_questions_do_not_depend_on_how_pages_are_divided_into_files(tmp_path: Path) -> None:
    """Ids differ with the files, so that samples are compared by number only."""

    def without_samples(found: list[Question]) -> list[tuple[Any, ...]]:
        return [(q.prefix, q.parent, q.num_pages, q.num_collected, q.mean_score, q.num_tokens, len(q.samples)) for q in found]

    whole = questions(*collect(tmp_path, LINES, 1000), ASKED, 4)
    for base in ("a", "b"):
        (tmp_path / base).mkdir()
    parts = [[line] for lines in reversed(LINES) for line in reversed(lines)]
    assert without_samples(questions(*collect(tmp_path / "a", parts, 1000), ASKED, 4)) == without_samples(whole)
    assert questions(*collect(tmp_path / "b", LINES, 1000), ASKED, 4) == whole


FOLDERS = st.lists(st.lists(st.sampled_from("xyz"), max_size=4), min_size=1, max_size=40)


@given(FOLDERS, st.integers(1, 5))
def test_no_page_is_lost_between_prefixes(paths: list[list[str]], min_pages: int) -> None:
    """Every prefix that is left out repeats one below it or its host, or is smaller than `min_pages`."""
    counts: dict[str, Count] = {}
    for path in paths:
        for prefix in urls.prefixes("http://a.example/" + "".join(f"{name}/" for name in path), 8):
            counts.setdefault(prefix, Count()).num_pages += 1
    shown = set(chosen_prefixes(counts, min_pages))
    assert "a.example/" in shown
    for prefix, count in counts.items():
        repeated = [other for other in shown if other.startswith(prefix) or prefix.startswith(other)]
        if prefix not in shown:
            assert count.num_pages < min_pages or any(counts[other].num_pages == count.num_pages for other in repeated)
        elif prefix != "a.example/":
            assert count.num_pages >= min_pages
            assert all(counts[other].num_pages != count.num_pages for other in repeated if other != prefix)


@needs_shared
def test_on_real_pages_figures_are_those_of_a_plain_count(small_pages: Path, tmp_path: Path) -> None:
    out = folder(tmp_path, "score")
    rng, tables = np.random.default_rng(0), {}
    for file in artifact.parquet_files(small_pages):
        tables[file.name] = table = pq.read_table(file, columns=["id", "url", "host", "num_tokens"])
        score = pa.array(rng.random(len(table), np.float32))
        artifact.write_parquet(out / "data" / file.name, table.select(["id"]).append_column("score", score))
    scores = finish(out, {"round": 1})
    out = folder(tmp_path, "select")
    selected = finish(out, selection.run(SelectConfig(top_tokens=(10**9,), min_score=0.6), SelectInputs(small_pages, scores), out))
    out = folder(tmp_path, "domains")
    judged = finish(out, domains.run(DomainsConfig(), DomainsInputs(small_pages, scores, selected), out))
    found = questions(small_pages, scores, selected, judged, ASKED, 4)
    pages = [row for table in tables.values() for row in table.to_pylist()]
    collected = {row for table in artifact.read_columns(selected, ["id"]) for row in table["id"].to_pylist()}
    assert len(found) > len([q for q in found if not q.parent]) > 5, f"{SHARED} has several hosts with folders"
    for q in found:
        under = [page for page in pages if urls.normalize(page["url"]).startswith(q.prefix)]
        assert (q.num_pages, q.num_collected) == (len(under), sum(page["id"] in collected for page in under))
        assert q.num_tokens == sum(page["num_tokens"] for page in under if page["id"] not in collected)
        assert {sample.id for sample in q.samples} <= {page["id"] for page in under} and len(q.samples) == min(4, len(under))
        assert all((sample.id in collected) == sample.is_collected for sample in q.samples)
