"""Artifacts: one directory per stage and recipe, complete if and only if `manifest.json` exists.

    runs/<profile>/<stage>-<hash8>/
        manifest.json   written last, atomically: what made it, from what, how long it took, what is in it
        config.toml     the stage's own section and [runtime], resolved
        metrics.jsonl   one JSON object a line
        progress.json   how far a running stage is (see log.py)
        log.txt         everything the stage printed
        rejects/        parquet of what was dropped, each row with a reason
        data/           the payload of a text artifact: parquet with at least `url` and `text`

The hash covers stage name, VERSION, the stage's config, the fingerprint of what it reads from outside, and the hashes of
its inputs; it says what an artifact is made from, so it is known before the stage runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"
"""Folder of what only an unfinished stage needs; it goes once the manifest stands."""


class ContractError(RuntimeError):
    """An artifact is not what its reader needs; the message names the path, what was found and what to do."""


def recipe_hash(
    stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str], fingerprint: Any = None, attempt: int = 0
) -> str:
    """Eight hexadecimal digits that name a stage's artifact.

    Args:
        config: the stage's section as plain values (`config.to_table`).
        inputs: input name → hash of that input's manifest.
        fingerprint: what the stage reads from outside the chain (package versions, file sizes), JSON-serialisable.
        attempt: 0, or the number of a forced rerun of the same recipe.
    """
    recipe: dict[str, Any] = {"stage": stage, "version": version, "config": config, "inputs": dict(inputs)}
    if fingerprint is not None:
        recipe["fingerprint"] = fingerprint
    if attempt:
        recipe["attempt"] = attempt
    text = json.dumps(recipe, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def is_complete(path: Path) -> bool:
    """Whether `path` holds a finished artifact."""
    return (path / MANIFEST).is_file()


def read_manifest(path: Path) -> dict[str, Any]:
    """Manifest of a finished artifact.

    Raises:
        ContractError: there is none, or it is not JSON.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = "an unfinished artifact" if path.is_dir() else "nothing"
        raise ContractError(f"{file}: missing ({found} there); run the stage that makes it first") from None
    except json.JSONDecodeError as error:
        raise ContractError(f"{file}: not JSON ({error}); delete {path} and run its stage again") from None
    if not isinstance(manifest, dict) or "stage" not in manifest or "hash" not in manifest:
        raise ContractError(f"{file}: no stage and hash in it; delete {path} and run its stage again")
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never half of one."""
    partial = path.with_name(f".{path.name}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def append_metrics(out: Path, **values: Any) -> None:
    """Append one line to `metrics.jsonl`; numbers should be plain ints and floats."""
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of an artifact's `metrics.jsonl`, oldest first, but a last one that was cut off; empty when the stage wrote none."""
    file = path / "metrics.jsonl"
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].split("\n") if line]


def json_lines(values: Iterable[Any]) -> str:
    """One JSON value a line."""
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def read_lines(file: Path) -> list[Any]:
    """The values of a file of JSON lines (`splitlines` would also break at U+2028)."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def write_lines(file: Path, values: Iterable[Any]) -> None:
    """JSON lines, atomically."""
    partial = file.with_name(f".{file.name}.tmp")
    try:
        partial.write_text(json_lines(values), encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def truncate_metrics(out: Path, keep: int) -> None:
    """Drop metrics with `step` > `keep`: a stage resuming after step `keep` writes them again."""
    write_lines(out / "metrics.jsonl", [row for row in read_metrics(out) if row.get("step", 0) <= keep])


def parquet_files(path: Path, folder: str = "data") -> list[Path]:
    """The parquet files of an artifact's folder in name order.

    Raises:
        ContractError: there are none.
    """
    files = sorted((path / folder).glob("*.parquet"))
    if not files:
        raise ContractError(f"{path / folder}: no parquet files; delete {path} and run its stage again")
    return files


def read_columns(path: Path, columns: Iterable[str], folder: str = "data") -> Iterator[Any]:
    """pyarrow tables of the given columns, one per parquet file.

    Raises:
        ContractError: a column is missing.
    """
    import pyarrow.parquet as pq

    wanted = list(columns)
    for file in parquet_files(path, folder):
        missing = set(wanted) - set(pq.read_schema(file).names)
        if missing:
            raise ContractError(f"{file}: no column {', '.join(sorted(missing))}; found {pq.read_schema(file).names}")
        yield pq.read_table(file, columns=wanted)


def write_parquet(path: Path, table: Any) -> None:
    """Write a pyarrow table as zstd parquet, atomically, with its folder."""
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)


@contextlib.contextmanager
def parquet_writer(path: Path, schema: Any) -> Iterator[Any]:
    """A pyarrow ParquetWriter (zstd) for a file that appears when all its row groups are written."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        yield writer
    partial.replace(path)
