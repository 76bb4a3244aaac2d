"""Pure functions: literals, edges, and indifference to what stands in the padding."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_kit.ops.draws import uniforms
from rlhf_kit.ops.kl import kl_penalised_rewards
from rlhf_kit.ops.logprobs import sample_tokens, selected_logprobs, token_logprobs
from rlhf_kit.ops.masking import masked_mean, masked_sum, masked_var, whiten
from rlhf_kit.ops.returns import gae
from rlhf_kit.ops.sequence import last_index, pad, position_ids, response_mask

MASK = torch.tensor([[True, True, False], [False, True, False]])
X = torch.tensor([[1.0, 2.0, math.nan], [math.inf, 6.0, 1e9]])


def test_masked_statistics() -> None:
    assert masked_sum(X, MASK).item() == 9.0
    assert masked_mean(X, MASK).item() == 3.0
    assert masked_var(X, MASK, unbiased=False).item() == pytest.approx(14 / 3)
    assert masked_var(X, MASK, unbiased=True).item() == pytest.approx(7.0)


def test_an_empty_mask() -> None:
    nothing = torch.zeros_like(MASK)
    assert masked_sum(X, nothing).item() == 0.0
    assert math.isnan(masked_mean(X, nothing).item())
    assert whiten(X, nothing).tolist() == [[0.0] * 3] * 2


def test_a_single_value_has_no_spread() -> None:
    one = torch.zeros_like(MASK)
    one[0, 1] = True
    assert masked_var(X, one, unbiased=True).item() == 0.0
    assert whiten(X, one, shift_mean=False).tolist() == [[0.0, 2.0, 0.0], [0.0] * 3]


def test_position_ids_count_valid_tokens() -> None:
    mask = torch.tensor([[False, False, True, True], [True, True, True, False]])
    found = position_ids(mask)
    assert found[0, 2:].tolist() == [0, 1]
    assert found[1, :3].tolist() == [0, 1, 2]
    assert found.min().item() == 0


def test_response_mask_stops_at_the_first_stop() -> None:
    tokens = torch.tensor([[5, 9, 7, 9], [9, 9, 9, 9], [1, 2, 3, 4]])
    assert response_mask(tokens, (9,)).tolist() == [
        [True, True, False, False],
        [True, False, False, False],
        [True, True, True, True],
    ]


def test_last_index() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False], [False, True, True]])
    assert last_index(mask).tolist() == [1, 0, 2]


@pytest.mark.parametrize("left", [False, True])
def test_pad(left: bool) -> None:
    tokens, mask = pad([[1, 2, 3], [4], []], 0, left=left)
    assert tokens.tolist() == ([[1, 2, 3], [0, 0, 4], [0, 0, 0]] if left else
                               [[1, 2, 3], [4, 0, 0], [0, 0, 0]])  # fmt: skip
    assert mask.sum(1).tolist() == [3, 1, 0]
    assert mask[1].tolist() == ([False, False, True] if left else [True, False, False])
    assert (tokens.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert pad([], 0)[0].shape == (0, 0)


def test_logprobs_start_float32_before_the_softmax() -> None:
    logits = torch.randn((4, 50), generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens = torch.tensor([0, 7, 49, 3])
    found = token_logprobs(logits, tokens)
    wanted = logits.double().log_softmax(-1)[torch.arange(4), tokens]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, 0.0], [-1e4, 0.0]])
    assert token_logprobs(logits, torch.tensor([0, 0])).tolist() == [0.0, -1e4]


def test_selected_logprobs_with_nothing_selected() -> None:
    states, mask = torch.zeros((2, 3, 4)), torch.zeros((2, 3), dtype=torch.bool)
    found = selected_logprobs(lambda h: h, states, mask.long(), mask)
    assert found.tolist() == [[0.0] * 3] * 2


def test_selected_logprobs_gradient_ignores_padding() -> None:
    states = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(0))
    states[~MASK] = math.nan
    states.requires_grad_()
    tokens = torch.tensor([[0, 1, 99], [99, 3, 99]])
    selected_logprobs(lambda h: h, states, tokens, MASK).sum().backward()
    assert states.grad is not None
    assert (states.grad[~MASK] == 0).all()
    assert torch.isfinite(states.grad).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampling_has_the_right_frequencies(temperature: float) -> None:
    logits = torch.tensor([1.0, 2.0, 5.0, 0.0]).log()  # the last one is impossible
    count = 100_000
    draws = uniforms(0, torch.arange(count), 1)[:, 0]
    tokens, logprobs = sample_tokens(logits.expand(count, 4), temperature, draws)
    wanted = token_logprobs(logits.expand(count, 4), tokens, temperature)
    torch.testing.assert_close(logprobs, wanted)
    found = torch.bincount(tokens, minlength=4) / count
    odds = torch.tensor([1.0, 2.0, 5.0, 0.0]) ** (1 / temperature)
    # Four standard deviations of a frequency over 100,000 draws are at most 0.0064.
    torch.testing.assert_close(found, odds / odds.sum(), rtol=0, atol=0.0064)
    assert found[3] == 0


def test_sampling_at_given_draws() -> None:
    """The first token whose cumulative probability is above the draw; none that is impossible."""
    logits = torch.tensor([0.0, 1.0, 2.0, 5.0, 0.0]).log()
    draws = torch.tensor([0.0, 0.124, 0.126, 0.374, 0.376, 1 - 2**-24])
    tokens, _ = sample_tokens(logits.expand(len(draws), 5), 1.0, draws)
    assert tokens.tolist() == [1, 1, 2, 2, 3, 3]
    # The sum of these is above 1, and the largest draw times it rounds up to it.
    many = torch.cat([torch.zeros(1000), torch.full((1,), -torch.inf)])
    tokens, logprobs = sample_tokens(many[None], 1.0, draws[-1:])
    assert tokens.tolist() == [999]
    assert torch.isfinite(logprobs).all()


def test_gae_leaves_its_inputs_alone_and_checks_shapes() -> None:
    rewards, values = torch.ones((2, 3)), torch.zeros((2, 3))
    gae(rewards, values, MASK, discount=1.0, lam=1.0)
    assert (rewards == 1).all()
    with pytest.raises(ValueError, match=r"values: expected \[B, R\] with B=2, got shape \[1, 3\]"):
        gae(rewards, values[:1], MASK, discount=1.0, lam=1.0)


def test_the_score_lands_on_the_last_valid_token() -> None:
    zeros = torch.zeros((2, 3))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = kl_penalised_rewards(torch.tensor([1.0, 2.0]), zeros, zeros, mask, 0.1)
    assert found.tolist() == [[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="scores"):
        kl_penalised_rewards(torch.zeros(3), zeros, zeros, mask, 0.1)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_change_neither_value_nor_gradient(chunk: int) -> None:
    """Several chunks are recomputed in the backward pass; one is not."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    tokens = torch.randint(5, (2, 4), generator=generator)
    mask = torch.tensor([[True, True, True, False], [False, True, True, True]])
    states = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    found = selected_logprobs(lambda h: h @ head.T, states, tokens, mask, 0.7, chunk)
    (gradient,) = torch.autograd.grad(found.square().sum(), states)
    expected = torch.log_softmax(states @ head.T / 0.7, -1).gather(-1, tokens[..., None])[..., 0]
    expected = torch.where(mask, expected, 0.0)
    (wanted,) = torch.autograd.grad(expected.square().sum(), states)
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(gradient, wanted, atol=1e-12)
