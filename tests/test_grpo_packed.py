"""Packed prompts and responses: places, micro-batches, and hidden states of many kinds of models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, LlamaForTokenClassification, Qwen2Config

from mathpipe.grpo.packed import hidden, pack, split
from mathpipe.pretrain import branches

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "tie_word_embeddings": False, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "neox": GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    "gpt2": GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=64),
}
TOKENS = st.lists(st.integers(0, 31), min_size=1, max_size=9)
GROUPS = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=4)


def flat(groups):
    """(prompts, responses), one of each per output."""
    return [prompt for prompt, members in groups for _ in members], [response for _, members in groups for response in members]


def test_places():
    packed = pack([[5, 6], [5, 6], [7], [5, 6]], [[8, 9, 0], [0], [8], [9, 9]])
    assert packed.ids_L.tolist() == [5, 6, 8, 9, 0, 0, 7, 8, 5, 6, 9, 9]
    assert packed.positions_L.tolist() == [0, 1, 2, 3, 4, 2, 0, 1, 0, 1, 2, 3]
    assert packed.target_M.tolist() == [8, 9, 0, 0, 8, 9, 9]
    assert packed.place_M.tolist() == [2, 3, 4, 5, 7, 10, 11]
    assert packed.predict_M.tolist() == [1, 2, 3, 1, 6, 9, 10]
    assert packed.output_M.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert packed.lengths_N.tolist() == [3, 1, 1, 2]
    assert packed.branches.groups == ((2, (3, 1)), (1, (1,)), (2, (2,)))


@pytest.mark.parametrize(("prompts", "responses"), [([], []), ([[]], [[1]]), ([[1]], [[]])])
def test_nothing_is_refused(prompts, responses):
    with pytest.raises(ValueError, match="must have a token"):
        pack(prompts, responses)


@given(GROUPS, st.integers(1, 40))
def test_micro_batches_hold_every_output_once_in_order_within_the_budget(groups, max_tokens):
    prompts, responses = flat(groups)
    found = split(prompts, responses, max_tokens)
    assert [n for part in found for n in part] == list(range(len(prompts)))
    for part in found:
        assert len(part) == 1 or len(pack([prompts[n] for n in part], [responses[n] for n in part]).ids_L) <= max_tokens


def test_a_group_that_fits_a_micro_batch_is_not_cut():
    prompts, responses = [[1, 2]] * 2 + [[3, 4]] * 2, [[5], [6], [7], [8]]
    assert split(prompts, responses, 7) == [[0, 1], [2, 3]]
    assert split(prompts, responses, 8) == [[0, 1, 2, 3]]
    assert split(prompts, responses, 3) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("kept", [0, 256])
@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_any_family_sees_a_response_s_own_prompt_and_nothing_else(kind, kernels, kept, monkeypatch):
    """In value and gradient, whatever blocks and whatever is kept for the backward pass."""
    monkeypatch.setattr(branches, "KEPT_KEYS", kept)
    monkeypatch.setattr(branches, "BLOCK", 4)
    monkeypatch.setattr(branches, "SCORES", 60)
    if not kernels:
        monkeypatch.setattr(branches.fast_cpu, "usable", lambda *tensors: False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    prompts, responses = flat([([5, 6, 7, 8, 9, 10], [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1]]), ([7], [[3]]), ([1, 2], [[9, 9, 9], [9, 9]])])
    expected, loss = [], 0.0
    for prompt, response in zip(prompts, responses, strict=True):
        states = model.base_model(torch.tensor([prompt + response])).last_hidden_state[0]
        expected.append(states[len(prompt) :])
        loss = loss + states[len(prompt) - 1 :].sin().sum()
    wanted = torch.autograd.grad(loss, list(model.base_model.parameters()))
    packed = pack(prompts, responses)
    states = hidden(model, packed)
    torch.testing.assert_close(states[packed.place_M], torch.cat(expected), atol=1e-5, rtol=1e-5)
    loss = states[packed.place_M].sin().sum() + states[[5, 5, 5, 16, 19, 19]].sin().sum()  # the ends of the prompts
    assert packed.ids_L[[5, 16, 19]].tolist() == [10, 7, 2]
    for one, other in zip(torch.autograd.grad(loss, list(model.base_model.parameters())), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_token_classifier_has_a_body_too():
    torch.manual_seed(0)
    model = LlamaForTokenClassification(LlamaConfig(**SIZES)).eval()
    packed = pack([[5, 6], [5, 6]], [[1, 2, 3], [4]])
    expected = model.base_model(torch.tensor([[5, 6, 4]])).last_hidden_state[0, 2]
    torch.testing.assert_close(hidden(model, packed)[packed.place_M[-1]], expected, atol=1e-5, rtol=1e-5)


def test_dropout_in_attention_is_refused():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, attention_dropout=0.1)).train()
    with pytest.raises(ValueError, match="dropout"):
        hidden(model, pack([[1]], [[2]]))


@settings(deadline=None)
@given(GROUPS)
def test_blocks_hold_every_token_once(groups):
    packed = pack(*flat(groups))
    rows = torch.cat([block.rows_nT.flatten() for block in packed.branches.blocks])
    assert sorted(rows[rows >= 0].tolist()) == list(range(len(packed.ids_L)))


def test_flash_attention_would_see_the_same():
    """Its queries lie in the order of tokens; query i of a document with K keys and Q queries sees the first K - Q + i + 1."""
    packed = pack([[5, 6], [5, 6], [7]], [[1, 2, 3], [4], [8]])
    seen, queries, keys = packed.branches.varying
    found = []
    for document in range(len(queries) - 1):
        own = seen[keys[document] : keys[document + 1]].tolist()
        count = int(queries[document + 1] - queries[document])
        found += [own[: len(own) - count + i + 1] for i in range(count)]
    assert found == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 5], [6], [6, 7]]
