"""The chunked loss equals the plain one, in value and in gradient, and holds no logits of the whole batch."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mathpipe.pretrain import loss, model
from mathpipe.pretrain.config import PretrainConfig


def plain(head, hidden, rows, targets, temperature=None):
    logits = F.linear(hidden[rows], head.weight)
    return F.cross_entropy(logits if temperature is None else logits / temperature[:, None], targets, reduction="none")


@given(st.integers(0, 9), st.integers(1, 40), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_equal_the_plain_loss(num_rows, chunk, with_temperature, in_forward, alike, seed):
    torch.manual_seed(seed)
    head, hidden = torch.nn.Linear(5, 7, bias=False).double(), torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    rows, targets = torch.randperm(9)[:num_rows], torch.randint(0, 7, (num_rows,))
    temperature = torch.rand(num_rows) + 0.5 if with_temperature else None
    weights = torch.full((num_rows,), 0.3) if alike else torch.randn(num_rows)
    expected = plain(head, hidden, rows, targets, temperature)
    before, loss.CHUNK_LOGITS["cpu"] = loss.CHUNK_LOGITS["cpu"], chunk
    found = loss.nll(head, hidden, rows, targets, temperature, in_forward)
    gradients = torch.autograd.grad((found * weights).sum(), [hidden, head.weight])
    loss.CHUNK_LOGITS["cpu"] = before
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients, torch.autograd.grad((expected * weights).sum(), [hidden, head.weight]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_rows_carry_their_own_losses_and_gradients():
    network = model.build(PretrainConfig(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2), 30, 0, 1)
    loss_of = model.TokenLoss(network)
    ids = torch.randint(2, 30, (3, 6))
    labels = ids.clone()
    labels[1, 2:4] = -100
    logits = network(input_ids=ids).logits[:, :-1].transpose(1, 2)
    expected = F.cross_entropy(logits, labels[:, 1:], reduction="none", ignore_index=-100).sum(1)
    found = loss_of(ids, labels)
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([1.0, -2.0, 0.5])
    parameters = list(network.parameters())
    wanted = torch.autograd.grad((expected * weights).sum(), parameters)
    for one, other in zip(torch.autograd.grad((found * weights).sum(), parameters), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_head_with_a_bias_is_refused():
    with pytest.raises(ValueError, match="bias"):
        loss.nll(torch.nn.Linear(2, 3), torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]))


MEASURE = """
import resource, sys, torch
from mathpipe.pretrain import loss
torch.manual_seed(0)
hidden, head = torch.randn(1024, 16, requires_grad=True), torch.nn.Linear(16, 50_000, bias=False)
rows = targets = torch.arange(1024)
loss.nll(head, hidden[:8], rows[:8], targets[:8]).sum().backward()  # kernels loaded, gradient there
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loss.nll(head, hidden, rows, targets).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_no_logits_of_all_positions_exist():
    """1,024 × 50,000 logits would take 205 MB in fp32; head and gradient together are 6.4 MB."""
    done = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 60_000, done.stdout  # KB
