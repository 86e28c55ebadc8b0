"""round N, step train: a fastText classifier, seeds against random crawl pages (section 2.1).

Round 1's positives are an external data set (`seed_path`, OpenWebMath in the paper) or a random share of the pages of
`seed_hosts`; later rounds add the crawl pages that the round before put into its `seeds.parquet`. Negatives are random crawl
pages that are no positives; with `negatives = "random"` mathematics among them stays, as in the paper. One thread: the same input
gives the same model.

Artifact: `model.bin`, `seeds.parquet` (ids of the crawl pages among the positives).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus.round_config import ClassifierConfig, ClassifierInputs
from mathpipe.pipeline import artifact, stage

LABELS = {True: "__label__math", False: "__label__other"}
PUNCTUATION = re.compile(r"([^\w\s])")


def run(config: ClassifierConfig, inputs: ClassifierInputs, out: Path) -> dict[str, Any]:
    """Train and test; returns counts and the held-out F1."""
    number = artifact.read_manifest(inputs.previous)["round"] + 1 if inputs.previous else 1
    rng = np.random.default_rng([config.seed, number])
    id_N, is_seed_host_N = page_ids(inputs.pages, config.seed_hosts)
    external = read_texts(Path(config.seed_path), config.num_seeds) if config.seed_path else []
    if inputs.previous:
        seeds = pq.read_table(inputs.previous / "seeds.parquet")["id"].to_numpy()
    else:
        seeds = id_N[:0] if config.seed_path else draw(rng, id_N[is_seed_host_N], config.num_seeds)
    if not len(seeds) and not external:
        raise ValueError(f"classifier.seed_hosts: {inputs.pages} has no page of {', '.join(config.seed_hosts)}; name hosts of the crawl")
    num_positives = len(seeds) + len(external)
    candidates = np.setdiff1d(id_N, seeds)
    if config.negatives == "uncollected" and inputs.previous:
        candidates = np.setdiff1d(candidates, pq.read_table(inputs.previous / "collected.parquet")["id"].to_numpy())
    negatives = draw(rng, candidates, round(num_positives * config.negatives_per_positive))
    lines = external_lines(external, config.max_words) + page_lines(inputs.pages, seeds, negatives, config.max_words)
    lines = [lines[i] for i in rng.permutation(len(lines))]
    num_held_out = round(len(lines) * config.held_out_frac)
    model = train(config, lines[num_held_out:], out)
    artifact.write_parquet(out / "seeds.parquet", pa.table({"id": np.sort(seeds)}))
    return {
        "round": number, "num_positives": num_positives, "num_negatives": len(negatives), "num_seeds": len(seeds),
        "max_words": config.max_words, "held_out": f1(model, lines[:num_held_out]),
    }  # fmt: skip


def page_ids(pages: Path, seed_hosts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all pages, and which of them lie on a seed host."""
    table = pa.concat_tables(artifact.read_columns(pages, ["id", "host"]))
    return table["id"].to_numpy(), pc.is_in(table["host"], pa.array(seed_hosts, pa.string())).to_numpy()


def draw(rng: np.random.Generator, ids: np.ndarray, num: int) -> np.ndarray:
    """`num` of `ids` without repetition, or all of them."""
    return rng.permutation(ids)[:num]


def read_texts(file: Path, limit: int) -> list[str]:
    """The first `limit` texts of a parquet or JSONL file.

    Raises:
        ValueError: the file is missing, or has no `text`.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file (classifier.seed_path); give a parquet or JSONL file with a text column")
    try:
        if file.suffix == ".parquet":
            return [text for batch in pq.ParquetFile(file).iter_batches(columns=["text"]) for text in batch["text"].to_pylist()][:limit]
        with file.open(encoding="utf-8") as lines:
            return [json.loads(line)["text"] for line, _ in zip(lines, range(limit), strict=False)]
    except (KeyError, json.JSONDecodeError, pa.ArrowInvalid) as error:
        raise ValueError(f"{file}: expected parquet or JSONL with a text column (classifier.seed_path): {error!r}") from None


def classifier_text(text: str, max_words: int) -> str:
    """What the classifier reads of a page: lower case, punctuation apart, one line.

    >>> classifier_text("Let f(x)\\nbe", 9)
    'let f ( x ) be'
    """
    return " ".join(PUNCTUATION.sub(r" \1 ", text[: 20 * max_words].lower()).split()[:max_words])


def external_lines(texts: Sequence[str], max_words: int) -> list[str]:
    """Training lines of external positives."""
    return [f"{LABELS[True]} {classifier_text(text, max_words)}" for text in texts]


def page_lines(pages: Path, seeds: np.ndarray, negatives: np.ndarray, max_words: int) -> list[str]:
    """Training lines of crawl pages, in the order of the pages."""
    return [
        f"{LABELS[is_seed]} {classifier_text(text, max_words)}"
        for is_seed, ids in ((True, seeds), (False, negatives))
        for text in texts_of(pages, ids)
    ]


def texts_of(pages: Path, ids: np.ndarray) -> Iterator[str]:
    """Texts of the pages with these ids."""
    wanted = pa.array(ids)
    for table in artifact.read_columns(pages, ["id", "text"]):
        yield from table.filter(pc.is_in(table["id"], wanted))["text"].to_pylist()


def train(config: ClassifierConfig, lines: Sequence[str], out: Path) -> Any:
    """Train on labelled lines and write `model.bin`."""
    file = out / "train.txt"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    model = fasttext.train_supervised(
        str(file), dim=config.dim, lr=config.lr, wordNgrams=config.word_ngrams, minCount=config.min_count,
        epoch=config.epoch, bucket=config.bucket, thread=1, seed=config.seed, verbose=0,
    )  # fmt: skip
    partial = out / ".model.bin.tmp"
    model.save_model(str(partial))
    partial.replace(out / "model.bin")
    file.unlink()
    return model


def probabilities(model: Any, texts: Sequence[str]) -> np.ndarray:
    """P(math) of prepared texts, in [0, 1]: fastText returns up to 1.00001."""
    if not texts:
        return np.zeros(0, np.float32)
    label_NK, p_NK = model.predict(list(texts), k=2)
    p_N = [p[list(labels).index(LABELS[True])] if LABELS[True] in labels else 0.0 for labels, p in zip(label_NK, p_NK, strict=True)]
    return np.clip(np.array(p_N, np.float32), 0.0, 1.0)


def f1(model: Any, lines: Sequence[str]) -> dict[str, Any]:
    """Precision, recall and F1 of the label math on held-out lines; the negatives' mathematics counts as wrong."""
    if not lines:
        return {"n": 0}
    truth_N = np.array([line.startswith(LABELS[True]) for line in lines])
    found_N = probabilities(model, [line.partition(" ")[2] for line in lines]) >= 0.5
    true_positives = int((truth_N & found_N).sum())
    num_found, num_true = int(found_N.sum()), int(truth_N.sum())
    return {
        "n": len(lines), "precision": true_positives / max(1, num_found), "recall": true_positives / max(1, num_true),
        "f1": 2 * true_positives / max(1, num_found + num_true),
    }  # fmt: skip


if __name__ == "__main__":
    stage.main(run)
