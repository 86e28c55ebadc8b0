"""Attention within documents and the C kernels against transformers' own modules, in value and gradient."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config

from mathpipe.pretrain import attention, fast_cpu, model

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False, "initializer_range": 0.2, "max_position_embeddings": 512,
}  # fmt: skip


def networks(kind):
    """The same weights twice: for us, and for transformers' own attention without any kernel of ours."""
    torch.manual_seed(0)
    config = Qwen2Config(**SIZES) if kind == "qwen2" else LlamaConfig(**SIZES)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return network, copy.deepcopy(network)


def compare(loss, expected, ours, theirs):
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad(loss.sum(), list(ours.parameters()))
    for one, other in zip(found, torch.autograd.grad(expected.sum(), list(theirs.parameters())), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)


def plain_loss(network, ids, **arguments):
    logits = network(input_ids=ids, **arguments).logits[:, :-1].transpose(1, 2)
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:], reduction="none").sum(1)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("length", [7, attention.BLOCK + 9])
def test_plain_causal_batches(kind, length):
    ours, theirs = networks(kind)
    ids = torch.randint(0, 50, (3, length))
    compare(model.TokenLoss(ours)(ids, ids), plain_loss(theirs, ids), ours, theirs)


@pytest.mark.parametrize("kept", [1024, 0])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_documents_equal_the_same_documents_apart(kind, kept, monkeypatch):
    """With our kernels, and by scaled_dot_product_attention, document by document."""
    monkeypatch.setattr(attention, "MAX_KEPT", kept)
    ours, theirs = networks(kind)
    parts = [torch.randint(0, 50, (1, n)) for n in (5, attention.BLOCK + 3, 1, 30)]
    ids = torch.cat([*parts, torch.zeros(1, 6, dtype=torch.long)], 1)
    labels, positions, documents = ids.clone(), torch.zeros_like(ids), torch.full_like(ids, -1)
    labels[0, -6:] = -100
    start = 0
    for number, part in enumerate(parts):
        place = slice(start, start + part.shape[1])
        labels[0, start] = -100
        positions[0, place], documents[0, place] = torch.arange(part.shape[1]), number
        start = place.stop
    expected = sum(plain_loss(theirs, part) for part in parts)
    compare(model.TokenLoss(ours)(ids, labels, positions, documents), expected, ours, theirs)


def test_changing_one_document_leaves_the_logits_of_the_others(monkeypatch):
    ours, _ = networks("llama")
    seen = []
    ours.model.norm.register_forward_hook(lambda module, arguments, out: seen.append(out.detach()))
    documents = torch.tensor([[0] * 6 + [1] * 5, [0] * 4 + [1] * 4 + [-1] * 3])
    ids = torch.randint(0, 50, documents.shape)
    changed = ids.clone()
    changed[0, :6] = (ids[0, :6] + 7) % 50
    for batch in (ids, changed):
        model.TokenLoss(ours)(batch, batch, None, documents)
    assert seen[0].shape == (1, 19, 32)  # padding is not computed
    torch.testing.assert_close(seen[0][:, 6:], seen[1][:, 6:], atol=1e-6, rtol=0)
    assert (seen[0][:, :6] - seen[1][:, :6]).abs().max() > 0.01


def test_padding_masks_and_caches_still_hold():
    ours, theirs = networks("llama")
    model.prepare(ours, torch.device("cpu"))
    ids, mask = torch.randint(2, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    ours.generation_config.pad_token_id = theirs.generation_config.pad_token_id = 0
    arguments = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(ours.generate(**arguments), theirs.generate(**arguments))


def test_saved_files_do_not_know_of_the_kernels(tmp_path):
    ours, theirs = networks("llama")
    names = list(theirs.state_dict())
    ids = torch.randint(0, 50, (1, 5))
    model.TokenLoss(ours)(ids, ids)
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert list(again.state_dict()) == names
    assert isinstance(again, LlamaForCausalLM)
    assert again.config._attn_implementation == "sdpa"
    torch.testing.assert_close(again(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_without_a_compiler_transformers_own_modules_run(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    fast_cpu.library.cache_clear()
    ours, theirs = networks("llama")
    ids = torch.randint(0, 50, (2, 9))
    compare(model.TokenLoss(ours)(ids, ids), plain_loss(theirs, ids), ours, theirs)
    assert "no C compiler" in caplog.text
    fast_cpu.library.cache_clear()


def test_a_loss_that_is_not_a_number_stays_one():
    ours, _ = networks("llama")
    with torch.no_grad():
        ours.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    ids = torch.randint(0, 50, (1, 5))
    assert model.TokenLoss(ours)(ids, ids).isnan().all()
