"""[N, V] logits are the largest tensors of a training step: two of them are enough."""

from __future__ import annotations

import pytest
import torch
from live_tensors import Peak

from rlhf_kit.ops.logprobs import token_logprobs

N, V = 50, 4000


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_forward_and_backward_hold_two(temperature: float) -> None:
    tokens = torch.arange(N)
    weight = torch.randn((8, V), requires_grad=True)
    states = torch.randn((N, 8))
    with Peak() as memory:
        token_logprobs(states @ weight, tokens, temperature).sum().backward()
    others = 4 * (V * 8 + 20 * N)
    assert memory.peak <= 2.05 * 4 * N * V + others


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_the_gradient_is_that_of_log_softmax(temperature: float) -> None:
    logits = torch.randn((6, 9), dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([0, 8, 3, 3, 5, 1])
    weight = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, 1.5], dtype=torch.float64)
    wanted = (logits / temperature).log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    found = token_logprobs(logits, tokens, temperature)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    gradients = [torch.autograd.grad((x * weight).sum(), logits)[0] for x in (found, wanted)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, tokens, temperature), (logits,))


def test_an_impossible_token_has_a_finite_gradient() -> None:
    logits = torch.tensor([[0.0, -float("inf"), 1000.0]], requires_grad=True)
    token_logprobs(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, 0.0, -1.0]]
