"""Near-duplicates."""

from __future__ import annotations

import numpy as np
import pytest

from mathpipe.corpus import neardup


def test_near_duplicates_keep_the_first_and_chain_to_kept_pages_only() -> None:
    a = np.array([1, 2, 3, 4], np.uint32)
    rows = np.stack([a, a + [0, 0, 0, 9], a + [0, 0, 9, 9], a + [9, 9, 9, 9]])
    # row 1 repeats row 0 (3 of 4); row 2 shares 3 of 4 with row 1, but that is gone, and 2 of 4 with row 0
    assert neardup.duplicates(rows, num_bands=2, min_similarity=0.75) == {1: (0, 0.75)}


def test_minhash_estimate_agrees_with_datasketch_and_exact_jaccard(tmp_path) -> None:
    datasketch = pytest.importorskip("datasketch")
    import pyarrow as pa

    from mathpipe.pipeline import artifact

    vocabulary = [f"word{i}" for i in range(400)]
    rng = np.random.default_rng(0)
    text = rng.choice(vocabulary, 300).tolist()
    changed = text.copy()
    changed[::40] = ["other"] * len(changed[::40])
    artifact.write_parquet(tmp_path / "p.parquet", pa.table({"id": [0, 1], "text": [" ".join(text), " ".join(changed)]}))
    _, signature = neardup.signatures([tmp_path / "p.parquet"], 512, 5)
    shingles = [{" ".join(t[i : i + 5]) for i in range(len(t) - 4)} for t in (text, changed)]
    exact = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    oracle = [datasketch.MinHash(512) for _ in shingles]
    for minhash, grams in zip(oracle, shingles, strict=True):
        minhash.update_batch([gram.encode() for gram in grams])
    ours = float((signature[0] == signature[1]).mean())
    assert abs(ours - exact) < 0.08 and abs(ours - oracle[0].jaccard(oracle[1])) < 0.12  # 512 hashes: σ ≤ 0.022
