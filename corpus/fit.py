"""fastText training in a process of its own.

With one thread fastText initialises a tenth of its input matrix and leaves the rest as the allocator gives it: zeroes in a new
process, but the old values of whatever was freed in one that has worked before. Those give other models, or "Encountered NaN".
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import fasttext


def fit(file: Path, model: Path, **options: Any) -> Any:
    """The model that `options` (of `fasttext.train_supervised`) make of a labelled file; written to `model`, atomically."""
    partial = model.with_name(f".{model.name}.tmp")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(_fit, str(file), str(partial), options).result()
    partial.replace(model)
    return fasttext.load_model(str(model))


def _fit(file: str, model: str, options: dict[str, Any]) -> None:
    fasttext.train_supervised(file, thread=1, verbose=0, **options).save_model(model)
