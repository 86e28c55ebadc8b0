"""Answers kept from run to run, so that a change of one stage has its models evaluated and no others.

The file of a model and a task is found by what its answers depend on: the model (models.py), the suite's rows (their digest), the
settings of the task, the engine, and the number below. It lies in `runs/<profile>/.evaluated/`, beside the artifacts and not in one:
an artifact of this stage is another one whenever any of its inputs is, and goes with `mathpipe gc`; the name has no hash behind a dash,
so neither the plan nor `gc` takes the folder for an artifact. It may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mathpipe.pipeline import log

FOLDER = ".evaluated"
VERSION = 2
"""Raised when prompts, extraction, grading or an engine change."""


def key(**depends_on: Any) -> str:
    """Name of the answers that depend on these values."""
    return hashlib.sha256(json.dumps({"version": VERSION, **depends_on}, sort_keys=True).encode()).hexdigest()[:32]


def take(out: Path, name: str, file: Path) -> bool:
    """Whether the answers of that key were there; they are then in `file`."""
    kept = out.parent / FOLDER / f"{name}.parquet"
    if is_whole(kept):
        copy(kept, file)
        return True
    return False


def keep(out: Path, name: str, file: Path) -> None:
    """Keep the answers in `file` under that key."""
    copy(file, out.parent / FOLDER / f"{name}.parquet")


def is_whole(file: Path) -> bool:
    """Whether these answers are there and can be read; what a power cut or a broken disk left behind is made again."""
    try:
        pq.read_table(file)
    except FileNotFoundError:
        return False
    except (pa.ArrowException, OSError) as error:
        log.logger().warning("%s cannot be read, its questions are asked again (%s)", file, error)
        return False
    return True


def copy(source: Path, target: Path) -> None:
    """The file appears when it is complete; several evaluations may write it at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
