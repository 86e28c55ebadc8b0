"""Log-probabilities of packed responses equal those of whole sequences, in value and gradient, however they are packed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from mathpipe.grpo.packed import pack, split
from mathpipe.grpo.policy import Policy
from mathpipe.pretrain import fast_cpu

PAD = 1
PROMPTS = [[5, 6, 7, 8]] * 3 + [[9, 10]] * 3 + [[5, 6, 7, 8]]
RESPONSES = [[11, 12, 0], [13, 0], [14, 15, 16], [0], [17, PAD, 0, 18, 0], [19], [11]]
"""A response may contain the pad or the EOS token's id, may be a lone EOS, and may end without EOS."""
TOKENS = st.lists(st.integers(0, 31), min_size=1, max_size=12)
OUTPUTS = st.lists(st.tuples(TOKENS, TOKENS, st.floats(0.3, 2.0)), min_size=1, max_size=6)


def make_network():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config)


PLAIN = make_network().double()
POLICY = Policy(make_network())


def padded_log_probs(prompts, responses, temperatures):
    """log π and entropy of every response token by the plain model, in fp64, on a batch padded on the right."""
    width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = torch.full((len(prompts), width), PAD)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[row, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
    logp = torch.log_softmax(PLAIN(ids).logits / torch.tensor(temperatures)[:, None, None], -1)
    places = [range(len(p) - 1, len(p) + len(r) - 1) for p, r in zip(prompts, responses, strict=True)]
    found = torch.cat([logp[row, place, responses[row]] for row, place in enumerate(places)])
    return found, torch.cat([-(logp[row, place].exp() * logp[row, place]).sum(1) for row, place in enumerate(places)])


def gradient(network, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]).float()


def weights(count):
    return torch.linspace(-1, 1, count).sin()


def check(prompts, responses, temperatures):
    packed = pack(prompts, responses)
    logp, entropy = POLICY(packed, torch.tensor(temperatures)[packed.output_M], with_entropy=True)
    expected, expected_entropy = padded_log_probs(prompts, responses, temperatures)
    assert logp.dtype == torch.float32 and not entropy.requires_grad
    torch.testing.assert_close(logp, expected.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy.detach().float(), atol=1e-5, rtol=1e-5)
    found = gradient(POLICY, (logp * weights(len(logp))).sum())
    wanted = gradient(PLAIN, (expected * weights(len(logp))).sum())
    assert (found - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


@settings(deadline=None, max_examples=60)
@given(OUTPUTS, st.booleans())
def test_packed_equals_padded(outputs, same_prompt):
    prompts, responses, temperatures = map(list, zip(*outputs, strict=True))
    check([prompts[0]] * len(prompts) if same_prompt else prompts, responses, temperatures)


@pytest.mark.parametrize("temperatures", [[1.0] * 7, [0.7] * 7, [0.5, 1.0, 2.0, 0.7, 0.8, 0.9, 1.1]])
def test_lone_eos_pad_ids_cut_responses_and_a_temperature_of_their_own(temperatures):
    check(PROMPTS, RESPONSES, temperatures)


def test_without_kernels_too(monkeypatch):
    monkeypatch.setattr(fast_cpu, "usable", lambda *tensors: False)
    check(PROMPTS, RESPONSES, [0.8] * 7)


def test_neighbours_alone_share_a_prompt():
    assert len(pack(PROMPTS, RESPONSES).ids_L) == 4 + 2 + 4 + sum(map(len, RESPONSES))


@pytest.mark.parametrize("max_tokens", [1, 9, 14, 1000])
def test_neither_value_nor_gradient_depends_on_micro_batches(max_tokens):
    whole, _ = POLICY(pack(PROMPTS, RESPONSES))
    expected = gradient(POLICY, (whole * weights(len(whole))).sum())
    ends = torch.tensor([len(r) for r in RESPONSES]).cumsum(0).tolist()
    POLICY.zero_grad()
    for part in split(PROMPTS, RESPONSES, max_tokens):
        logp, _ = POLICY(pack([PROMPTS[n] for n in part], [RESPONSES[n] for n in part]))
        place = slice(ends[part[0]] - len(RESPONSES[part[0]]), ends[part[-1]])
        torch.testing.assert_close(logp, whole[place], atol=1e-6, rtol=1e-6)
        (logp * weights(len(whole))[place]).sum().backward()
    found = torch.cat([p.grad.flatten() for p in POLICY.parameters()])
    POLICY.zero_grad()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_what_a_response_does_not_see_does_not_matter():
    logp, _ = POLICY(pack(PROMPTS, RESPONSES))
    others, _ = POLICY(pack(PROMPTS, [[3, 3], *RESPONSES[1:3], [4, 4, 4], *RESPONSES[4:]]))
    torch.testing.assert_close(logp[3:8], others[2:7], atol=1e-6, rtol=0)
    assert (logp[:2] - others[:2]).abs().max() > 0.01


def test_entropy_by_hand():
    """Equal logits of 32 tokens: log 32 at any temperature, and log π = -log 32."""
    network = make_network()
    torch.nn.init.zeros_(network.lm_head.weight)
    logp, entropy = Policy(network)(pack([[5]], [[6, 7]]), torch.tensor([0.5, 2.0]), with_entropy=True)
    log_32 = torch.full((2,), 32.0).log()
    torch.testing.assert_close(entropy, log_32)
    torch.testing.assert_close(logp.detach(), -log_32)


def test_activation_checkpointing_changes_nothing():
    network = make_network()
    policy = Policy(network)
    packed = pack(PROMPTS, RESPONSES)
    expected = gradient(policy, policy(packed)[0].sum())
    network.gradient_checkpointing_enable()
    network.train()
    torch.testing.assert_close(gradient(policy, policy(packed)[0].sum()), expected, atol=1e-6, rtol=1e-6)
