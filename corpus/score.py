"""round N, step score: P(math) of every page, a sidecar under `data/` with the pages' ids in the pages' order."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fasttext
import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.corpus.classifier import classifier_text, probabilities
from mathpipe.corpus.round_config import ScoreConfig, ScoreInputs
from mathpipe.pipeline import artifact, log, stage


def run(config: ScoreConfig, inputs: ScoreInputs, out: Path) -> dict[str, Any]:
    """Score each parquet file of the pages in a worker process; files that exist are kept."""
    trained = artifact.read_manifest(inputs.classifier)
    files = artifact.parquet_files(inputs.pages)
    missing = [file for file in files if not (out / "data" / file.name).exists()]
    with (
        log.Progress(out, len(files), "files", "scoring", done=len(files) - len(missing)) as progress,
        ProcessPoolExecutor(config.runtime.num_workers) as pool,
    ):
        model = inputs.classifier / "model.bin"
        jobs = [pool.submit(score_file, model, file, out / "data" / file.name, trained["max_words"]) for file in missing]
        for job in jobs:
            job.result()
            progress.advance()
    return {"round": trained["round"], "num_pages": sum(pq.read_metadata(out / "data" / file.name).num_rows for file in files)}


def score_file(model_file: Path, file: Path, target: Path, max_words: int) -> None:
    """`id` and `score` of one file of pages."""
    model = fasttext.load_model(str(model_file))
    table = pq.read_table(file, columns=["id", "text"])
    texts = [classifier_text(text, max_words) for text in table["text"].to_pylist()]
    artifact.write_parquet(target, pa.table({"id": table["id"], "score": probabilities(model, texts)}))


if __name__ == "__main__":
    stage.main(run)
