"""Tokenizer, schedules and model of the pre-training stages."""

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mathpipe.pipeline import artifact
from mathpipe.pretrain import loss, model, optim, train_tokenizer
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import PretrainConfig, TokenizerConfig, TokenizerInputs

TEXTS = [f"Let $x_{n} = {n * 37}$ and \\frac{{a}}{{b}} be given. 数学 – naïve\n\n    def f(x):\n        return x\n" for n in range(200)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus")
    rows = {"url": [f"https://h/{n}" for n in range(len(TEXTS))], "text": TEXTS}
    artifact.write_parquet(path / "data" / "00000.parquet", pa.table(rows))
    artifact.write_json(path / "manifest.json", {"stage": "corpus", "hash": "0" * 8, "num_pages": len(TEXTS)})
    return path


@pytest.fixture(scope="module")
def tokenizer_artifact(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    facts = train_tokenizer.run(TokenizerConfig(vocab_size=300), TokenizerInputs(corpus), out)
    artifact.write_json(out / "manifest.json", {"stage": "tokenizer", "hash": "1" * 8, **facts})
    return out


def test_digits_are_split_and_pad_is_not_eos(tokenizer_artifact):
    tokenizer = bpe.load(tokenizer_artifact / "tokenizer")
    assert [tokenizer.decode([i]) for i in bpe.encode(tokenizer, "1234")] == ["1", "2", "3", "4"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) == 300


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_every_string_round_trips(tokenizer_artifact, text):
    tokenizer = bpe.load(tokenizer_artifact / "tokenizer") if not CACHE else CACHE[0]
    CACHE[:] = [tokenizer]
    assert tokenizer.decode(bpe.encode(tokenizer, text)) == text


CACHE: list = []


def test_paper_schedule_step_by_step():
    """2,000 warm-up steps; 31.6 % after 80 %, 10 % after 90 % (section 2.3)."""
    factor = [optim.lr_factor("paper", step, 10_000, 2_000) for step in range(10_000)]
    assert factor[0] == pytest.approx(1 / 2_000)
    assert factor[999] == pytest.approx(0.5)
    assert set(factor[2_000:8_000]) == {1.0}
    assert set(factor[8_000:9_000]) == {0.316}
    assert set(factor[9_000:]) == {0.1}
    assert {optim.lr_factor("note", s, 10_000, 2_000) for s in range(2_000, 9_000)} == {1.0}
    assert {optim.lr_factor("note", s, 10_000, 2_000) for s in range(9_000, 10_000)} == {0.1}
    assert {optim.lr_factor("constant", s, 100, 0) for s in range(100)} == {1.0}


def test_weight_decay_spares_norms():
    network = model.build(PretrainConfig(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2), 300, 0, 1)
    decayed, spared = optim.adamw(network, 1e-3, (0.9, 0.95), 0.1).param_groups
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in spared["params"]} == {1}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(network.parameters()))


def test_embeddings_are_untied_and_a_saved_model_opens_again(tokenizer_artifact, tmp_path):
    vocabulary = bpe.load(tokenizer_artifact / "tokenizer")
    network = model.build(PretrainConfig(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2), len(vocabulary), 0, 1)
    assert network.lm_head.weight.data_ptr() != network.model.embed_tokens.weight.data_ptr()
    model.save(network, vocabulary, tmp_path)
    model.save(network, vocabulary, tmp_path)  # replaces the first
    again = model.load(tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert len(bpe.load(tmp_path / "model")) == len(vocabulary)


def test_log_probs_by_chunks_equal_softmax(monkeypatch):
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 3 * 7)
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(10, 4), torch.nn.Linear(4, 7, bias=False), torch.randint(0, 7, (10,))
    temperature = torch.linspace(0.5, 1.5, 10)
    expected = torch.log_softmax(head(hidden) / temperature[:, None], -1)[range(10), targets]
    torch.testing.assert_close(model.log_probs(hidden, head, targets, temperature), expected)
    assert model.log_probs(hidden[:0], head, targets[:0]).shape == (0,)


def test_no_model_and_no_tokenizer_are_clear_errors(tmp_path):
    with pytest.raises(artifact.ContractError, match=str(tmp_path)):
        model.load(tmp_path)
    with pytest.raises(artifact.ContractError, match=str(tmp_path)):
        bpe.load(tmp_path)
