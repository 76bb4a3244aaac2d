"""KTO's loss, through rlhf-kit's fixtures, by hand, and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from rlhf_kit_guests.kto import KTO
from rlhf_kit_guests.options import KTOOptions

from rlhf_kit.types import LabelledInputs, Masked, MismatchedInputs

UNEVEN = KTOOptions(beta=0.3, desirable=1.0, undesirable=1.5)


@pytest.mark.parametrize("options", [KTOOptions(), UNEVEN])
@pytest.mark.parametrize("seed", [0, 1])
def test_conforms(check_labelled_loss, options: KTOOptions, seed: int) -> None:
    check_labelled_loss(KTO(options), needs={"mismatched"}, seed=seed)


def judged(gains: list[float], good: list[bool]) -> LabelledInputs:
    """What answers have gained on the reference; all count."""
    one = torch.full((len(gains),), -8.0)
    count, mask = torch.full((len(gains),), 4), torch.ones(len(gains), dtype=torch.bool)
    return LabelledInputs(one + torch.tensor(gains), one, torch.tensor(good), count, mask)


def crossed(gains: list[float]) -> MismatchedInputs:
    """The same of mismatched answers."""
    one = torch.full((len(gains),), -8.0)
    return MismatchedInputs(one + torch.tensor(gains), one, torch.ones_like(one).bool())


def test_by_hand() -> None:
    """Gains 2 and 2 at z = 1: sigmoid(1) of the desirable answer, sigmoid(-1) of the other."""
    loss = KTO(KTOOptions(beta=1.0, undesirable=2.0))
    inputs = judged([2.0, 2.0], [True, False])
    output = loss(inputs, loss.observe(crossed([3.0, -1.0])))
    assert output.total.item() == pytest.approx((1 - 0.731059) + 2 * (1 - 0.268941), abs=1e-5)
    assert output.stats["kl"].item() == 2  # of two answers
    assert output.stats["gain"].item() == 0
    assert loss.count(Masked(inputs.mask)).item() == 2


def test_a_kl_is_not_negative() -> None:
    loss = KTO(KTOOptions(beta=1.0))
    output = loss(judged([0.0, 0.0], [True, False]), loss.observe(crossed([-3.0, 1.0])))
    assert output.total.item() == pytest.approx(1.0)  # two halves, at z = 0 rather than -1
    assert output.stats["kl"].item() == 0


@pytest.mark.parametrize("seed", range(3))
def test_against_loops(seed: int) -> None:
    """arXiv:2402.01306, equation 8, in micro-batches, and what pulls at the policy alone.

    ``lambda_y - v``, ``v = lambda_D sigmoid(beta (r - z))`` or ``lambda_U sigmoid(beta (z - r))``,
    and z is the mean over the whole step, through which no gradient flows.
    """
    generator = torch.Generator().manual_seed(seed)
    given = -20 * torch.rand((4, 9), generator=generator, dtype=torch.float64)
    good, mask = torch.rand(9, generator=generator) < 0.5, torch.arange(9) != 4
    tokens = torch.randint(1, 9, (9,), generator=generator)
    given[2] = given[3] + 2 * torch.rand(9, generator=generator)  # z is not clamped to 0
    new, other = given[0].clone().requires_grad_(), given[2].clone().requires_grad_()

    def part(rows: slice) -> LabelledInputs:
        return LabelledInputs(
            new[rows],
            given[1][rows],
            good[rows],
            tokens[rows],
            mask[rows],
        )

    loss, halves = KTO(UNEVEN), [slice(0, 4), slice(4, 9)]
    parts = [part(rows) for rows in halves]
    with torch.no_grad():
        seen = [
            loss.observe(MismatchedInputs(other[rows], given[3][rows], mask[rows]))
            for rows in halves
        ]
    observed = {name: torch.stack([each[name] for each in seen]).sum() for name in seen[0]}
    total = torch.stack([loss(each, observed).total for each in parts]).sum()
    slope, unpulled = torch.autograd.grad(total, [new, other], allow_unused=True)
    z = sum((given[2][i] - given[3][i]).item() for i in range(9) if mask[i]) / 8
    wanted, slopes = 0.0, []
    for i in range(9):
        if not mask[i]:
            slopes.append(0.0)
            continue
        above, weight = (given[0][i] - given[1][i]).item() - z, 1.0 if good[i] else 1.5
        sign = 1.0 if good[i] else -1.0
        value = 1 / (1 + math.exp(-0.3 * sign * above))
        wanted += weight - weight * value
        slopes.append(-weight * 0.3 * sign * value * (1 - value))
    assert z > 0.5
    assert total.item() == pytest.approx(wanted, rel=1e-6)  # z is summed in float32's counts
    assert slope.tolist() == pytest.approx(slopes, abs=1e-7)
    assert unpulled is None
