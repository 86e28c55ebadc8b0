"""The one schema of SFT examples, in memory and as parquet rows: question, segments, answer, format, language."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mathpipe.pipeline import artifact
from mathpipe.sft import prompts

BYTES_PER_TOKEN = 4
"""For the estimate in `num_tokens`, as in the corpus."""
SEGMENT = pa.struct([("kind", pa.string()), ("text", pa.string())])
SCHEMA = pa.schema(
    {
        "id": pa.int64(), "url": pa.string(), "host": pa.string(), "text": pa.string(), "num_tokens": pa.int64(), "question": pa.string(),
        "segments": pa.list_(SEGMENT), "answer": pa.string(), "format": pa.string(), "language": pa.string(), "source": pa.string(),
        "verified": pa.string(),
    }
)  # fmt: skip
"""`text` is question and answer, for decontamination; `verified` what running the programs gave (verify.py), empty where none ran."""


@dataclass(frozen=True)
class Segment:
    """A piece of an answer: `text`, `code` (a program) or `output` (what the program above printed)."""

    kind: str
    text: str


@dataclass(frozen=True)
class Example:
    """One training example; `format` is cot, pot (a program alone) or tir, `answer` the final one ("" where none is known)."""

    question: str
    segments: tuple[Segment, ...]
    answer: str
    format: str
    source: str
    language: str = "en"

    @property
    def prompt(self) -> str:
        return prompts.render(self.question, self.format, self.language)

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """The answer as (text, whether the loss counts)."""
        return prompts.render_answer((s.kind, s.text) for s in self.segments)

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(text for text, _ in self.pieces)

    def of_kind(self, kind: str) -> list[str]:
        """Texts of the segments of a kind."""
        return [s.text for s in self.segments if s.kind == kind]


def to_row(example: Example, number: int, id_: int, verified: str) -> dict[str, Any]:
    """The row of SCHEMA of record `number` of its source."""
    text = example.question + "\n" + example.text.strip()
    return {
        "id": id_, "url": f"examples://{example.source}/{number}", "host": example.source, "text": text,
        "num_tokens": -(-len(text.encode()) // BYTES_PER_TOKEN), "question": example.question,
        "segments": [{"kind": s.kind, "text": s.text} for s in example.segments], "answer": example.answer, "format": example.format,
        "language": example.language, "source": example.source, "verified": verified,
    }  # fmt: skip


def load(examples: Path, clean: Path | None = None) -> Iterator[Example]:
    """Examples of an artifact in order, without those that decontamination (`clean`) removed or cut.

    Raises:
        ContractError: a column is missing.
    """
    ids = clean_ids(clean) if clean else None
    for table in artifact.read_columns(examples, ["id", "question", "segments", "answer", "format", "source", "language"]):
        if ids is not None:
            table = table.filter(pc.is_in(table["id"], ids))
        for batch in table.drop_columns("id").to_batches(max_chunksize=1000):
            for row in batch.to_pylist():
                yield Example(**row | {"segments": tuple(Segment(**s) for s in row["segments"])})


def clean_ids(clean: Path) -> pa.Array:
    """Ids of the rows that decontamination left as they were."""
    kept = pa.concat_tables(artifact.read_columns(clean, ["id"]))["id"]
    cut = pa.concat_tables(artifact.read_columns(clean, ["id"], "rejects"))["id"]
    return kept.filter(pc.invert(pc.is_in(kept, pc.unique(cut)))).combine_chunks()
