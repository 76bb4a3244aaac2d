"""The kit must fail on broken normalisers and controllers of gamma, and say what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_kit.testing import check_normalizer, check_ptx_controller


class Whitening:
    """Mean 0 and variance 1 over the mask, with mistakes that can be chosen."""

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = mistakes

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        if "in place" in self.mistakes:
            x.mul_(mask)
        kept = x.nan_to_num() if "all places" in self.mistakes else x[mask]
        if "multiplies" in self.mistakes:
            kept = (x * mask).flatten()  # 0 * NaN is NaN
        if not mask.any():
            return torch.zeros_like(x)
        mean, spread = kept.mean(), kept.var(correction=0)
        eps = 0.0 if "no epsilon" in self.mistakes else 1e-8
        white = (x - mean) / (spread + eps).sqrt()
        if "dirty output" in self.mistakes:
            return torch.where(mask, white, -mean)
        if "rows" in self.mistakes:
            white = white * torch.arange(1, len(x) + 1).view(-1, *[1] * (x.dim() - 1))
        white = torch.where(mask, white, 0.0)
        return white.double() if "double" in self.mistakes else white


class Growing(Whitening):
    """Each call has another result, and nothing says so."""

    calls = 0

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        self.calls += 1
        return self.calls * super().__call__(x, mask)


def test_the_right_one_passes() -> None:
    check_normalizer(Whitening())


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("all places", "1000000000.0 outside the mask changed the result"),
        ("multiplies", "the result is not finite \\(nan outside the mask\\)|changed the result"),
        ("no epsilon", "not finite \\(values that are all equal\\)"),
        ("dirty output", "should be 0 outside the mask"),
        ("rows", "another order of the rows"),
        ("double", "should be float32, got torch.float64"),
        ("in place", "wrote into its inputs"),
    ],
)
def test_normalizers(mistake: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_normalizer(Whitening(mistake))


def test_a_normalizer_that_fails_on_an_empty_mask() -> None:
    def whiten(x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, x / x[mask].abs().max(), 0.0)

    with pytest.raises(AssertionError, match=r"raised .* \(a mask without a place\)"):
        check_normalizer(whiten)


def test_a_normalizer_that_remembers_in_secret() -> None:
    with pytest.raises(AssertionError, match="should have state_dict and load_state_dict"):
        check_normalizer(Growing())


class Scaling:
    """Divides by the largest value so far; invertible, with mistakes that can be chosen."""

    def __init__(self, mistake: str = "") -> None:
        self.mistake, self.largest, self.calls = mistake, 0.0, 0

    def update(self, x: Tensor, mask: Tensor) -> None:
        self.calls += 1
        kept = x if self.mistake == "unmasked update" else torch.where(mask, x, 0.0)
        self.largest = max(self.largest, kept.abs().max().item())

    @property
    def scale(self) -> float:
        start = 2.0 if self.mistake == "not the identity" else 1.0
        return self.largest or start

    def normalize(self, x: Tensor) -> Tensor:
        return x / self.scale

    def denormalize(self, x: Tensor) -> Tensor:
        return x * self.scale + (0.1 if self.mistake == "no inverse" else 0.0)

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        Scaling.update(self, torch.where(mask, x, 0.0), mask)
        found = torch.where(mask, self.normalize(x), 0.0)
        return found / self.calls if self.mistake == "forgets" else found

    def state_dict(self) -> dict[str, Any]:
        return {"largest": self.largest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.largest = state["largest"]


def test_invertible_normalizers() -> None:
    check_normalizer(Scaling())
    for mistake, says in (
        ("forgets", "put all state into state_dict"),
        ("no inverse", "denormalize\\(normalize\\(x\\)\\) should be x"),
        ("not the identity", "normalize should change nothing before the first update"),
        ("unmasked update", "NaN outside the mask reached the statistics"),
    ):
        with pytest.raises(AssertionError, match=says):
            check_normalizer(Scaling(mistake))


class Budget:
    """gamma grows with the excess over the first perplexity; mistakes can be chosen."""

    def __init__(self, mistake: str = "") -> None:
        self.first, self.mistake = 0.0, mistake
        self.every: Any = 4.0 if mistake == "every" else 4

    def __call__(self, coefficient: float, perplexity: float) -> float:
        self.first = self.first or perplexity
        step = perplexity / self.first - 1.0
        coefficient += -step if self.mistake == "sign" else step
        return coefficient if self.mistake == "negative" else max(0.0, coefficient)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.mistake == "forgets" else {"first": self.first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first = state.get("first", self.first)


def test_ptx_controllers() -> None:
    check_ptx_controller(Budget())
    for mistake, says in (
        ("every", "every should be an int, 0 for never measuring, got 4.0"),
        ("sign", "what holds it down"),
        ("negative", "it should be a float >= 0"),
        ("forgets", "put all that it remembers into state_dict"),
    ):
        with pytest.raises(AssertionError, match=says):
            check_ptx_controller(Budget(mistake))
