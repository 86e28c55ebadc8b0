"""Training from a model that exists: its weights and tokenizer are kept, and they must go with the tokens."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from corpus_artifacts import finish, folder
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, Qwen2Config

from mathpipe.pipeline import artifact
from mathpipe.pipeline.artifact import ContractError
from mathpipe.pretrain import model, tokens, train, train_tokenizer
from mathpipe.pretrain import tokenizer as bpe
from mathpipe.pretrain.config import PretrainConfig, TokenizerConfig, TokenizerInputs, TokensConfig, TokensInputs

TEXTS = [f"The sum of {n} and {n + 1} is {2 * n + 1}." for n in range(300)]
SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
KINDS: dict[str, Callable[[int], Any]] = {
    "llama": lambda size: LlamaConfig(vocab_size=size, num_key_value_heads=1, **SIZES),
    "qwen2": lambda size: Qwen2Config(vocab_size=size, num_key_value_heads=2, tie_word_embeddings=True, **SIZES),
    "gpt_neox": lambda size: GPTNeoXConfig(vocab_size=size, **SIZES),
}


def start_model(path: Path, kind: str, vocabulary: Any, num_embeddings: int) -> Path:
    """A model folder as the hub has them, with more embeddings than tokens."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(KINDS[kind](num_embeddings)).save_pretrained(path)
    vocabulary.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and tokens made with their tokenizer, kept by the tokenizer stage."""
    path = tmp_path_factory.mktemp("start")
    vocabulary = bpe.train(TEXTS, 300)
    for kind in KINDS:
        start_model(path / kind, kind, vocabulary, 320)
    corpus, kept, made = (folder(path, name) for name in ("corpus", "tokenizer", "tokens"))
    artifact.write_parquet(corpus / "data" / "00000.parquet", pa.table({"url": [f"u{i}" for i in range(300)], "text": TEXTS}))
    config = TokenizerConfig(pretrained=str(path / "llama"))
    finish(kept, train_tokenizer.run(config, TokenizerInputs(finish(corpus, {})), kept))
    finish(made, tokens.run(TokensConfig(held_out_frac=0.1), TokensInputs(corpus, kept), made))
    return path


def test_a_model_s_own_tokenizer_passes(base: Path) -> None:
    bpe.require_same(str(base / "llama"), bpe.load(base / "tokenizer" / "tokenizer"), 320)


def test_another_tokenizer_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    kept = bpe.load(base / "tokenizer" / "tokenizer")
    other = start_model(tmp_path / "other", "llama", bpe.train(["Words of another kind, and more words."] * 9, 310), 320)
    with pytest.raises(ContractError, match=rf"{other}: its tokenizer of \d+ tokens is not the one of \d+ tokens at .*/tokenizer, "):
        bpe.require_same(str(other), kept, 320)
    with pytest.raises(ContractError, match=r"9 embeddings for \d+ tokens"):
        bpe.require_same(str(base / "llama"), kept, 9)
    altered = bpe.load(base / "llama")
    altered.backend_tokenizer.pre_tokenizer = None  # the same vocabulary, cut otherwise
    with pytest.raises(ContractError, match="set tokenizer.pretrained"):
        bpe.require_same(str(base / "llama"), altered, 320)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_model_s_own_whatever_its_parts_are_called(base: Path, kind: str) -> None:
    network = model.load(base / kind).eval()
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cross_entropy(network(ids).logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").sum(1)
    parts = [network(part).logits[:, :-1] for part in ids.split(12, 1)]
    alone = sum(torch.nn.functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none").sum(1)
                for logits, part in zip(parts, ids.split(12, 1), strict=True))  # fmt: skip
    loss = model.TokenLoss(network)
    torch.testing.assert_close(loss(ids, ids), expected)
    documents, labels = torch.arange(24).expand(2, 24) // 12, ids.clone()
    labels[:, 12] = -100  # the first token of the second document follows from nothing
    torch.testing.assert_close(loss(ids, labels, documents_BT=documents), alone)


def test_a_context_beyond_the_model_s_positions_is_refused(base: Path) -> None:
    config = PretrainConfig(start=str(base / "llama"), context=128, batch_tokens=128, micro_batch_tokens=128)
    with pytest.raises(ContractError, match="llama: reads 64 tokens at most, fewer than context 128; lower the context"):
        train.start_model(config, bpe.load(base / "tokenizer" / "tokenizer"))


def test_a_start_model_that_changes_or_is_not_there_is_noticed(base: Path, tmp_path: Path) -> None:
    config, kept = PretrainConfig(start=str(tmp_path / "m")), TokenizerConfig(pretrained=str(tmp_path / "m"))
    with pytest.raises(ValueError, match="no model folder at .*/m; put it there or set pretrain.start"):
        config.require(config.runtime)
    assert config.fingerprint() is None and PretrainConfig().fingerprint() is None
    shutil.copytree(base / "llama", tmp_path / "m")
    config.require(config.runtime)
    before = config.fingerprint()
    assert before == kept.fingerprint() and {"model.safetensors", "tokenizer.json"} <= before.keys()
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    assert config.fingerprint() != before


def test_training_starts_from_the_weights_and_keeps_the_tokenizer(base: Path, tmp_path: Path) -> None:
    """With a learning rate of 0 the result is the start model, bit by bit; with isolated documents, of a kind that is no Llama."""
    start = base / "gpt_neox"
    settings = ["context = 16", "max_position = 64", "batch_tokens = 64", "micro_batch_tokens = 32", "total_tokens = 128"]
    settings += ["peak_lr = 0.0", "warmup_steps = 0", "isolate = true"]
    (tmp_path / "c.toml").write_text("\n".join(["[pretrain]", f"start = '{start}'", *settings]))
    named = [word for name in ("tokens", "tokenizer") for word in ("--in", f"{name}={base / name}")]
    command = [sys.executable, "-m", "mathpipe.pretrain.train", "--config", str(tmp_path / "c.toml"), *named]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = model.load(start), model.load(tmp_path / "out" / "model")
    assert after.config.model_type == "gpt_neox" and after.get_input_embeddings().num_embeddings == 320
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert bpe.load(tmp_path / "out" / "model").get_vocab() == bpe.load(start).get_vocab()
