"""Log-probabilities with a shared prompt equal those of whole sequences; gradients do not depend on micro-batches."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mathpipe.grpo.loss import grpo_loss, outcome_advantages
from mathpipe.grpo.policy import Policy, make_groups

PAD = 1
PROMPTS = [[5, 6, 7, 8], [9, 10]]
RESPONSES = [[[11, 12, 0], [13, 0], [14, 15, 16]], [[0], [17, PAD, 18, 0], [19]]]
"""A response may contain the pad token's id, may be a lone EOS, and may end without EOS."""


@pytest.fixture
def policy():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return Policy(LlamaForCausalLM(config))


def whole_sequence_log_probs(policy, prompt, response, temperature):
    logits = policy.model(torch.tensor([prompt + response])).logits[0] / temperature
    return torch.log_softmax(logits, -1)[range(len(prompt) - 1, len(prompt) + len(response) - 1), response]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_shared_prompt_equals_whole_sequences(policy, temperature):
    found = policy(make_groups(PROMPTS, RESPONSES, PAD), temperature)
    flat = [(prompt, response) for prompt, group in zip(PROMPTS, RESPONSES, strict=True) for response in group]
    for row, (prompt, response) in enumerate(flat):
        expected = whole_sequence_log_probs(policy, prompt, response, temperature)
        torch.testing.assert_close(found[row, : len(response)], expected, atol=1e-5, rtol=1e-5)
        assert found[row, len(response) :].abs().sum() == 0


def test_a_model_of_another_family_is_a_policy_too():
    """Its body and head have other names."""
    torch.manual_seed(0)
    policy = Policy(GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval())
    found = policy(make_groups(PROMPTS[:1], RESPONSES[:1], PAD))
    for row, response in enumerate(RESPONSES[0]):
        expected = whole_sequence_log_probs(policy, PROMPTS[0], response, 1.0)
        torch.testing.assert_close(found[row, : len(response)], expected, atol=1e-5, rtol=1e-5)


def gradient(policy, parts):
    policy.zero_grad()
    advantages = outcome_advantages(torch.tensor([[1.0, 0, 0], [0, 1, 1]]), 1)
    for part in parts:
        groups = make_groups([PROMPTS[n] for n in part], [RESPONSES[n] for n in part], PAD)
        logp = policy(groups)
        losses = grpo_loss(logp, logp.detach(), logp.detach() - 0.1, advantages[part].flatten(), groups.mask_NT, 0.2, 0.04)
        (losses.sum() / 6).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_gradient_does_not_depend_on_micro_batches(policy):
    torch.testing.assert_close(gradient(policy, [[0, 1]]), gradient(policy, [[0], [1]]), atol=1e-6, rtol=1e-5)


def test_gradient_reaches_the_prompt_through_the_cache(policy):
    """Against autograd of whole sequences: the shared prompt must not cut the graph."""
    shared = gradient(policy, [[0, 1]])
    policy.zero_grad()
    advantages = outcome_advantages(torch.tensor([[1.0, 0, 0], [0, 1, 1]]), 1).flatten()
    row = 0
    for prompt, group in zip(PROMPTS, RESPONSES, strict=True):
        for response in group:
            logp = whole_sequence_log_probs(policy, prompt, response, 1.0)[None]
            mask = torch.ones(1, len(response), dtype=torch.bool)
            (grpo_loss(logp, logp.detach(), logp.detach() - 0.1, advantages[row : row + 1], mask, 0.2, 0.04).sum() / 6).backward()
            row += 1
    torch.testing.assert_close(shared, torch.cat([p.grad.flatten() for p in policy.parameters()]), atol=1e-6, rtol=1e-4)
