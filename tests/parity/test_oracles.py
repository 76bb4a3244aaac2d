"""The operations and the built-in losses against float64 oracles, and against hand calculation."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from rlhf_kit_instructgpt.losses import Pairwise, SequenceNLL, TokenNLL
from rlhf_kit_instructgpt.options import NoOptions, PairwiseOptions
from rlhf_kit_policy_gradient.control import AdaptiveKL, FixedKL
from rlhf_kit_policy_gradient.gae import GAE
from rlhf_kit_policy_gradient.losses import ClippedValue, PPOClip
from rlhf_kit_policy_gradient.options import (
    AdaptiveKLOptions,
    ClipOptions,
    FixedKLOptions,
    GAEOptions,
)
from torch import Tensor

from rlhf_kit.ops.kl import kl_penalised_rewards, sequence_kl
from rlhf_kit.ops.logprobs import selected_logprobs, token_logprobs
from rlhf_kit.ops.masking import whiten
from rlhf_kit.ops.returns import gae
from rlhf_kit.testing import (
    TabularPolicy,
    made_up_experience,
    made_up_policy_inputs,
    oracles,
)
from rlhf_kit.types import (
    Masked,
    NllInputs,
    PreferenceInputs,
    Ranked,
    SampledUnits,
    TextBatch,
    ValueLossInputs,
)

SEEDS = range(8)
CLIP = ClipOptions(clip_range=0.2)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def any_mask(seed: int, *shape: int) -> Tensor:
    """Random, with holes: what an operation does must follow from the mask alone."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1000 + seed)) < 0.7
    mask[0, 0] = True
    return mask


def close(found: Tensor, wanted: object) -> None:
    expected = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("discount", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae(seed: int, discount: float, lam: float) -> None:
    (rewards, values), mask = draw(seed, 2, 6, 9), any_mask(seed, 6, 9)
    lists = rewards.tolist(), values.tolist(), mask.tolist()
    advantages, returns = oracles.gae(*lists, discount, lam)
    dirty = torch.where(mask, rewards, math.nan), torch.where(mask, values, 1e9)
    for r, v in ((rewards, values), dirty):
        found = gae(r, v, mask, discount=discount, lam=lam)
        close(found[0], advantages)
        close(found[1], returns)
    options = GAEOptions(discount=discount, lam=lam)
    out = GAE(options)(made_up_experience(rewards, mask, values=values))
    close(out.advantages, advantages)
    close(out.returns, returns)


def test_gae_by_hand() -> None:
    """Deltas 0 + 0.5 - 1, 0 + 1 - 0.5, 1 + 0 - 1; then A = -0.5 + 0.5 x 0.5, 0.5 + 0.5 x 0, 0."""
    rewards = torch.tensor([[0.0, 0.0, 1.0, 9.0]], dtype=torch.float64)
    values = torch.tensor([[1.0, 0.5, 1.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    advantages, returns = gae(rewards, values, mask, discount=1.0, lam=0.5)
    assert advantages.tolist() == [[-0.25, 0.5, 0.0, 0.0]]
    assert returns.tolist() == [[0.75, 1.0, 1.0, 0.0]]
    found = oracles.gae(rewards.tolist(), values.tolist(), mask.tolist(), 1.0, 0.5)
    assert found == (advantages.tolist(), returns.tolist())


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_clip(seed: int) -> None:
    old, step, advantages = draw(seed, 3, 5, 7)
    mask, new = any_mask(seed, 5, 7), old + 0.3 * step
    found = PPOClip(CLIP)(made_up_policy_inputs(new, old, advantages, mask))
    lists = new.tolist(), old.tolist(), advantages.tolist(), mask.tolist()
    close(found.total, oracles.ppo_clip(*lists, 0.2))
    ratio = (new - old).exp()[mask]
    binds = (ratio > 1.2) & (advantages[mask] > 0) | (ratio < 0.8) & (advantages[mask] < 0)
    assert found.stats["clip_fraction"].item() == binds.sum().item()
    close(found.stats["ratio"], ratio.sum().item())
    close(found.stats["approx_kl"], (ratio - 1 - ratio.log()).sum().item())


def test_ppo_clip_by_hand() -> None:
    """Ratios 2, 2, 0.5, 0.5 with advantages 1, -1, 1, -1: -1.2 + 2 - 0.5 + 0.8 = 1.1."""
    new = torch.tensor([[2.0, 2.0, 0.5, 0.5]], dtype=torch.float64).log()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones((1, 4), dtype=torch.bool)
    inputs = made_up_policy_inputs(new, torch.zeros_like(new), advantages, mask)
    units = SampledUnits(mask, inputs.old_logprobs, inputs.group)
    assert PPOClip(CLIP)(inputs).total.item() == pytest.approx(1.1, abs=1e-15)
    assert PPOClip(CLIP).count(units).item() == 4
    lists = new.tolist(), [[0.0] * 4], advantages.tolist(), mask.tolist()
    assert oracles.ppo_clip(*lists, 0.2) == pytest.approx(1.1, abs=1e-15)


@pytest.mark.parametrize("seed", SEEDS)
def test_clipped_value(seed: int) -> None:
    old, step, returns = draw(seed, 3, 5, 7)
    mask, new = any_mask(seed, 5, 7), old + 0.3 * step
    found = ClippedValue(CLIP)(ValueLossInputs(new, old, returns, mask))
    lists = new.tolist(), old.tolist(), returns.tolist(), mask.tolist()
    close(found.total, oracles.clipped_value(*lists, 0.2))


def test_clipped_value_by_hand() -> None:
    """V = 1, V_old = 0, R = 1: not 0 but 0.5 x 0.8^2. R = 0: 0.5 x 1, the unclipped one."""
    one, mask = torch.ones((1, 2), dtype=torch.float64), torch.ones((1, 2), dtype=torch.bool)
    returns = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    found = ClippedValue(CLIP)(ValueLossInputs(one, 0 * one, returns, mask))
    assert found.total.item() == pytest.approx(0.32 + 0.5, abs=1e-15)
    assert found.stats["clip_fraction"].item() == 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_token_nll(seed: int) -> None:
    logprobs, mask = -draw(seed, 4, 6).abs(), any_mask(seed, 4, 6)
    found = TokenNLL(NoOptions())(NllInputs(logprobs, mask))
    close(found.total, oracles.token_nll(logprobs.tolist(), mask.tolist()))


@pytest.mark.parametrize("seed", SEEDS)
def test_sequence_nll(seed: int) -> None:
    """Per text instead of per token: larger by the mean number of tokens of a text that has any."""
    logprobs, mask = -draw(seed, 5, 6).abs(), any_mask(seed, 5, 6)
    mask[3] = False
    inputs = NllInputs(logprobs, mask)
    loss, per_token = SequenceNLL(NoOptions()), TokenNLL(NoOptions())
    found = loss(inputs).total / loss.count(Masked(mask))
    close(found, oracles.sequence_nll(logprobs.tolist(), mask.tolist()))
    close(loss(NllInputs(torch.where(mask, logprobs, math.nan), mask)).total, found.item() * 4)
    ratio = found / (per_token(inputs).total / per_token.count(Masked(mask)))
    close(ratio, int(mask.sum()) / 4)


def test_sequence_nll_by_hand() -> None:
    """Texts of three tokens and of one: (1 + 2 + 3) and 4 make 5 per text, and 2.5 per token."""
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    inputs, loss = NllInputs(logprobs, mask), SequenceNLL(NoOptions())
    assert loss(inputs).total.item() / loss.count(Masked(mask)).item() == 5.0
    # The stages count a TextBatch, whose first token is never predicted.
    whole = torch.cat([mask[:, :1], mask], 1)
    assert loss.count(TextBatch(whole.long(), whole, whole).targets).item() == 2
    only_first = torch.tensor([[True, False]])
    assert loss.count(TextBatch(only_first.long(), only_first, only_first).targets).item() == 0
    assert oracles.sequence_nll(logprobs.tolist(), mask.tolist()) == 5.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weights", ["kept_pairs", "all_pairs"])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_pairwise(seed: int, weights: Literal["kept_pairs", "all_pairs"], margin: float) -> None:
    scores, mask = 3 * draw(seed, 6, 5), any_mask(seed, 6, 5)
    ranks = torch.randint(-1, 4, (6, 5), generator=torch.Generator().manual_seed(seed))
    options = {"all_pairs": weights == "all_pairs", "margin": margin}
    leaf = scores.clone().requires_grad_()
    loss = Pairwise(PairwiseOptions(weights=weights, margin=margin))
    found = loss(PreferenceInputs(leaf, ranks, mask))
    wanted = oracles.pairwise(scores.tolist(), ranks.tolist(), mask.tolist(), **options)
    assert found.total.dtype == torch.float64
    close(found.total, wanted)
    (gradient,) = torch.autograd.grad(found.total, leaf)
    for place in [(0, 0), (3, 2), (5, 4)]:
        moved = []
        for step in (1e-5, -1e-5):
            shifted = scores.clone()
            shifted[place] += step
            lists = shifted.tolist(), ranks.tolist(), mask.tolist()
            moved.append(oracles.pairwise(*lists, **options))
        slope = (moved[0] - moved[1]) / 2e-5
        assert gradient[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_pairwise_by_hand() -> None:
    """Margins 1, 2, 1 of three ranked completions: a third of each -log sigmoid."""
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, -200.0, 7.0]], dtype=torch.float64)
    ranks = torch.tensor([[0, 1, 2], [1, 0, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = Pairwise(PairwiseOptions())(PreferenceInputs(scores, ranks, mask))
    # log(1 + e^-1) = 0.313262, log(1 + e^-2) = 0.126928; the second prompt has one pair, 200 wrong.
    first = (2 * 0.31326168751822286 + 0.12692801104297263) / 3
    assert found.total.item() == pytest.approx(first + 200.0, rel=1e-15)
    assert found.stats["accuracy"].item() == 1.0
    assert Pairwise(PairwiseOptions()).count(Ranked(ranks, mask)).item() == 2
    wanted = oracles.pairwise(scores.tolist(), ranks.tolist(), mask.tolist())
    assert wanted == pytest.approx(first + 200.0, rel=1e-15)


def test_pairwise_with_ties_by_hand() -> None:
    """Ranks 0, 0, 1, none: two pairs of three are kept. The second prompt is one tie: no pair."""
    scores = torch.tensor([[2.0, 1.0, 0.0, 9.0], [1.0, 2.0, 0.0, 0.0]], dtype=torch.float64)
    ranks = torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    inputs = PreferenceInputs(scores, ranks, mask)
    both = 0.12692801104297263 + 0.31326168751822286  # margins 2 and 1
    for weights, wanted in (("kept_pairs", both / 2), ("all_pairs", both / 3)):
        loss = Pairwise(PairwiseOptions(weights=weights))
        assert loss(inputs).total.item() == pytest.approx(wanted, rel=1e-15)
        assert loss.count(Ranked(ranks, mask)).item() == 1
        assert loss(inputs).stats["accuracy"].item() == 1.0  # of the pairs kept, in both
        lists = scores.tolist(), ranks.tolist(), mask.tolist()
        found = oracles.pairwise(*lists, all_pairs=weights == "all_pairs")
        assert found == pytest.approx(wanted, rel=1e-15)


def test_pairwise_margin_by_hand() -> None:
    """Scores 3, 2, 0 with ranks 0, 1, 3 and 0.5 a rank: 1 - 0.5, 3 - 1.5 and 2 - 1."""
    scores = torch.tensor([[3.0, 2.0, 0.0]], dtype=torch.float64)
    ranks, mask = torch.tensor([[0, 1, 3]]), torch.ones((1, 3), dtype=torch.bool)
    found = Pairwise(PairwiseOptions(margin=0.5))(PreferenceInputs(scores, ranks, mask))
    # log(1 + e^-x) for x = 0.5, 1.5, 1.
    wanted = (0.4740769841801067 + 0.20141327798275246 + 0.31326168751822286) / 3
    assert found.total.item() == pytest.approx(wanted, rel=1e-15)
    lists = scores.tolist(), ranks.tolist(), mask.tolist()
    assert oracles.pairwise(*lists, margin=0.5) == pytest.approx(wanted, rel=1e-15)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
def test_whiten(seed: int, shift_mean: bool, unbiased: bool) -> None:
    x, mask = 3 + draw(seed, 4, 6), any_mask(seed, 4, 6)
    wanted = oracles.whiten(x.tolist(), mask.tolist(), shift_mean=shift_mean, unbiased=unbiased)
    for given in (x, torch.where(mask, x, math.nan)):
        close(whiten(given, mask, shift_mean=shift_mean, unbiased=unbiased), wanted)


def test_whiten_by_hand() -> None:
    """1, 3, 5: mean 3, variance 8/3 or 4."""
    x = torch.tensor([[1.0, 3.0, 5.0, 99.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    close(whiten(x, mask, unbiased=True, eps=0.0), [[-1.0, 0.0, 1.0, 0.0]])
    close(whiten(x, mask, unbiased=True, shift_mean=False, eps=0.0), [[2.0, 3.0, 4.0, 0.0]])
    side = 1.224744871391589  # 2 / sqrt(8/3)
    close(whiten(x, mask, eps=0.0), [[-side, 0.0, side, 0.0]])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_token_logprobs(seed: int, temperature: float) -> None:
    logits = 20 * draw(seed, 10, 7)
    tokens = torch.randint(0, 7, (10,), generator=torch.Generator().manual_seed(seed))
    wanted = [
        oracles.token_logprob(row, token, temperature)
        for row, token in zip(logits.tolist(), tokens.tolist(), strict=True)
    ]
    close(token_logprobs(logits, tokens, temperature), wanted)
    single = token_logprobs(logits.float(), tokens, temperature)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), torch.tensor(wanted).double(), rtol=1e-5, atol=1e-4)


def test_token_logprobs_by_hand() -> None:
    """Odds 1 : 2 : 5 of eight; at temperature 1/2 they are 1 : 4 : 25 of thirty."""
    logits = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log()
    assert token_logprobs(logits, torch.tensor([2])).item() == pytest.approx(math.log(5 / 8))
    half = token_logprobs(logits, torch.tensor([1]), 0.5)
    assert half.item() == pytest.approx(math.log(4 / 30), abs=1e-15)


@pytest.mark.parametrize("seed", SEEDS)
def test_selected_logprobs(seed: int) -> None:
    states, mask = draw(seed, 4, 5, 6), any_mask(seed, 4, 5)
    weight = draw(seed + 50, 6, 7)
    tokens = torch.randint(0, 7, (4, 5), generator=torch.Generator().manual_seed(seed))
    logits = (states @ weight).tolist()
    wanted = [
        [
            oracles.token_logprob(logits[b][r], int(tokens[b, r]), 0.7) if mask[b, r] else 0.0
            for r in range(5)
        ]
        for b in range(4)
    ]
    dirty = torch.where(mask[:, :, None], states, math.nan)
    for chunk in (1, 3, 512):
        found = selected_logprobs(lambda h: h @ weight, dirty, tokens, mask, 0.7, chunk)
        close(found, wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_kl(seed: int) -> None:
    (logprobs, reference), mask = draw(seed, 2, 5, 7), any_mask(seed, 5, 7)
    mask[4] = False
    scores = draw(seed + 9, 5)
    lists = logprobs.tolist(), reference.tolist(), mask.tolist()
    dirty = torch.where(mask, logprobs, math.nan)
    close(sequence_kl(dirty, reference, mask), oracles.sequence_kl(*lists))
    found = kl_penalised_rewards(scores, dirty, reference, mask, 0.05)
    close(found, oracles.kl_penalised_rewards(scores.tolist(), *lists, 0.05))


def test_kl_by_hand() -> None:
    """k1 of (0.5, -1): rewards (-0.05, 0.1 + 2); the KL of the response is -0.5."""
    logprobs = torch.tensor([[-1.0, -2.0, 7.0]], dtype=torch.float64)
    reference = torch.tensor([[-1.5, -1.0, -7.0]], dtype=torch.float64)
    mask, scores = torch.tensor([[True, True, False]]), torch.tensor([2.0], dtype=torch.float64)
    close(kl_penalised_rewards(scores, logprobs, reference, mask, 0.1), [[-0.05, 2.1, 0.0]])
    close(sequence_kl(logprobs, reference, mask), [-0.5])


def test_kl_controllers() -> None:
    adaptive = AdaptiveKL(AdaptiveKLOptions(target=6.0, horizon=10_000))
    found = coefficient = 0.2
    for kl in (0.0, 5.9, 6.0, 6.6, 7.0, 30.0, -1.0):
        found = adaptive(found, kl, 512)
        coefficient = oracles.adaptive_kl(coefficient, kl, target=6.0, samples=512, horizon=10_000)
        assert found == pytest.approx(coefficient, rel=1e-15)
    # By hand: 12 is twice the target, clipped to 0.2; 0.2 (1 + 0.2 x 500 / 10000) = 0.202.
    assert adaptive(0.2, 12.0, 500) == pytest.approx(0.202, abs=1e-15)
    assert FixedKL(FixedKLOptions())(0.02, 100.0, 512) == 0.02


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("coefficient", [0.0, 0.3])
def test_the_ppo_gradient_is_that_of_the_objective(temperature: float, coefficient: float) -> None:
    """The master test: at ratio 1, lambda = 1, V = 0, PPO's expected gradient over all 15 responses

    is the gradient of ``E[score] - beta KL(pi || ref)``, which enumeration gives exactly.
    """
    policy = TabularPolicy(3, 3, dtype=torch.float64, seed=1)
    with torch.no_grad():
        policy.table += 0.5 * draw(2, 13, 3)
    samples = policy.all_samples(temperature)
    mask, scores = samples.response_mask, draw(3, len(samples))
    reference = policy.reference().evaluate(samples).logprobs

    logprobs = policy.evaluate(samples).logprobs
    probability = logprobs.sum(1).exp()
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-14)
    kl = (probability * (logprobs - reference).sum(1)).sum()
    objective = (probability * scores).sum() - coefficient * kl
    (wanted,) = torch.autograd.grad(objective, policy.table)

    old = logprobs.detach()
    rewards = kl_penalised_rewards(scores, old, reference, mask, coefficient)
    advantages, _ = gae(rewards, torch.zeros_like(old), mask, discount=1.0, lam=1.0)
    logprobs, found = policy.evaluate(samples).logprobs, torch.zeros_like(wanted)
    for b, p in enumerate(probability.tolist()):
        row = made_up_policy_inputs(*(x[[b]] for x in (logprobs, old, advantages, mask)))
        total = PPOClip(CLIP)(row).total
        found -= p * torch.autograd.grad(total, policy.table, retain_graph=True)[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15)
