"""Selection by histograms is selection by sorting."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_artifacts import digests, finish, folder, rows
from hypothesis import example, given, settings
from hypothesis import strategies as st
from round_artifacts import make_pages, make_scores

from mathpipe.corpus import selection
from mathpipe.corpus.round_config import SelectConfig, SelectInputs
from mathpipe.pipeline import artifact

Files = list[list[tuple[float, int]]]
"""Files of (score, tokens)."""
TIES = st.sampled_from([0.0, -0.0, 1.0, 0.5, float(np.nextafter(np.float32(0.5), np.float32(1))), 1e-30])
SCORES = TIES | st.floats(0, 1, width=32)


def select(base: Path, files: Files, max_tokens: int, min_score: float = 0.0) -> tuple[list[int], dict[str, Any]]:
    pages = make_pages(base, [[{"url": f"https://a.org/{i}", "num_tokens": tokens} for i, (_, tokens) in enumerate(f)] for f in files])
    scores = make_scores(base, [[score for score, _ in f] for f in files])
    out = folder(base, "select")
    facts = selection.run(SelectConfig(top_tokens=(max_tokens,), min_score=min_score), SelectInputs(pages, scores), out)
    return [row["id"] for row in rows(out)], facts


def by_sorting(files: Files, max_tokens: int, min_score: float) -> list[int]:
    """The rule in words: from the best score down, of equal ones the smaller id first, until the next page does not fit."""
    pages = [(score, number * 1000 + i, tokens) for number, f in enumerate(files) for i, (score, tokens) in enumerate(f)]
    chosen, used = [], 0
    for score, row, tokens in sorted((-float(np.float32(score)), row, tokens) for score, row, tokens in pages):
        used += tokens
        if used > max_tokens or -score < np.float32(min_score):
            break
        chosen.append(row)
    return sorted(chosen)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(SCORES, st.integers(1, 50)), max_size=12), min_size=1, max_size=4), st.integers(1, 400), SCORES)
@example([[(0.5, 10), (0.5, 10)], [(0.5, 10), (0.4, 1)]], 20, 0.0)
@example([[(0.5, 10), (0.5, 30), (0.5, 5)]], 20, 0.0)
def test_histograms_choose_what_sorting_chooses(files: Files, max_tokens: int, min_score: float) -> None:
    wanted = by_sorting(files, max_tokens, min_score)
    with tempfile.TemporaryDirectory() as base:
        if not wanted:
            with pytest.raises(ValueError, match="lower select.min_score, or raise select.top_tokens"):
                select(Path(base), files, max_tokens, min_score)
            return
        chosen, facts = select(Path(base), files, max_tokens, min_score)
    pages = {number * 1000 + i: page for number, f in enumerate(files) for i, page in enumerate(f)}
    assert chosen == wanted
    assert facts["num_pages"] == len(wanted) and facts["num_tokens"] == sum(pages[row][1] for row in wanted)
    assert facts["lowest_score"] == min(np.float32(pages[row][0]) for row in wanted)
    assert sum(facts["score_histogram"]["counts"]) == len(pages)


def test_of_equal_scores_the_smaller_ids_go_first_and_files_that_exist_are_kept(tmp_path: Path) -> None:
    files = [[(0.9, 10), (0.5, 10), (0.9, 10)], [(0.9, 10), (0.7, 10)]]
    assert select(tmp_path, files, 20)[0] == [0, 2]
    first = digests(tmp_path / "select", "data")
    (tmp_path / "select" / "data" / "00001.parquet").unlink()
    select(tmp_path, files, 20)
    assert digests(tmp_path / "select", "data") == first
    assert len(first) == 2, "a file for every file of pages"


def test_scores_of_other_pages_are_refused(tmp_path: Path) -> None:
    pages = make_pages(tmp_path, [[{"url": "https://a.org/"}], [{"url": "https://b.org/"}]])
    out = folder(tmp_path, "select")
    with pytest.raises(artifact.ContractError, match=r"00001\.parquet: not the scores"):
        selection.run(SelectConfig(), SelectInputs(pages, make_scores(tmp_path, [[0.5]])), out)


def test_after_the_end_the_selection_is_passed_on(tmp_path: Path) -> None:
    files: Files = [[(0.9, 10), (0.5, 10)]]
    _, facts = select(tmp_path, files, 10)
    before = finish(tmp_path / "select", facts)
    scores = finish(folder(tmp_path, "nothing"), {"round": 3, "stopped": 2})
    out = folder(tmp_path, "again")
    passed = selection.run(SelectConfig(top_tokens=(20,)), SelectInputs(tmp_path / "pages", scores, before), out)
    assert passed == facts | {"round": 3, "stopped": 2}
    assert digests(out, "data") == digests(before, "data")
