"""Stage tokens: the corpus and the other sources of text as flat memory-mapped token shards with a document index.

    train/<source>/00000.bin   token ids, little-endian uint16 (uint32 above 65,536), documents one after another, EOS after each
    train/<source>/00000.idx   int64 start offset of each document, then the total: document i is [idx[i], idx[i + 1])
    held_out/<source>/…        the same for documents whose URL hash falls below `held_out_frac`
    shards/<source>-00000.json counts of a finished shard

The corpus is the source `math`; of the optional input `sources` a file `code-00000.parquet` belongs to the source `code`. A shard
is made of consecutive files, by one thread (the tokenizer works outside the interpreter's lock); a killed stage keeps finished
shards. What looks like EOS inside a document is text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mathpipe.pipeline import artifact, log, stage
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import MATH, TokensConfig, TokensInputs

SPLITS = ("train", "held_out")
COUNTS = ("num_documents", "num_tokens", "num_bytes")
BYTES_PER_TOKEN = 4
"""For the number of files in a shard, which is fixed before they are tokenised."""
BATCH_ROWS = 1000
Encode = Callable[[list[str]], list[list[int]]]


class Tokens:
    """The tokens of one source and split as one array over all shards; nothing is read before it is asked for."""

    def __init__(self, files: list[Path], dtype: str) -> None:
        self.shards = [np.memmap(file, dtype, mode="r") for file in files]
        self.ends = np.cumsum([len(shard) for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, place: slice) -> np.ndarray:
        """Tokens [start, stop); a view where they lie in one shard."""
        start, stop, _ = place.indices(len(self))
        parts = []
        for number in range(int(np.searchsorted(self.ends, start, "right")), len(self.shards)):
            if start >= stop:
                break
            begin = int(self.ends[number]) - len(self.shards[number])
            parts.append(self.shards[number][start - begin : stop - begin])
            start += len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.int64)])


def is_held_out(url: str, frac: float) -> bool:
    """Whether a document belongs to the held-out split; depends on its URL alone (by a hash that orders no crawl)."""
    return int.from_bytes(hashlib.sha256(f"held out {url}".encode()).digest()[:8], "big") < frac * 2**64


def read(path: Path, split: str, source: str = MATH) -> Tokens:
    """The tokens of a source in a tokens artifact; none where no document fell into the split."""
    return Tokens(sorted((path / split / source).glob("*.bin")), artifact.read_manifest(path)["dtype"])


def run(config: TokensConfig, inputs: TokensInputs, out: Path) -> dict[str, Any]:
    """Tokenise every document; facts: documents, tokens and bytes of both splits, in all and by source."""
    vocabulary = bpe.load(inputs.tokenizer / "tokenizer")
    encode = bpe.encoder(vocabulary)
    dtype = "<u2" if len(vocabulary) <= 65_536 else "<u4"
    shards = [
        (source, number, files)
        for source, all_files in sorted(files_by_source(inputs).items())
        for number, files in enumerate(shards_of(all_files, config.shard_tokens))
    ]
    with log.Progress(out, sum(map(num_rows, shards)), "documents") as progress, ThreadPoolExecutor(config.runtime.num_workers) as pool:
        made = pool.map(lambda shard: write_shard(config, encode, vocabulary.eos_token_id, dtype, out, *shard), shards)
        for shard, counts in zip(shards, made, strict=True):
            progress.advance(num_rows(shard), f"{shard[0]}: {counts['train']['num_tokens']:,} tokens")
    facts: dict[str, Any] = {"dtype": dtype, "eos": vocabulary.eos_token_id, "held_out_frac": config.held_out_frac, "sources": {}}
    for source, number, _ in shards:
        counts = json.loads(marker(out, source, number).read_text(encoding="utf-8"))
        for table in (facts, facts["sources"].setdefault(source, {})):
            for split in SPLITS:
                total = table.setdefault(split, dict.fromkeys(COUNTS, 0))
                total.update({name: total[name] + counts[split][name] for name in COUNTS})
    return facts


def files_by_source(inputs: TokensInputs) -> dict[str, list[Path]]:
    """Source → its parquet files in order.

    Raises:
        ContractError: a file of `sources` has no number, or a source is called as the corpus is.
    """
    found = {MATH: artifact.parquet_files(inputs.corpus)}
    for file in artifact.parquet_files(inputs.sources) if inputs.sources else []:
        source, dash, _ = file.stem.rpartition("-")
        if not dash or source == MATH:
            raise artifact.ContractError(f"{file}: expected <source>-<number>.parquet of a source that is not {MATH!r}; rename it")
        found.setdefault(source, []).append(file)
    return found


def shards_of(files: list[Path], shard_tokens: int) -> Iterator[list[Path]]:
    """Consecutive files that hold about `shard_tokens` together; the sizes stand in the files' footers."""
    shard: list[Path] = []
    size = 0
    for file in files:
        shard.append(file)
        size += text_bytes(file)
        if size >= shard_tokens * BYTES_PER_TOKEN:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def text_bytes(file: Path) -> int:
    """Size of the column `text` as its writer stored it, before compression."""
    metadata = pq.read_metadata(file)
    columns = [metadata.row_group(g).column(c) for g in range(metadata.num_row_groups) for c in range(metadata.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")


def num_rows(shard: tuple[str, int, list[Path]]) -> int:
    """Documents of a shard."""
    return sum(pq.read_metadata(file).num_rows for file in shard[2])


def marker(out: Path, source: str, number: int) -> Path:
    """The file that says that a shard is whole."""
    return out / "shards" / f"{source}-{number:05d}.json"


def write_shard(
    config: TokensConfig, encode: Encode, eos: int, dtype: str, out: Path, source: str, number: int, files: list[Path]
) -> dict[str, dict[str, int]]:
    """Tokenise some files of a source into one shard of each split, unless that is done; split → its counts."""
    done = marker(out, source, number)
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    counts = {split: dict.fromkeys(COUNTS, 0) for split in SPLITS}
    offsets: dict[str, list[int]] = {split: [0] for split in SPLITS}
    places = {split: out / split / source / f"{number:05d}.bin" for split in SPLITS}
    for place in places.values():
        place.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        shards = {split: stack.enter_context(place.open("wb")) for split, place in places.items()}
        for url, text, ids in documents(encode, files):
            split = SPLITS[is_held_out(url, config.held_out_frac)]
            np.array([*ids, eos], dtype).tofile(shards[split])
            offsets[split].append(offsets[split][-1] + len(ids) + 1)
            counts[split]["num_bytes"] += len(text.encode())
    for split, place in places.items():
        if len(offsets[split]) == 1:  # an empty file cannot be mapped
            place.unlink()
            continue
        np.array(offsets[split], np.int64).tofile(place.with_suffix(".idx"))
        counts[split] |= {"num_documents": len(offsets[split]) - 1, "num_tokens": offsets[split][-1]}
    done.parent.mkdir(exist_ok=True)
    artifact.write_json(done, counts)
    return counts


def documents(encode: Encode, files: list[Path]) -> Iterator[tuple[str, str, list[int]]]:
    """(URL, text, token ids without EOS) of every row of the files, a batch at a time.

    Raises:
        ContractError: a file lacks a column.
    """
    for file in files:
        missing = {"url", "text"} - set(pq.read_schema(file).names)
        if missing:
            raise artifact.ContractError(f"{file}: no column {', '.join(sorted(missing))}; found {pq.read_schema(file).names}")
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=["url", "text"]):
            urls, texts = batch["url"].to_pylist(), batch["text"].to_pylist()
            yield from zip(urls, texts, encode(texts), strict=True)


if __name__ == "__main__":
    stage.main(run)
