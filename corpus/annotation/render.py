"""What a sample page shows: its row in the pages artifact, and its text as HTML without anything that could run."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mathpipe.corpus.annotation.katex import Formula, Renderers

COLUMNS = ("id", "url", "num_tokens", "text")
MAX_CHARS, MAX_FORMULAS, MAX_FORMULA_CHARS = 20_000, 300, 2_000
NUM_TEXTS, NUM_GROUPS = 128, 4
"""Rendered texts, and row groups with their text, kept in memory."""
DELIMITER = re.compile(r"(?<!\\)(\\[\[\]()])")
CLOSING = {r"\(": r"\)", r"\[": r"\]"}
CODE_LINE = re.compile(r"^(?: {4}|\t|>>>|\.\.\. |\w*> |\$ |In \[)|\S {3,}\S", re.MULTILINE)
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Control characters, and those that reorder or hide text."""


@dataclass(frozen=True)
class Page:
    """A sample page as the pages artifact has it; `text` is empty where it was not asked for."""

    id: int
    url: str
    num_tokens: int
    text: str = ""


class Texts:
    """Pages and their text as HTML, the last ones kept; used from any thread."""

    def __init__(self) -> None:
        self.renderers = Renderers()
        self._lock = threading.Lock()
        self._with_text = lru_cache(NUM_GROUPS)(read_group)
        self._without_text = lru_cache(NUM_GROUPS * 8)(read_group)
        self._html = lru_cache(NUM_TEXTS)(self._render)

    def page(self, pages: Path, page_id: int, *, with_text: bool = False) -> Page:
        """One page.

        Raises:
            KeyError: no such page.
            OSError: the artifact is gone.
        """
        file, group = place(pages, page_id)
        with self._lock:  # a row group is read once
            table = (self._with_text if with_text else self._without_text)(file, group, COLUMNS if with_text else COLUMNS[:-1])
        index = pc.index(table["id"], page_id).as_py()
        if index < 0:
            raise KeyError(page_id)
        row = {name: table[name][index].as_py() for name in table.column_names}
        text = row["text"].decode("utf-8", "replace") if with_text else ""
        return Page(page_id, row["url"].decode("utf-8", "replace"), row["num_tokens"], text)

    def html(self, pages: Path, page_id: int) -> tuple[str, str]:
        """(the page's text as HTML, what was left out of it or "")."""
        return self._html(pages, page_id)

    def _render(self, pages: Path, page_id: int) -> tuple[str, str]:
        return to_html(self.page(pages, page_id, with_text=True).text, self.renderers)


@lru_cache(1024)
def _ranges(file: Path) -> list[tuple[int, int]]:
    """Lowest and highest id by row group."""
    metadata = pq.read_metadata(file)
    column = metadata.schema.names.index("id")
    statistics = [metadata.row_group(group).column(column).statistics for group in range(metadata.num_row_groups)]
    return [(each.min, each.max) for each in statistics]


def place(pages: Path, page_id: int) -> tuple[Path, int]:
    """(file, row group) of a page: ids are archive number × 2³² + record number.

    Raises:
        KeyError: no such page.
        OSError: there is no such file.
    """
    file = pages / "data" / f"{page_id >> 32:05d}.parquet"
    for group, (low, high) in enumerate(_ranges(file)):
        if low <= page_id <= high:
            return file, group
    raise KeyError(page_id)


def read_group(file: Path, group: int, columns: tuple[str, ...]) -> pa.Table:
    """Columns of a row group, strings as bytes."""
    table = pq.ParquetFile(file).read_row_group(group, columns=list(columns), use_threads=False)
    schema = pa.schema([(field.name, pa.binary() if pa.types.is_string(field.type) else field.type) for field in table.schema])
    return table.cast(schema)


def seen(text: Any) -> str:
    """Text in which nothing is hidden or reordered: what cannot be seen stands there as its code.

    >>> seen("a\\u202eb")
    'a␣202Eb'
    """
    return UNSEEN.sub(lambda match: f"␣{ord(match[0]):04X}", str(text))


def to_html(text: str, renderers: Renderers) -> tuple[str, str]:
    """(paragraphs, code and formulas of a page as HTML, what was left out or "")."""
    blocks = [split(block) for block in re.split(r"\n(?:[ \t]*\n)+", text[:MAX_CHARS].strip("\n"))]
    formulas = [piece for block in blocks for piece in block if not isinstance(piece, str)]
    different = list(dict.fromkeys(formula for formula in formulas if len(formula[0]) <= MAX_FORMULA_CHARS))
    wanted = different[:MAX_FORMULAS]
    known = dict(zip(wanted, renderers.mathml(wanted), strict=True)) if wanted else {}
    left_out = []
    if len(text) > MAX_CHARS:
        left_out.append(f"the first {MAX_CHARS:,} of {len(text):,} characters")
    if len(different) > MAX_FORMULAS:
        left_out.append(f"the first {MAX_FORMULAS} of {len(different):,} formulas rendered")
    return "\n".join(block_html(block, known) for block in blocks if block), "; ".join(left_out)


def split(block: str) -> list[str | Formula]:
    r"""A block's text and formulas in order.

    >>> split(r"if \(x\) then \[y\]")
    ['if ', ('x', False), ' then ', ('y', True)]
    """
    tokens = DELIMITER.split(block)
    pieces: list[str | Formula] = []
    i = 0
    while i < len(tokens):
        if i + 2 < len(tokens) and CLOSING.get(tokens[i]) == tokens[i + 2]:
            pieces.append((tokens[i + 1], tokens[i] == r"\["))
            i += 3
            continue
        if tokens[i]:
            pieces.append(tokens[i])
        i += 1
    return pieces


def block_html(block: Sequence[str | Formula], known: dict[Formula, str | None]) -> str:
    """A paragraph, or code where a line of it looks so."""
    is_code = CODE_LINE.search("".join(piece for piece in block if isinstance(piece, str)))
    html = "".join(escape(clean(piece)) if isinstance(piece, str) else formula_html(piece, known.get(piece)) for piece in block)
    return f"<pre>{html}</pre>" if is_code else f"<p>{html}</p>"


def formula_html(formula: Formula, mathml: str | None) -> str:
    """MathML, or the source as code."""
    tex, is_display = formula
    if mathml:
        return f'<span class="{"display" if is_display else "inline"}">{mathml}</span>'
    left, right = (r"\[", r"\]") if is_display else (r"\(", r"\)")
    return f"<code>{escape(left + clean(tex) + right)}</code>"


def clean(text: str) -> str:
    """Without characters that HTML cannot hold."""
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)
