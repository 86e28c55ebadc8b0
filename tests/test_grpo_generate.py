"""The decode loop: its log-probabilities are the policy's, its samples do not depend on what else is asked for."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

from mathpipe.grpo import generate
from mathpipe.grpo.generate import TransformersSampler
from mathpipe.grpo.packed import pack
from mathpipe.grpo.policy import Policy
from mathpipe.grpo.sampler import Request
from mathpipe.pretrain import fast_cpu
from mathpipe.pretrain.generate import draw, noise

EOS = 0
SIZES = {
    "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "tie_word_embeddings": False, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "wide": LlamaConfig(**SIZES | {"hidden_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}),
    "qwen2": Qwen2Config(**SIZES),
    "neox": GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    "gpt2": GPT2Config(vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=64),
}
REQUESTS = [
    Request((5, 6, 7), 3, 1.0, 1.0, 11),
    Request((5, 6, 7), 2, 0.6, 1.0, 12),
    Request((9,), 4, 1.3, 0.7, 13),
    Request((4, 4) * 20, 1, 0.0, 1.0, 14),
]


def sampler(kind="llama", eos=EOS):
    torch.manual_seed(0)
    return TransformersSampler(AutoModelForCausalLM.from_config(CONFIGS[kind]), eos)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_log_probs_are_the_policy_s_at_each_sample_s_temperature(kind, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(fast_cpu, "usable", lambda *tensors: False)
    ours = sampler(kind)
    found = list(itertools.chain(*ours.sample(REQUESTS, 9)))
    assert [one.prompt for one in found] == [request.prompt for request in REQUESTS for _ in range(request.num_samples)]
    packed = pack([one.prompt for one in found], [one.ids for one in found])
    temperature = torch.tensor([one.temperature or 1.0 for one in found])
    logp, _ = Policy(ours.model.eval())(packed, temperature[packed.output_M])
    torch.testing.assert_close(torch.tensor([value for one in found for value in one.logp]), logp.detach(), atol=1e-5, rtol=1e-5)


def test_the_same_request_gives_the_same_samples_whatever_else_is_asked_for(monkeypatch):
    ours = sampler()
    whole = [[one.ids for one in group] for group in ours.sample(REQUESTS, 9)]
    assert [[one.ids for one in ours.sample([request], 9)[0]] for request in REQUESTS] == whole
    monkeypatch.setattr(generate, "MAX_SAMPLES", 2)
    assert [[one.ids for one in group] for group in ours.sample(REQUESTS, 9)] == whole
    monkeypatch.setattr(generate, "MAX_CACHE_BYTES", 1)
    assert [[one.ids for one in group] for group in ours.sample(REQUESTS, 9)] == whole
    more = Request((5, 6, 7), 5, 1.0, 1.0, 11)
    assert [one.ids for one in ours.sample([more], 9)[0]][:3] == whole[0]
    assert len({one.ids for one in ours.sample([more], 9)[0]}) > 1
    assert [one.ids[:4] for one in ours.sample([more], 4)[0]][:3] == [ids[:4] for ids in whole[0]]


def test_greedy_is_generate_s():
    ours = sampler()
    prompts = [(5, 6, 7), (9,), (4, 4)]
    found = ours.sample([Request(prompt, 1, 0.0, 1.0, 0) for prompt in prompts], 12)
    for prompt, (one,) in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        expected = ours.model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=EOS, pad_token_id=1)
        assert one.ids == tuple(expected[0, len(prompt) :].tolist())


def test_every_eos_ends_a_response_and_a_cut_one_has_none():
    ends = [0, 3]
    found = sampler(eos=ends).sample([Request((5, 6), 40, 1.5, 1.0, 0)], 6)[0]
    assert {one.ids[-1] for one in found if one.finished} == set(ends)
    assert any(not one.finished for one in found)
    for one in found:
        assert not set(one.ids[:-1]) & set(ends) and len(one.ids) == len(one.logp) <= 6
        assert one.finished == (one.ids[-1] in ends) and (one.finished or len(one.ids) == 6)


def test_neither_training_mode_nor_random_numbers_change():
    ours = sampler()
    ours.model.train()
    before = torch.get_rng_state()
    responses = ours.sample(REQUESTS, 3, with_logp=False)
    assert ours.model.training and torch.equal(torch.get_rng_state(), before)
    assert all(one.logp == () for group in responses for one in group)


def test_draws_follow_the_distribution_at_the_temperature():
    """Noise spread evenly over [0, 1) hits each token as often as its probability says."""
    logits = torch.tensor([2.0, 0.0, 1.0, -30.0])
    for temperature in (0.5, 1.0):
        points = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        token, logp = draw(logits.expand(10_000, -1), torch.full((10_000,), temperature), torch.ones(10_000), points)
        probs = torch.softmax(logits / temperature, 0)
        torch.testing.assert_close(token.bincount(minlength=4) / 10_000, probs, atol=2e-4, rtol=0)
        torch.testing.assert_close(logp, probs.log()[token])


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    """p = .5, .3, .15, .05: .8 is reached by two tokens, .81 takes three; log-probabilities are those before the cut."""
    probs = torch.tensor([[0.15, 0.5, 0.05, 0.3]])
    points = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    for top_p, kept in ((0.79, {1, 3}), (0.81, {0, 1, 3}), (0.1, {1}), (1.0, {0, 1, 2, 3})):
        token, logp = draw(probs.log().expand(1000, -1), torch.ones(1000), torch.full((1000,), top_p), points)
        assert set(token.tolist()) == kept
        torch.testing.assert_close(logp, probs[0].log()[token])


def test_a_row_does_not_feel_the_top_p_of_another():
    logits, points = torch.randn(2, 50), torch.tensor([0.3, 0.9], dtype=torch.float64)
    alone, _ = draw(logits[:1], torch.ones(1), torch.ones(1), points[:1])
    beside, _ = draw(logits, torch.ones(2), torch.tensor([1.0, 0.5]), points)
    assert alone[0] == beside[0]


def test_noise_is_even_and_of_its_own_for_every_sample():
    values = torch.tensor([[noise(seed, number, 50).tolist() for number in range(20)] for seed in (0, 1)])
    assert values.unique().numel() == values.numel()
    assert abs(float(values.mean()) - 0.5) < 0.02


def test_weights_in_pieces_are_refused():
    ours = sampler()
    ours.model.lm_head.weight.data = torch.empty(0)  # as ZeRO 3 leaves them between passes
    with pytest.raises(ValueError, match="zero_stage 3"):
        ours.sample(REQUESTS, 3)


def test_a_copy_takes_over_weights_and_the_model_itself_keeps_its_own():
    ours, other = sampler(), sampler()
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(-1.0)
    changed = [one.ids for group in other.sample(REQUESTS, 9) for one in group]
    assert [one.ids for group in ours.sample(REQUESTS, 9) for one in group] != changed
    other.sync(other.model.named_parameters())
    ours.sync(other.model.named_parameters())
    for each in (ours, other):
        assert [one.ids for group in each.sample(REQUESTS, 9) for one in group] == changed
