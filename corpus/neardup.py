"""Repeated pages: by URL, by text, and nearly (MinHash), as joins in daft over a table of keys that extraction wrote.

A page repeats an earlier one (a lower id, in the order of the crawl), in three passes, each over what those before left:

1. `url duplicate`: its URL, normalised, came before.
2. `text duplicate`: the same text came before.
3. `near duplicate`: all hashes of one band agree with an earlier page, the first that has this band, and the share of equal
   hashes, which estimates the Jaccard similarity of their word shingles, is at least `min_similarity`.

With b bands of r rows a pair of similarity s is compared with probability 1 − (1 − s^r)^b. Chains: the earlier page counts
whether it is kept itself or not, so of A ~ B ~ C, in this order, B and C go even if C is unlike A; of A ~ C ~ B with B unlike
A, A and B stay. This needs pairs only, no order of work: the result is the same for any number of workers and machines.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from mathpipe.corpus import engine, urls
from mathpipe.corpus.config import PagesConfig
from mathpipe.corpus.words import CJK
from mathpipe.pipeline import log

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
PAIRS_AT_ONCE = 50_000
"""Pairs of pages that are compared at a time, per worker: some 300 MB."""


def key_schema(config: PagesConfig) -> pa.Schema:
    """A column per band, so that a pass reads one."""
    bands = [(band_name(band), pa.uint64()) for band in range(config.num_bands)]
    return pa.schema([("id", pa.int64()), ("url_key", pa.string()), ("text_key", pa.string()), *bands, ("signature", pa.binary())])


def band_name(band: int) -> str:
    return f"band_{band:03d}"


def page_keys(config: PagesConfig, ids: Sequence[int], page_urls: Sequence[str], texts: Sequence[str]) -> pa.Table:
    """Keys of some pages: hashes of URL and text, band hashes, signature (uint32, little-endian)."""
    signature_NH = signatures(texts, config.num_hashes, config.ngram_words)
    band_BN = band_keys(signature_NH, config.num_bands)
    columns = [ids, [url_key(url) for url in page_urls], [digest(text) for text in texts], *band_BN]
    return pa.table([pa.array(column) for column in columns] + [pa.array([row.tobytes() for row in signature_NH], pa.binary())],
                    schema=key_schema(config))  # fmt: skip


def url_key(url: str) -> str:
    """One value for all spellings of a URL."""
    return digest(urls.normalize(url))


def digest(text: str) -> str:
    """128 bits as text: daft 0.7.26 joins binary columns as if all their values were equal."""
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", errors="surrogatepass"))


def signatures(texts: Sequence[str], num_hashes: int, ngram_words: int) -> np.ndarray:
    """Signature_NH as uint32: N texts, H hashes.

    Text is compared in lower case, without punctuation, white space as one blank; a Chinese or Japanese character is a word.
    """
    import daft
    from daft.expressions import ExpressionsProjection
    from daft.functions import minhash, normalize
    from daft.recordbatch import RecordBatch

    spaced = [text if text.isascii() else CJK.sub(r" \g<0> ", text) for text in texts]
    words = normalize(daft.col("text"), remove_punct=True, lowercase=True, white_space=True)
    hashes = minhash(words, num_hashes=num_hashes, ngram_size=ngram_words, hash_function="xxhash3_64")
    batch = RecordBatch.from_arrow_table(pa.table({"text": pa.array(spaced, pa.string())}))
    table = batch.eval_expression_list(ExpressionsProjection([hashes.alias("hashes")])).to_arrow_table()
    flat = table["hashes"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, num_hashes).astype("<u4", copy=False)


def band_keys(signature_NH: np.ndarray, num_bands: int) -> np.ndarray:
    """Key_BN as uint64: a polynomial of the hashes of each band (modulo 2⁶⁴)."""
    hash_NBR = signature_NH.reshape(len(signature_NH), num_bands, signature_NH.shape[1] // num_bands).astype(np.uint64)
    key_NB = np.zeros(hash_NBR.shape[:2], np.uint64)
    for row in range(hash_NBR.shape[2]):
        key_NB = (key_NB + hash_NBR[:, :, row] + np.uint64(1)) * MULTIPLIER
        key_NB ^= key_NB >> np.uint64(29)
    return key_NB.T


def find(config: PagesConfig, keys: Sequence[Path], pages: Sequence[Path], work: Path, out: Path) -> None:
    """Write every repeated page to `work/dropped/archive=N/`: id, reason, detail (URL of the earlier page, similarity).

    Args:
        keys: tables made by `page_keys`.
        pages: tables with `id` and `url`.
    """
    daft = engine.start(config.runtime)
    from daft import col, lit

    shutil.rmtree(work, ignore_errors=True)
    found = work / "found"
    table = daft.read_parquet([str(file) for file in keys])
    with log.Progress(out, 4 + config.num_bands, "passes", "duplicates") as progress:
        for reason in ("url", "text"):
            left = _without(daft, table.select("id", f"{reason}_key"), found)
            same = _firsts(left, f"{reason}_key").with_column("similarity", lit(1.0))
            same.with_column("reason", lit(f"{reason} duplicate")).write_parquet(str(found / reason))
            progress.advance(1, f"by {reason}")
        for band in map(band_name, range(config.num_bands)):
            _firsts(_without(daft, table.select("id", band), found), band).write_parquet(str(work / "pairs"))
            progress.advance(1, band)
        compare(config, table, work / "pairs", found / "near")
        progress.advance(1, "compared")
        url_of = daft.read_parquet([str(file) for file in pages]).select(col("id").alias("first"), col("url").alias("detail"))
        dropped = daft.read_parquet(f"{found}/*/*.parquet").join(url_of, on="first")
        write_by_archive(dropped.select("id", "reason", "detail", "similarity"), work / "dropped", config)
        progress.advance(1)


def _without(daft: Any, table: Any, found: Path) -> Any:
    """Rows whose id was not found before."""
    files = sorted(str(file) for file in found.glob("*/*.parquet"))
    return table.join(daft.read_parquet(files).select("id"), on="id", how="anti") if files else table


def _firsts(table: Any, key: str) -> Any:
    """(id, first) of every row whose key came before: the lowest id with this key."""
    from daft import col

    groups = table.groupby(key).agg(col("id").min().alias("first"), col("id").count().alias("num")).where("num > 1")
    return table.join(groups, on=key).where(col("id") != col("first")).select("id", "first")


def compare(config: PagesConfig, table: Any, candidates: Path, out: Path) -> None:
    """Write (id, first, similarity, reason) of the candidates that are similar enough, one per id: the lowest first.

    It goes in slices of ids, so that as many signatures are in memory as PAIRS_AT_ONCE pairs of a worker have.
    """
    daft = engine.start(config.runtime)
    from daft import col, lit

    @daft.func.batch(return_dtype=daft.DataType.float64(), batch_size=4_096)
    def similarity(one: Any, other: Any) -> pa.Array:
        return pa.array(equal_share(one.to_arrow(), other.to_arrow()))

    pairs, signature = daft.read_parquet(f"{candidates}/*.parquet"), table.select("id", "signature")
    num_slices = 1 + pairs.count_rows() // (PAIRS_AT_ONCE * config.runtime.num_workers)
    for number in range(num_slices):
        part = pairs.where(f"id % {num_slices} = {number}").distinct()
        involved = part.select("id").concat(part.select(col("first").alias("id")))
        known = signature.join(involved, on="id", how="semi")
        both = part.join(known, on="id").join(known.select(col("id").alias("first"), col("signature").alias("other")), on="first")
        near = both.select("id", "first", similarity(col("signature"), col("other")).alias("similarity"))
        near = near.where(f"similarity >= {config.min_similarity}").collect()
        best = near.groupby("id").agg(col("first").min()).join(near, on=["id", "first"]).select("id", "first", "similarity")
        best.with_column("reason", lit("near duplicate")).write_parquet(str(out))


def equal_share(one: pa.Array, other: pa.Array) -> np.ndarray:
    """Share of equal hashes of each pair of signatures."""
    if not len(one):
        return np.zeros(0)
    hash_2NH = [np.frombuffer(b"".join(side.to_pylist()), "<u4").reshape(len(side), -1) for side in (one, other)]
    return (hash_2NH[0] == hash_2NH[1]).mean(axis=1)


def write_by_archive(table: Any, folder: Path, config: PagesConfig) -> None:
    """A daft table with row ids as `folder/archive=N/*.parquet`, N the ids' archive."""
    from daft import col, lit

    table = table.with_column("archive", col("id") // lit(2**32))
    if config.runtime.cluster != "native":
        table = table.repartition(None, "archive")
    table.write_parquet(str(folder), partition_cols=["archive"])
