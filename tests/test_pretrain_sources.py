"""Sources of text beside the math corpus: files, data sets, source code, LaTeX, pages that no round took."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpus_artifacts import digests, finish, folder, rows

from mathpipe.corpus import docstrings, render, sources
from mathpipe.corpus.crawl import url_of
from mathpipe.corpus.sources_config import SourcesConfig, SourcesInputs, TextSource
from mathpipe.pipeline import artifact
from mathpipe.pipeline.config import ConfigError, build


def long(number: int) -> str:
    return f"All work and no play makes a dull page, number {number}. " * 5


@pytest.fixture
def inputs(tmp_path: Path) -> SourcesInputs:
    """Six pages in two files; the selection took the first of each, and has no file for what it did not read."""
    pages, selected = folder(tmp_path, "pages"), folder(tmp_path, "selected")
    for number in range(2):
        ids = [number * 2**32 + i for i in range(3)]
        table = {"id": ids, "url": [f"https://a.org/{i}" for i in ids], "text": [long(i) for i in ids]}
        artifact.write_parquet(pages / "data" / f"{number:05d}.parquet", pa.table(table))
        artifact.write_parquet(selected / "data" / f"{number:05d}.parquet", pa.table({"id": ids[:1]}))
    return SourcesInputs(finish(pages, {}), finish(selected, {}))


def collect(inputs: SourcesInputs, out: Path, source: TextSource, **values: Any) -> list[dict[str, Any]]:
    config = SourcesConfig(sources={"one": source}, **values)
    sources.collect(config, "one", 3, inputs.pages, inputs.selected, out)
    return rows(out)


def test_general_text_is_what_the_selection_left(inputs: SourcesInputs, tmp_path: Path) -> None:
    found = collect(inputs, tmp_path, TextSource("pages"))
    assert [row["url"].rpartition("/")[2] for row in found] == ["1", "2", str(2**32 + 1), str(2**32 + 2)]
    assert found[0] == {"id": 3 * 2**40, "url": "https://a.org/1", "host": "a.org", "text": long(1), "num_tokens": 63}


def test_code_is_whole_files_of_each_package_in_turn(inputs: SourcesInputs, tmp_path: Path) -> None:
    found = collect(inputs, tmp_path, TextSource("python", packages=("urllib3", "requests"), max_tokens=20_000))
    assert [row["host"] for row in found[:4]] == ["code:urllib3", "code:requests"] * 2
    root = docstrings.source_root("requests")
    for row in found:
        if row["host"] == "code:requests":
            assert row["text"] == (root / row["url"].removeprefix("code:requests/")).read_text(encoding="utf-8")
    assert 20_000 <= sum(row["num_tokens"] for row in found) < 20_000 + found[-1]["num_tokens"], "the last document reaches it"
    reasons = {row["reason"] for row in rows(tmp_path, "rejects")}
    assert reasons <= {"too short", "repeated"} and len({row["text"] for row in found}) == len(found)


FORMULAS = """r'''The function, :math:`\\int_0^x e^{-t^2} dt`.

    .. math::

       \\frac{a_b}{b}

    See `x`_ and words, words, words.'''
"""


def test_latex_is_documentation_with_formulas_that_is_no_page(
    inputs: SourcesInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path, "fake")
    (root / "a.py").write_text("".join(f"def {name}():\n    {FORMULAS.replace('words', name)}\n" for name in ("one", "two")))
    (root / "b.py").write_text(f'def three():\n    """{"No formula. " * 40}"""')
    monkeypatch.setattr(docstrings, "source_root", lambda package: root)
    one = next(found for found in docstrings.read_file("fake", root, root / "a.py", 10**6) if found.name == "one")
    artifact.write_parquet(inputs.pages / "data" / "00002.parquet", pa.table({"id": [9], "url": [url_of(one) + "#x"], "text": ["…"]}))
    (found,) = collect(inputs, folder(tmp_path, "out"), TextSource("latex", packages=("fake",)), min_chars=100)
    assert found["url"] == "latex:fake/a/two"
    assert found["text"].startswith("\\documentclass{article}\n\\title{fake.a.two}\n\\begin{document}\n\\maketitle\n\nThe function, $\\int")
    assert "$\\int_0^x e^{-t^2} dt$" in found["text"] and "\\frac{a_b}{b}" in found["text"] and "two, two" in found["text"]
    assert found["text"].endswith("\n\\end{document}\n")
    assert [(row["url"], row["reason"]) for row in rows(tmp_path / "out", "rejects")] == [("latex:fake/a/one", "in the crawl")]


def test_a_title_of_latex_has_no_bare_underscore() -> None:
    assert "\\title{a\\_b}" in render.render_latex("a_b", "Text.")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "folder"])
def test_files_and_data_sets_are_streamed(inputs: SourcesInputs, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same reader as for the hub, on files here; some of proof-pile-2's are empty."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # after the last row, for Arrow's sake
    packers: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstandard.compress}
    pack = packers.get(suffix.rpartition(".")[2], bytes)
    data = folder(tmp_path, "data-set")
    for number in range(3):
        texts = [long(10 * number + i) for i in range(10)]
        table: dict[str, list[Any]] = {"body": texts, "stars": list(range(10))}
        if suffix == "parquet":
            table["url"] = [f"https://b.org/{number}/{i}" for i in range(10)]
        lines = "".join(json.dumps({key: table[key][i] for key in table}) + "\n" for i in range(10)).encode()
        if suffix in ("parquet", "folder"):
            pq.write_table(pa.table(table), data / f"part-{number}.parquet")
        else:
            (data / f"part-{number}.{suffix}").write_bytes(pack(lines))
            (data / f"empty-{number}.{suffix}").write_bytes(pack(b""))
    kind = {"kind": "dataset", "name": str(data)} if suffix == "folder" else {"kind": "files", "paths": (str(data / f"*.{suffix}"),)}
    found = collect(inputs, folder(tmp_path, "out"), TextSource(**kind, column="body"))  # type: ignore[arg-type]
    assert sorted(row["text"] for row in found) == sorted(long(i) for i in range(30))
    assert [row["text"] for row in found] != [long(i) for i in range(30)], "shuffled"
    assert len({row["url"] for row in found}) == 30 and (found[0]["host"] == "b.org") == (suffix == "parquet")
    again = collect(inputs, folder(tmp_path, "again"), TextSource(**kind, column="body"))  # type: ignore[arg-type]
    assert again == found
    with pytest.raises(ValueError, match="no text in column 'text'.*columns: .*stars"):
        collect(inputs, folder(tmp_path, "wrong"), TextSource(**kind))  # type: ignore[arg-type]


def test_a_row_without_text_is_a_reject_and_costs_no_other(inputs: SourcesInputs, tmp_path: Path) -> None:
    lines = [{"text": long(i) if i % 2 else None} for i in range(6)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = collect(inputs, folder(tmp_path, "out"), TextSource("files", paths=(str(tmp_path / "some.jsonl"),)))
    assert sorted(row["text"] for row in found) == [long(1), long(3), long(5)]
    assert [row["reason"] for row in rows(tmp_path / "out", "rejects")] == ["no text"] * 3


def test_what_is_not_there_is_named(inputs: SourcesInputs, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.jsonl.*cannot be read"):
        collect(inputs, tmp_path, TextSource("files", paths=(str(tmp_path / "none.jsonl"),)))
    with pytest.raises(ValueError, match="no file at .*none.jsonl; put it there or set sources.sources.one.paths"):
        config = SourcesConfig(sources={"one": TextSource("files", paths=(str(tmp_path / "none.jsonl"),))})
        config.require(config.runtime)
    with pytest.raises(ValueError, match="'no_such_package' is not an installed package"):
        collect(inputs, tmp_path, TextSource("python", packages=("no_such_package",)))
    with pytest.raises(ValueError, match="source 'one' .pages.: no document of 5000 to 6000 characters"):
        collect(inputs, tmp_path, TextSource("pages"), min_chars=5000, max_chars=6000)


def test_a_killed_source_ends_the_same(inputs: SourcesInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small files; the kill leaves the first two of them, and half of the third under its temporary name."""
    monkeypatch.setattr(sources, "FILE_BYTES", 60_000)
    source = TextSource("python", packages=("urllib3", "requests"), max_tokens=90_000)
    whole, broken = folder(tmp_path, "whole"), folder(tmp_path, "broken")
    collect(inputs, whole, source, min_chars=900)
    files = sorted((whole / "data").iterdir())
    assert len(files) > 3 and any(rows(whole, "rejects"))
    for place in ("data", "rejects"):
        for file in files[:2]:
            folder(broken, place)
            shutil.copy(whole / place / file.name, broken / place / file.name)
    (broken / "data" / f".{files[2].name}.tmp").write_bytes(b"half")
    collect(inputs, broken, source, min_chars=900)
    (broken / "data" / f".{files[2].name}.tmp").unlink(missing_ok=True)
    assert digests(whole, "data", "rejects") == digests(broken, "data", "rejects")


def test_the_stage_counts_by_source_and_names_stand_ins(inputs: SourcesInputs, tmp_path: Path) -> None:
    code = TextSource("python", packages=("requests",), max_tokens=5_000)
    config = SourcesConfig(sources={"general": TextSource("pages", max_tokens=100), "code": code}, max_chars=30_000)
    facts = sources.run(config, inputs, tmp_path)
    assert facts["sources"]["general"] == {"num_documents": 2, "num_tokens": 126, "num_rejects": {}}
    assert set(facts["stand_ins"]) == {"code", "general"} and "GitHub" in facts["stand_ins"]["code"]
    assert facts["num_tokens"] == sum(row["num_tokens"] for row in rows(tmp_path)) and facts["num_pages"] == len(rows(tmp_path))
    assert {file.name for file in artifact.parquet_files(tmp_path)} == {"code-00000.parquet", "general-00000.parquet"}
    ids = [row["id"] for row in rows(tmp_path)]
    assert len(set(ids)) == len(ids), "unique over all sources, as decontamination wants"
    before = digests(tmp_path, "data")
    assert sources.run(config, inputs, tmp_path) == facts and digests(tmp_path, "data") == before


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"sources": {"math": {"kind": "pages"}}}, "not math"),
        ({"sources": {"my-code": {"kind": "pages"}}}, "lower-case letters"),
        ({"sources": {"code": {"kind": "git"}}}, "here sources.code: kind must be one of files, dataset, .*, found 'git'"),
        ({"sources": {"code": {"kind": "files"}}}, "kind 'files' needs paths"),
        ({"sources": {}}, "sources is empty"),
        ({"min_chars": 9, "max_chars": 8}, "need 1 <= min_chars <= max_chars"),
    ],
)
def test_bad_sources_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(SourcesConfig, table, "here")


def test_what_is_read_from_outside_is_in_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    files = TextSource("files", paths=(str(tmp_path / "*.jsonl"),))
    config = SourcesConfig(sources={"a": files, "b": TextSource("python", packages=("requests",))})
    before = config.fingerprint()
    assert set(before) == {"requests", str(file)}
    file.write_text("{}\n{}\n")
    assert config.fingerprint() != before
