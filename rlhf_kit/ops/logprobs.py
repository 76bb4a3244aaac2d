"""Log-probabilities of given tokens, and exact sampling from the same distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at ``tokens``, in at least float32.

    Args:
        logits: [N, V] of any float type; float32 arithmetic starts before the softmax.
        tokens: [N] int64.

    Returns:
        [N] float32 (float64 for float64 logits).
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    found: Tensor = _TokenLogprobs.apply(logits, tokens, temperature)
    return found


class _TokenLogprobs(torch.autograd.Function):
    """Its gradient ``(onehot - softmax) / temperature`` is made in one tensor.

    [N, V] is the largest thing in a training step. Left to autograd, the division, the choice and
    the sum would each keep or make one of their own, five at the peak instead of two.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        scaled = logits if temperature == 1.0 else logits / temperature
        chosen = scaled.gather(-1, tokens[:, None]).squeeze(-1)
        total = scaled.logsumexp(-1)
        ctx.save_for_backward(logits, tokens, total)
        ctx.temperature = temperature
        return chosen - total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, total = ctx.saved_tensors
        rate = (gradient / ctx.temperature)[:, None]
        found = (logits / ctx.temperature).sub_(total[:, None]).exp_().mul_(-rate)
        return found.scatter_add_(1, tokens[:, None], rate), None, None


def selected_logprobs(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    tokens: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    chunk: int = 512,
) -> Tensor:
    """Log-probabilities of ``tokens`` from the states that chose them.

    The vocabulary head runs on valid tokens only, ``chunk`` at a time, so that [B, R, V] logits
    never exist at once.

    Args:
        head: [N, H] -> [N, V].
        states: [B, R, H]; tokens, mask: [B, R].

    Returns:
        [B, R] float32, zero where ``mask`` is False.
    """
    rows, wanted = states[mask], tokens[mask]  # [N, H], [N]
    chunks = list(zip(rows.split(chunk), wanted.split(chunk), strict=True))

    def score(h: Tensor, t: Tensor) -> Tensor:
        return token_logprobs(head(h), t, temperature)

    if len(chunks) > 1 and torch.is_grad_enabled():
        # Recomputed in the backward pass, or autograd would keep the logits of every chunk.
        parts = [checkpoint(score, h, t, use_reentrant=False) for h, t in chunks]
    else:
        parts = [score(h, t) for h, t in chunks]
    values = torch.cat(parts)
    out = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return out.masked_scatter(mask, values)


def sample_tokens(logits: Tensor, temperature: float, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution at ``draws``.

    Args:
        logits: [N, V]
        temperature: a divisor of the logits.
        draws: [N] float32, uniform in [0, 1).

    Returns:
        The tokens [N] and their log-probabilities [N] float32.

    Exact for softmax(logits / temperature) up to float32 rounding, and several times faster than
    multinomial on CPU with a large vocabulary.
    """
    probabilities = torch.softmax(logits.float() / temperature, -1)
    cdf = probabilities.cumsum(-1)
    # Scaled by the total, since the float32 sum is not exactly 1; kept below it, or rounding up
    # could choose the last token, however unlikely.
    total = cdf[:, -1:]
    draw = torch.minimum(draws[:, None] * total, total.nextafter(total.new_zeros(())))
    # Past the end for NaN only, which others report.
    tokens = torch.searchsorted(cdf, draw, right=True).clamp(max=cdf.shape[1] - 1)  # [N, 1]
    return tokens.squeeze(-1), probabilities.gather(-1, tokens).squeeze(-1).log()
