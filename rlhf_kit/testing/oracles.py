"""Slow references in float64: the formulas as loops over lists, sharing nothing with the code.

They exist to be compared with. Arguments are lists of Python floats (``tensor.tolist()``), one
inner list per row; masks are lists of bools and may have holes. Legend: B rows, R response.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]
Rows = Sequence[Sequence[float]]
MaskRow = Sequence[bool]
Mask = Sequence[Sequence[bool]]


def gae(
    rewards: Rows, values: Rows, mask: Mask, discount: float, lam: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Advantages and returns [B, R] as explicit double sums, zero where the mask is False.

    ``A_t = sum_l (discount lam)^l delta_{t+l}``, ``delta_t = r_t + discount V_{t+1} - V_t``
    (arXiv:1506.02438, equation 16); the sum and V stop at the first invalid place after t.
    """
    advantages, returns = [], []
    for r, v, m in zip(rewards, values, mask, strict=True):
        row_a, row_r = [], []
        for t in range(len(r)):
            total, place = 0.0, t
            while place < len(r) and m[place]:
                follows = place + 1 < len(r) and m[place + 1]
                next_value = v[place + 1] if follows else 0.0
                delta = r[place] + discount * next_value - v[place]
                total += (discount * lam) ** (place - t) * delta
                place += 1
            row_a.append(total)
            row_r.append(total + v[t] if m[t] else 0.0)
        advantages.append(row_a)
        returns.append(row_r)
    return advantages, returns


def ppo_clip(
    logprobs: Rows, old_logprobs: Rows, advantages: Rows, mask: Mask, clip_range: float
) -> float:
    """Sum over valid tokens of ``max(-A rho, -A clip(rho, 1 - e, 1 + e))`` (arXiv:1707.06347,

    equation 7, as a loss).
    """
    total = 0.0
    for new, old, a, m in zip(logprobs, old_logprobs, advantages, mask, strict=True):
        for t in range(len(m)):
            if m[t]:
                ratio = math.exp(new[t] - old[t])
                clipped = min(max(ratio, 1.0 - clip_range), 1.0 + clip_range)
                total += max(-a[t] * ratio, -a[t] * clipped)
    return total


def clipped_value(
    values: Rows, old_values: Rows, returns: Rows, mask: Mask, clip_range: float
) -> float:
    """Sum over valid tokens of ``0.5 max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2)``

    (openai/lm-human-preferences, ``train_policy.py``).
    """
    total = 0.0
    for new, old, target, m in zip(values, old_values, returns, mask, strict=True):
        for t in range(len(m)):
            if m[t]:
                near = min(max(new[t], old[t] - clip_range), old[t] + clip_range)
                total += 0.5 * max((new[t] - target[t]) ** 2, (near - target[t]) ** 2)
    return total


def token_nll(logprobs: Rows, mask: Mask) -> float:
    """Minus the sum of the log-probabilities of valid tokens."""
    return -sum(_valid(logprobs, mask))


def sequence_nll(logprobs: Rows, mask: Mask) -> float:
    """Mean over texts of minus the sum of a text's log-probabilities at valid places.

    The expectation over texts of arXiv:2203.02155, equation 2. A text without a valid place does
    not count.
    """
    sums = [
        -sum(row[t] for t in range(len(row)) if m[t])
        for row, m in zip(logprobs, mask, strict=True)
        if any(m)
    ]
    return sum(sums) / len(sums)


def _valid(x: Rows, mask: Mask) -> list[float]:
    """The values at valid places."""
    return [row[t] for row, m in zip(x, mask, strict=True) for t in range(len(row)) if m[t]]


def pairwise(
    scores: Rows,
    ranks: Sequence[Sequence[int]],
    mask: Mask,
    *,
    all_pairs: bool = False,
    margin: float = 0.0,
) -> float:
    """Sum over prompts of the mean over pairs of ``-log sigmoid(r_w - r_l - m)``.

    arXiv:2203.02155, equation 1: every pair of completions, weight one over the number of pairs;
    with ``all_pairs``, the number that there would be without ties. Ties make no pair, nor does a
    negative rank; a prompt without pairs adds nothing. ``m = margin (rank_l - rank_w)`` is the
    margin of arXiv:2307.09288, equation 2.
    """
    total = 0.0
    for s, rank, m in zip(scores, ranks, mask, strict=True):
        ranked = [k for k in range(len(s)) if m[k] and rank[k] >= 0]
        losses, tied = [], 0
        for place, a in enumerate(ranked):
            for b in ranked[:place]:
                if rank[a] == rank[b]:
                    tied += 1
                    continue
                winner, loser = (a, b) if rank[a] < rank[b] else (b, a)
                wanted = margin * (rank[loser] - rank[winner])
                losses.append(_softplus(s[loser] - s[winner] + wanted))
        if losses:
            total += sum(losses) / (len(losses) + (tied if all_pairs else 0))
    return total


def _softplus(x: float) -> float:
    """log(1 + exp(x)) = -log sigmoid(-x), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def whiten(
    x: Rows, mask: Mask, *, shift_mean: bool = True, unbiased: bool = False, eps: float = 1e-8
) -> list[list[float]]:
    """``(x - mean) / sqrt(var + eps)`` over all valid places, zero elsewhere; the mean is put

    back unless ``shift_mean``. ``unbiased`` divides the variance by n - 1.
    """
    valid = _valid(x, mask)
    mean = sum(valid) / len(valid)
    variance = sum((v - mean) ** 2 for v in valid) / max(len(valid) - int(unbiased), 1)
    back = 0.0 if shift_mean else mean
    return [
        [
            (row[t] - mean) / math.sqrt(variance + eps) + back if m[t] else 0.0
            for t in range(len(row))
        ]
        for row, m in zip(x, mask, strict=True)
    ]


def token_logprob(logits: Row, token: int, temperature: float = 1.0) -> float:
    """``log softmax(logits / temperature)[token]``, the largest logit taken off first."""
    scaled = [logit / temperature for logit in logits]
    top = max(scaled)
    return scaled[token] - top - math.log(sum(math.exp(logit - top) for logit in scaled))


def sequence_kl(logprobs: Rows, reference: Rows, mask: Mask) -> list[float]:
    """[B] sums over valid tokens of ``log pi - log ref`` (k1)."""
    return [
        sum(new[t] - ref[t] for t in range(len(m)) if m[t])
        for new, ref, m in zip(logprobs, reference, mask, strict=True)
    ]


def kl_penalised_rewards(
    scores: Row, logprobs: Rows, reference: Rows, mask: Mask, coefficient: float
) -> list[list[float]]:
    """[B, R] rewards ``-coefficient (log pi - log ref)``, plus the score on the last valid token

    (arXiv:2203.02155, equation 2, token by token).
    """
    rewards = []
    for score, new, ref, m in zip(scores, logprobs, reference, mask, strict=True):
        row = [-coefficient * (new[t] - ref[t]) if m[t] else 0.0 for t in range(len(m))]
        for t in reversed(range(len(m))):
            if m[t]:
                row[t] += score
                break
        rewards.append(row)
    return rewards


def adaptive_kl(
    coefficient: float, kl: float, *, target: float, samples: int, horizon: float
) -> float:
    """``beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)`` (arXiv:1909.08593, sec. 2.2)."""
    error = kl / target - 1.0
    if error > 0.2:
        error = 0.2
    elif error < -0.2:
        error = -0.2
    return coefficient * (1.0 + error * samples / horizon)
