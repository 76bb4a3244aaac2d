"""The engine does not trust what a reward returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_kit.engine.scoring import load_models, score, try_out, try_out_labeler
from rlhf_kit.errors import NumericsError, PluginError
from rlhf_kit.testing import made_up_samples
from rlhf_kit.types import Samples

SAMPLES = made_up_samples(["good", "bad", "ugly"])


class Composite:
    """Length, and whether it is "bad"."""

    def components(self, samples: Samples) -> dict[str, Tensor]:
        return {
            "length": torch.tensor([float(len(text)) for text in samples.responses]),
            "bad": torch.tensor([float(text == "bad") for text in samples.responses]),
        }

    def combine(self, components: Mapping[str, Tensor]) -> Tensor:
        return components["length"] - 10 * components["bad"]

    def __call__(self, samples: Samples) -> Tensor:
        return self.combine(self.components(samples))


@pytest.mark.parametrize(
    "value", [[1, 2, 3], torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0]).double()]
)
def test_numbers_become_float32(value: Any) -> None:
    found = score(lambda samples: value, SAMPLES)
    assert found.total.dtype == torch.float32
    assert found.total.tolist() == [1.0, 2.0, 3.0]
    assert (found.components, found.tokens) == ({}, None)


def test_scores_of_tokens_are_summed() -> None:
    """What stands in the padding is nobody's."""
    mask = SAMPLES.response_mask
    assert mask.sum(1).tolist() == [5, 4, 4]
    value = torch.where(mask, torch.arange(5.0), torch.nan).double()
    found = score(lambda samples: value, SAMPLES)
    assert found.total.tolist() == [10.0, 6.0, 6.0]
    assert found.tokens is not None and found.tokens.dtype == torch.float32
    assert found.tokens.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0], [0, 1, 2, 3, 0]]


def test_a_score_of_a_token_that_is_not_finite() -> None:
    value = torch.zeros(SAMPLES.response_mask.shape)
    value[1, 2] = torch.nan
    with pytest.raises(NumericsError) as caught:
        score(lambda samples: value, SAMPLES)
    assert str(caught.value) == (
        "reward: score nan for response 1, token 2, of 3 ('bad'); scores must be finite"
    )


def test_a_composite_of_tokens_shows_the_sums() -> None:
    class Tokens(Composite):
        def components(self, samples: Samples) -> dict[str, Tensor]:
            length = super().components(samples)["length"]
            return {"length": length, "bad": samples.response_mask.float()}

        def combine(self, components: Mapping[str, Tensor]) -> Tensor:
            return components["length"][:, None] - 10 * components["bad"]

    found = score(Tokens(), SAMPLES)
    assert found.components["bad"].tolist() == [5.0, 4.0, 4.0]
    assert found.components["length"].tolist() == [4.0, 3.0, 4.0]
    assert found.total.tolist() == [5 * -6.0, 4 * -7.0, 4 * -6.0]


def test_no_gradient_is_kept() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert not score(lambda samples: 2 * weight, SAMPLES).total.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite(value: float) -> None:
    with pytest.raises(NumericsError) as caught:
        score(lambda samples: torch.tensor([0.0, value, 0.0]), SAMPLES)
    assert str(caught.value) == (
        f"reward: score {value} for response 1 of 3 ('bad'); scores must be finite"
    )
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(("value", "shape"), [(torch.zeros(3, 1), r"\[3, 1\]"), ([0.0], r"\[1\]")])
def test_a_wrong_shape(value: Any, shape: str) -> None:
    said = rf"one score per response, shape \[3\], or per token, \[3, 5\]; got {shape}"
    with pytest.raises(NumericsError, match=said):
        score(lambda samples: value, SAMPLES)


@pytest.mark.parametrize("value", [None, ["good", "bad", "ugly"], [1.0, [2.0], 3.0]])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(NumericsError, match="reward: expected one number per response, got "):
        score(lambda samples: value, SAMPLES)


def test_a_composite_shows_its_components() -> None:
    found = score(Composite(), SAMPLES)
    assert found.total.tolist() == [4.0, -7.0, 4.0]
    assert {name: value.tolist() for name, value in found.components.items()} == {
        "length": [4.0, 3.0, 4.0],
        "bad": [0.0, 1.0, 0.0],
    }


def test_a_broken_component_is_named() -> None:
    class Broken(Composite):
        def components(self, samples: Samples) -> dict[str, Tensor]:
            return super().components(samples) | {"bad": torch.tensor([0.0, float("nan"), 0.0])}

    with pytest.raises(NumericsError, match=r"reward: bad: score nan for response 1 of 3"):
        score(Broken(), SAMPLES)


@pytest.mark.parametrize("rows", [[{"prompt": "a"}], [{"prompt": p} for p in "abc"]])
def test_a_probe_finds_a_broken_reward_early(rows: list[dict[str, Any]]) -> None:
    seen: list[int] = []

    def broken(samples: Samples) -> Tensor:
        seen.append(len(samples))
        assert samples.responses[0] and samples.rows[0]["prompt"] == "a"
        return torch.zeros(1)

    with pytest.raises(NumericsError, match=r"shape \[2\], or per token, .* got \[1\]"):
        try_out(broken, rows)
    assert seen == [2]  # two answers, so that a lost dimension shows


def test_a_reward_that_needs_models_is_left_for_later() -> None:
    class Later:
        needs_models = True
        loaded: Any = None

        def load(self, memory: Any) -> None:
            self.loaded = memory

        def __call__(self, samples: Samples) -> Tensor:
            raise AssertionError("called before load")

    later = Later()
    try_out(later, [{"prompt": "a"}])
    try_out_labeler(later, [{"prompt": "a"}])  # type: ignore[arg-type]
    load_models(later, "memory")  # type: ignore[arg-type]
    assert later.loaded == "memory"
    load_models(lambda samples: None, "memory")  # type: ignore[arg-type]


def test_a_probe_tries_the_parts_that_need_no_models() -> None:
    class Learned:
        needs_models = True

        def load(self, memory: Any) -> None:
            raise AssertionError("loaded by a probe")

    class Sum(Composite):
        needs_models = True  # since one part does
        load = Learned.load

        def __init__(self) -> None:
            self.parts = {"learned": Learned(), "plain": lambda samples: [0.0]}

    with pytest.raises(NumericsError, match=r"reward\.plain"):
        try_out(Sum(), [{"prompt": "a"}])


def test_a_reward_that_raises_is_named() -> None:
    def broken(samples: Samples) -> Tensor:
        raise KeyError("answer")

    with pytest.raises(PluginError, match="gold: KeyError: 'answer'"):
        score(broken, SAMPLES, "gold")
