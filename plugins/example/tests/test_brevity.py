"""The reward, through rlhf-kit's fixtures and by hand."""

from __future__ import annotations

import pytest
from rlhf_kit_example.brevity import Brevity
from rlhf_kit_example.options import BrevityOptions


def test_conforms(check_reward) -> None:
    check_reward(Brevity(BrevityOptions()))


def test_scores(check_reward, made_up_samples) -> None:
    samples = made_up_samples(["one two three", "one", "one two three four five", ""])
    scores = check_reward(Brevity(BrevityOptions(target=3, width=2.0)), samples)
    # exp(0), exp(-1/2), exp(-1/2), exp(-9/8)
    assert scores.tolist() == pytest.approx([1.0, 0.60653, 0.60653, 0.32465], abs=1e-5)
