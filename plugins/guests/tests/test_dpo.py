"""DPO's loss, through rlhf-kit's fixtures, by hand, against loops, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from rlhf_kit_guests.dpo import DPO
from rlhf_kit_guests.options import DPOOptions

from rlhf_kit.types import Masked, PairInputs


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_conforms(check_pair_loss, beta: float, seed: int) -> None:
    check_pair_loss(DPO(DPOOptions(beta=beta)), seed=seed)


def test_by_hand() -> None:
    """Gains 3 and 1, 0 and 2, 1 and 1: margins 2, -2, 0; the last pair is not there."""
    mask = torch.tensor([True, True, True, False])
    inputs = PairInputs(
        chosen=torch.tensor([-2.0, -5.0, -3.0, 9.0]),
        rejected=torch.tensor([-6.0, -4.0, -3.0, 1.0]),
        reference_chosen=torch.tensor([-5.0, -5.0, -4.0, 1.0]),
        reference_rejected=torch.tensor([-7.0, -6.0, -4.0, 1.0]),
        chosen_tokens=torch.tensor([3, 3, 3, 3]),
        rejected_tokens=torch.tensor([2, 2, 2, 2]),
        mask=mask,
    )
    output = DPO(DPOOptions(beta=0.5))(inputs)
    # log(1 + e^-1) + log(1 + e) + log 2
    assert output.total.item() == pytest.approx(0.313262 + 1.313262 + 0.693147, abs=1e-5)
    assert output.stats["margin"].item() == 0
    assert output.stats["accuracy"].item() == 1.5  # equal counts half
    assert DPO(DPOOptions()).count(Masked(mask)).item() == 3


def made_up(seed: int) -> PairInputs:
    generator = torch.Generator().manual_seed(seed)
    given = -20 * torch.rand((4, 9), generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 9, (2, 9), generator=generator)
    return PairInputs(*given, *lengths, torch.arange(9) != 4)


@pytest.mark.parametrize("seed", range(3))
def test_against_loops(seed: int) -> None:
    """arXiv:2305.18290, equation 7, and its gradient, the one below it in section 4.

    ``-beta sigmoid(r_l - r_w)`` times the gradient of log pi_w minus that of log pi_l.
    """
    inputs = made_up(seed)
    inputs.chosen.requires_grad_()
    inputs.rejected.requires_grad_()
    output = DPO(DPOOptions(beta=0.3))(inputs)
    found = torch.autograd.grad(output.total, [inputs.chosen, inputs.rejected])
    total, slopes = 0.0, []
    for i in range(9):
        if not inputs.mask[i]:
            slopes.append(0.0)
            continue
        r_w = 0.3 * (inputs.chosen[i] - inputs.reference_chosen[i]).item()
        r_l = 0.3 * (inputs.rejected[i] - inputs.reference_rejected[i]).item()
        total -= math.log(1 / (1 + math.exp(r_l - r_w)))
        slopes.append(-0.3 / (1 + math.exp(r_w - r_l)))
    assert output.total.item() == pytest.approx(total, rel=1e-12)
    assert found[0].tolist() == pytest.approx(slopes, abs=1e-12)
    assert found[1].tolist() == pytest.approx([-slope for slope in slopes], abs=1e-12)
