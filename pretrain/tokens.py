"""Stage tokens: the corpus as flat memory-mapped token shards with a document index.

    train/00000.bin    token ids, little-endian uint16 (uint32 above 65,535), documents one after another, EOS after each
    train/00000.idx    int64 start offset of each document, then the total: document i is [idx[i], idx[i + 1])
    held_out/…         the same for documents whose URL hash falls below `held_out_frac`
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from mathpipe.pipeline import artifact, log, stage
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import TokensConfig, TokensInputs

SPLITS = ("train", "held_out")


class ShardWriter:
    """Appends documents to the shards of one split."""

    def __init__(self, folder: Path, dtype: Any, shard_tokens: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        self.num_shards = self.num_documents = self.num_tokens = self.num_bytes = 0
        self.documents: list[np.ndarray] = []
        self.pending = 0

    def add(self, ids: list[int], num_bytes: int) -> None:
        """Append one document (EOS included)."""
        self.documents.append(np.asarray(ids, self.dtype))
        self.pending += len(ids)
        self.num_documents += 1
        self.num_tokens += len(ids)
        self.num_bytes += num_bytes
        if self.pending >= self.shard_tokens:
            self.close()

    def close(self) -> None:
        """Write what is pending as one shard."""
        if not self.documents:
            return
        name = self.folder / f"{self.num_shards:05d}"
        np.concatenate(self.documents).tofile(name.with_suffix(".bin"))
        np.cumsum([0, *map(len, self.documents)], dtype=np.int64).tofile(name.with_suffix(".idx"))
        self.num_shards, self.documents, self.pending = self.num_shards + 1, [], 0


def is_held_out(url: str, frac: float) -> bool:
    """Whether a document belongs to the held-out split; depends on its URL alone."""
    return int.from_bytes(hashlib.sha256(url.encode()).digest()[:8], "big") < frac * 2**64


def read(path: Path, split: str) -> np.memmap:
    """All tokens of a split as one memory-mapped array (of the first shard; shards are concatenated when there are several).

    Raises:
        ContractError: the split has no tokens.
    """
    manifest = artifact.read_manifest(path)
    files = sorted((path / split).glob("*.bin"))
    if not files:
        raise artifact.ContractError(f"{path / split}: no token shards; the corpus is too small for a {split} split")
    arrays = [np.memmap(file, manifest["dtype"], mode="r") for file in files]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)  # type: ignore[return-value]


def run(config: TokensConfig, inputs: TokensInputs, out: Path) -> dict[str, Any]:
    """Tokenise every document; facts: documents, tokens and bytes of both splits."""
    tokenizer = bpe.load(inputs.tokenizer / "tokenizer")
    dtype = "<u2" if len(tokenizer) <= 65_536 else "<u4"
    writers = {split: ShardWriter(out / split, dtype, config.shard_tokens) for split in SPLITS}
    total = artifact.read_manifest(inputs.corpus).get("num_pages", 0)
    with log.Progress(out, total=total, unit="documents") as progress:
        for table in artifact.read_columns(inputs.corpus, ["url", "text"]):
            urls, texts = table["url"].to_pylist(), table["text"].to_pylist()
            for url, text, ids in zip(urls, texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True):
                split = SPLITS[is_held_out(url, config.held_out_frac)]
                writers[split].add([*ids, tokenizer.eos_token_id], len(text.encode()))
            progress.advance(len(urls), f"{writers['train'].num_tokens:,} tokens")
    for writer in writers.values():
        writer.close()
    facts: dict[str, Any] = {"dtype": dtype, "held_out_frac": config.held_out_frac}
    for split, writer in writers.items():
        facts[split] = {"num_documents": writer.num_documents, "num_tokens": writer.num_tokens, "num_bytes": writer.num_bytes}
    return facts


if __name__ == "__main__":
    stage.main(run)
