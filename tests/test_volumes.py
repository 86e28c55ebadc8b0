"""The volume sweep: how volumes are cut, and how their models are compared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from corpus_artifacts import finish, folder, rows

from mathpipe.corpus import volume
from mathpipe.corpus.round_config import SelectConfig, VolumeInputs
from mathpipe.pipeline import artifact
from mathpipe.pretrain import model, tokens, volumes
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import PretrainConfig, VolumesConfig, VolumesInputs

FRAC = 0.3


def ranking(base: Path) -> tuple[Path, Path]:
    """Ten pages of 10 tokens with scores .9, .8, … .0, and their scores."""
    ids = list(range(10))
    pages, scores = folder(base, "pages"), folder(base, "scores")
    table = {"id": ids, "url": [f"https://a.org/{i}" for i in ids], "host": ["a.org"] * 10, "text": ["t"] * 10, "num_tokens": [10] * 10}
    artifact.write_parquet(pages / "data" / "00000.parquet", pa.table(table))
    artifact.write_parquet(
        scores / "data" / "00000.parquet", pa.table({"id": ids, "score": pa.array([0.9 - i / 10 for i in ids], pa.float32())})
    )
    return finish(pages, {}), finish(scores, {"round": 1})


def test_each_volume_adds_the_first_budget_once_more(tmp_path: Path) -> None:
    pages, scores = ranking(tmp_path)
    smaller = finish(folder(tmp_path, "round1.select"), {"round": 1, "num_pages": 2, "num_tokens": 20})
    config = SelectConfig(top_tokens=(25, 1000))
    for number, chosen in ((2, 5), (3, 7), (4, 10)):
        out = folder(tmp_path, f"volume{number}.select")
        smaller = finish(out, volume.run(config, VolumeInputs(pages, scores, smaller), out))
        assert artifact.read_manifest(out)["volume"] == number
        assert [row["id"] for row in rows(out)] == list(range(chosen)), "the best pages of N × 25 tokens"
    with pytest.raises(ValueError, match="volume 5: no page beyond the 10 of volume 4"):
        volume.run(config, VolumeInputs(pages, scores, smaller), folder(tmp_path, "volume5.select"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> VolumesInputs:
    """Four untrained models of different seeds on four nested corpora."""
    base = tmp_path_factory.mktemp("volumes")
    texts = [f"Page {i}: the square of {i} is {i * i}, and its cube is {i**3}." for i in range(40)]
    urls = [f"https://a.org/{i}" for i in range(40)]
    problem = "Ann has three apples and buys four more at the shop; how many apples has she?"
    kinds = {"url": ["gsm8k/train/0", "gsm8k/train/1", "gsm8k/test/0", "cmath/train/0"], "text": [problem, "1 + 1 = 2", problem, problem]}
    kinds |= {"benchmark": ["gsm8k", "gsm8k", "gsm8k", "cmath"], "split": ["train", "train", "test", "train"]}
    bench = folder(base, "benchmarks")
    artifact.write_parquet(bench / "data" / "b.parquet", pa.table(kinds))
    vocabulary = bpe.train(texts, 300)
    paths: dict[str, Path] = {"benchmarks": finish(bench, {}), "tokens": finish(folder(base, "tokens"), {"held_out_frac": FRAC})}
    for number in range(1, 5):
        corpus, trained = folder(base, f"volume{number}.corpus"), folder(base, f"volume{number}")
        n = 10 * number
        table = {"url": urls[:n], "text": texts[:n], "score": [1 - i / 50 for i in range(n)], "num_tokens": [10] * n}
        artifact.write_parquet(corpus / "data" / "00000.parquet", pa.table(table))
        paths[f"corpus{number}"] = finish(corpus, {"num_pages": n, "num_tokens": 10 * n})
        config = PretrainConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, seed=number, initializer_range=0.3)
        model.save(model.build(config, len(vocabulary), vocabulary.eos_token_id, vocabulary.pad_token_id), vocabulary, trained)
        paths[f"volume{number}"] = finish(trained, {"num_tokens": 1000, "num_corpus_tokens": 250 * number})
    return VolumesInputs(**paths)


def run(inputs: VolumesInputs, out: Path, **settings: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return volumes.run(VolumesConfig(**settings), inputs, out)


def test_no_model_is_judged_on_what_it_saw(measured: VolumesInputs) -> None:
    texts = volumes.held_out_texts(VolumesConfig(max_chars=20), measured)
    assert [text for text in texts if text[0] == "problems"] == [("problems", "gsm8k/train/0", "Ann has three apples")], "train, 10 words"
    core, wide = ({url for kind, url, _ in texts if kind == f"{name} pages"} for name in ("core", "wide"))
    held_out = {f"https://a.org/{i}" for i in range(40) if tokens.is_held_out(f"https://a.org/{i}", FRAC)}
    assert core == held_out & {f"https://a.org/{i}" for i in range(10)} and core | wide == held_out and not core & wide
    assert len(core) > 0 and len(wide) > 0
    assert len(volumes.held_out_texts(VolumesConfig(num_texts=1), measured)) == 3


def test_the_loss_of_a_text_does_not_depend_on_its_batch_and_is_the_trainer_s(measured: VolumesInputs, tmp_path: Path) -> None:
    run(measured, tmp_path / "wide", batch_tokens=10_000)
    run(measured, tmp_path / "narrow", batch_tokens=1)
    wide, narrow = (rows(tmp_path / name, "items") for name in ("wide", "narrow"))
    assert [row["url"] for row in wide] == [row["url"] for row in narrow]
    assert np.allclose([row["nats"] for row in wide], [row["nats"] for row in narrow], rtol=1e-5)
    path = measured.volume1 / "model"
    loss, vocabulary = model.TokenLoss(model.load(path)), bpe.load(path)
    text = next(text for _, url, text in volumes.held_out_texts(VolumesConfig(), measured) if url == wide[0]["url"])
    import torch

    ids = torch.tensor([[vocabulary.eos_token_id, *bpe.encode(vocabulary, text)]])
    assert wide[0]["nats"] == pytest.approx(float(loss(ids, ids).sum().detach()), rel=1e-5)
    assert wide[0]["num_bytes"] == len(text.encode())


def test_the_table_has_a_line_a_volume_and_survives_a_kill(measured: VolumesInputs, tmp_path: Path) -> None:
    facts = run(measured, tmp_path / "a")
    table = artifact.read_metrics(tmp_path / "a")
    assert [(row["volume"], row["pages"], row["tokens"], row["epochs"]) for row in table][::3] == [(1, 10, 100, 4.0), (4, 40, 400, 1.0)]
    assert [row["lowest_score"] for row in table] == pytest.approx([0.82, 0.62, 0.42, 0.22])
    assert table[0]["core pages difference"] == table[0]["core pages stderr"] == 0
    assert facts["judged_on"] == "problems" and facts["texts"]["problems"] == 1
    assert table[1]["problems stderr"] is None, "one text has no standard error"
    losses = [row["problems bits_per_byte"] for row in table]
    assert facts["best"] == 1 + losses.index(min(losses))
    assert table[2]["core pages difference"] == pytest.approx(table[2]["core pages bits_per_byte"] - table[0]["core pages bits_per_byte"])
    before = {file.name: file.read_bytes() for file in (tmp_path / "a" / "items").iterdir()}
    (tmp_path / "a" / "items" / "volume3.parquet").unlink()
    assert run(measured, tmp_path / "a") == facts and artifact.read_metrics(tmp_path / "a") == table
    assert {file.name: file.read_bytes() for file in (tmp_path / "a" / "items").iterdir()} == before


def test_without_problems_the_pages_decide_and_the_manifest_says_so(measured: VolumesInputs, tmp_path: Path) -> None:
    facts = run(measured, tmp_path / "a", benchmarks=("sat",))
    assert facts["judged_on"] == "core pages" and "problems" not in facts["texts"]
    assert not any(key.startswith("problems") for row in artifact.read_metrics(tmp_path / "a") for key in row)


def test_standard_error_by_hand() -> None:
    """Values 3, 3 on sizes 1, 2: ratio 2, residuals 1 and -1, √(2 · 2 / 1) / 3."""
    assert volumes.ratio_and_stderr(np.array([3.0, 3.0]), np.array([1, 2])) == (2.0, pytest.approx(2 / 3))
    equal = np.full(50, 2.0)
    assert volumes.ratio_and_stderr(np.arange(50.0), equal)[1] == pytest.approx(np.arange(50.0).std(ddof=1) / math.sqrt(50) / 2)
