"""The loss, through rlhf-kit's fixtures, by hand, and against loops."""

from __future__ import annotations

import math

import pytest
import torch
from rlhf_kit_example.gspo import GSPO
from rlhf_kit_example.options import GSPOOptions

from rlhf_kit.testing import made_up_policy_inputs
from rlhf_kit.types import SampledUnits

WIDE = GSPOOptions(clip_low=0.2, clip_high=0.3)


@pytest.mark.parametrize("options", [GSPOOptions(), WIDE])
def test_conforms(check_policy_loss, options: GSPOOptions) -> None:
    check_policy_loss(GSPO(options))


def test_by_hand() -> None:
    """Ratios 2 and 1/2 in one response cancel; 2 and 2 clip at 1.3; 1/2 clips at 0.8 for A < 0."""
    new = torch.tensor([[2.0, 0.5], [2.0, 2.0], [0.5, 9.0]]).log()
    advantages = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, 9.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    inputs = made_up_policy_inputs(new, torch.zeros(3, 2), advantages, mask)
    output = GSPO(WIDE)(inputs)
    assert output.total.item() == pytest.approx(-1.0 - 1.3 + 0.8)
    assert output.stats["clip_fraction"].item() == 2
    assert GSPO(WIDE).count(SampledUnits(mask, inputs.old_logprobs, inputs.group)).item() == 3


@pytest.mark.parametrize("seed", range(4))
def test_against_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    old, step, advantages = torch.randn((3, 5, 6), generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.randint(1, 7, (5, 1), generator=generator)
    new, total = old + 0.3 * step, 0.0
    for b in range(5):
        valid = [t for t in range(6) if mask[b, t]]
        mean = sum(float(new[b, t] - old[b, t]) for t in valid) / len(valid)
        a = sum(float(advantages[b, t]) for t in valid) / len(valid)
        s = math.exp(mean)
        total -= min(s * a, min(max(s, 0.8), 1.3) * a)
    found = GSPO(WIDE)(made_up_policy_inputs(new, old, advantages, mask)).total
    assert found.item() == pytest.approx(total, rel=1e-12)
