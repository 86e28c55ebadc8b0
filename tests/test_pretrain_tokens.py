"""Token shards: every document of every source once, in order, also after a kill and for any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from corpus_artifacts import digests, finish, folder
from hypothesis import given, settings
from hypothesis import strategies as st

from mathpipe.pipeline import artifact
from mathpipe.pipeline.artifact import ContractError
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain import tokens
from mathpipe.pretrain.config import TokensConfig, TokensInputs

MATH = [f"Let $x_{n} = {n * 37}$ and \\frac{{a}}{{b}} be given. 数学 – naïve\n" for n in range(200)]
CODE = [f"def f{n}(x):\n    return '<|end|>'\n" for n in range(60)]


def write(path: Path, texts: list[str], prefix: str, num_files: int) -> None:
    for number in range(num_files):
        part = texts[number * len(texts) // num_files : (number + 1) * len(texts) // num_files]
        urls = [f"https://{prefix}/{text[:20]}" for text in part]
        artifact.write_parquet(path / "data" / f"{prefix}-{number:05d}.parquet", pa.table({"url": urls, "text": part}))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TokensInputs:
    base = tmp_path_factory.mktemp("tokens")
    corpus, sources, vocabulary = (folder(base, name) for name in ("corpus", "sources", "tokenizer"))
    write(corpus, MATH, "crawl", 7)
    write(sources, CODE, "stack-code", 2)
    write(sources, MATH[:5], "arxiv", 1)
    bpe.train(MATH, 300).save_pretrained(vocabulary / "tokenizer")
    return TokensInputs(finish(corpus, {}), vocabulary, finish(sources, {}))


def make(inputs: TokensInputs, out: Path, **values: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    facts = tokens.run(TokensConfig(held_out_frac=0.2, shard_tokens=1_000, **values), inputs, out)
    finish(out, facts)
    return facts


def test_shards_hold_every_document_once_and_in_order(inputs: TokensInputs, tmp_path: Path) -> None:
    facts = make(inputs, tmp_path)
    vocabulary = bpe.load(inputs.tokenizer / "tokenizer")
    assert set(facts["sources"]) == {"math", "stack-code", "arxiv"} and facts["eos"] == vocabulary.eos_token_id
    assert len(list((tmp_path / "train" / "math").glob("*.bin"))) > 1
    for source, texts in {"math": MATH, "stack-code": CODE, "arxiv": MATH[:5]}.items():
        found: dict[str, list[str]] = {}
        for split in tokens.SPLITS:
            here = found[split] = []
            for index in sorted((tmp_path / split / source).glob("*.idx")):
                offsets, shard = np.fromfile(index, np.int64), np.fromfile(index.with_suffix(".bin"), facts["dtype"])
                assert offsets[-1] == len(shard)
                assert (np.flatnonzero(shard == facts["eos"]) == offsets[1:] - 1).all(), "what looks like EOS inside a document is text"
                here += [vocabulary.decode(shard[a : b - 1].tolist()) for a, b in zip(offsets, offsets[1:], strict=False)]
            counts = facts["sources"][source][split]
            assert counts["num_documents"] == len(here) and counts["num_bytes"] == sum(len(text.encode()) for text in here)
            assert counts["num_tokens"] == len(tokens.read(tmp_path, split, source))
        assert sorted(found["train"] + found["held_out"]) == sorted(texts)
        assert found["train"] == [text for text in texts if text in set(found["train"])]
    assert 10 < facts["sources"]["math"]["held_out"]["num_documents"] < 80
    for split in tokens.SPLITS:
        for name in tokens.COUNTS:
            assert facts[split][name] == sum(source[split][name] for source in facts["sources"].values())


def test_a_killed_stage_keeps_its_shards_and_workers_do_not_matter(
    inputs: TokensInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = make(inputs, tmp_path / "a", runtime=Runtime(num_workers=1))
    assert make(inputs, tmp_path / "b", runtime=Runtime(num_workers=4)) == facts
    parts = ("train", "held_out", "shards")
    assert digests(tmp_path / "a", *parts) == digests(tmp_path / "b", *parts)
    tokens.marker(tmp_path / "b", "math", 1).unlink()
    (tmp_path / "b" / "train" / "math" / "00001.bin").write_bytes(b"half of it")
    done = [(file, file.stat().st_mtime_ns) for file in (tmp_path / "b" / "train").rglob("*.bin") if file.name != "00001.bin"]
    assert make(inputs, tmp_path / "b") == facts and digests(tmp_path / "a", *parts) == digests(tmp_path / "b", *parts)
    assert done == [(file, file.stat().st_mtime_ns) for file, _ in done]


def test_without_sources_there_is_the_corpus_alone(inputs: TokensInputs, tmp_path: Path) -> None:
    assert set(make(TokensInputs(inputs.corpus, inputs.tokenizer), tmp_path)["sources"]) == {"math"}


@pytest.mark.parametrize("name", ["math-00000", "code"])
def test_a_file_that_names_no_other_source_is_refused(inputs: TokensInputs, tmp_path: Path, name: str) -> None:
    path = folder(tmp_path, "sources")
    artifact.write_parquet(path / "data" / f"{name}.parquet", pa.table({"url": ["u"], "text": ["t"]}))
    with pytest.raises(ContractError, match=rf"{name}.parquet: expected <source>-<number>.parquet of a source that is not 'math'"):
        tokens.files_by_source(TokensInputs(inputs.corpus, inputs.tokenizer, path))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 210), st.integers(0, 210))
@settings(max_examples=100, deadline=None)
def test_the_view_over_shards_is_the_array(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], start: int, stop: int) -> None:
    base = tmp_path_factory.mktemp("view")
    flat = np.arange(sum(sizes), dtype="<u2")
    files = [base / f"{i:05d}.bin" for i in range(len(sizes))]
    for file, part in zip(files, np.split(flat, np.cumsum(sizes)[:-1]), strict=True):
        part.tofile(file)
    view = tokens.Tokens(files, "<u2")
    assert len(view) == len(flat) and view[start:stop].tolist() == flat[start:stop].tolist()
