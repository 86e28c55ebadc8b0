"""round N, step score: P(math) of every page, a sidecar under `data/` with the pages' ids in the pages' order."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import fasttext
import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.corpus import engine
from mathpipe.corpus.classifier import classifier_text, probabilities
from mathpipe.corpus.round_config import ScoreConfig, ScoreInputs
from mathpipe.pipeline import artifact, stage

SCHEMA = pa.schema([("id", pa.int64()), ("score", pa.float32())])
BATCH_PAGES = 2_000


def run(config: ScoreConfig, inputs: ScoreInputs, out: Path) -> dict[str, Any]:
    """Score each parquet file of the pages by a job; files that exist are kept."""
    trained = artifact.read_manifest(inputs.classifier)
    if trained.get("stopped"):  # select passes on what the round before collected
        return {"round": trained["round"], "num_pages": 0, "stopped": trained["stopped"]}
    files = artifact.parquet_files(inputs.pages)
    model, targets = inputs.classifier / "model.bin", [out / "data" / file.name for file in files]
    form = trained["max_words"], trained["text"]
    jobs = [(model, file, target, *form) for file, target in zip(files, targets, strict=True) if not target.exists()]
    engine.run_jobs(score_file, jobs, config.runtime, out, "files", "scoring", done=len(files) - len(jobs))
    return {"round": trained["round"], "num_pages": sum(pq.read_metadata(target).num_rows for target in targets)}


def score_file(model_file: Path, file: Path, target: Path, max_words: int, form: str) -> str:
    """`id` and `score` of one file of pages; returns a status line."""
    model = load_model(model_file)
    with artifact.parquet_writer(target, SCHEMA) as writer:
        for batch in pq.ParquetFile(file).iter_batches(BATCH_PAGES, columns=["id", "text"]):
            texts = [classifier_text(text, max_words, form) for text in batch["text"].to_pylist()]
            writer.write_table(pa.table([batch["id"], probabilities(model, texts)], schema=SCHEMA))
    return file.name


@functools.lru_cache(1)
def load_model(file: Path) -> Any:
    """The classifier, once per worker."""
    return fasttext.load_model(str(file))


if __name__ == "__main__":
    stage.main(run)
