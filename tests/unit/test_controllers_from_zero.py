"""No controller stands still for ever because it multiplies a zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlhf_kit_policy_gradient.control import AdaptiveKL, AdaptivePtx, FixedKL, KLLimit
from rlhf_kit_policy_gradient.options import AdaptiveKLOptions, AdaptivePtxOptions, FixedKLOptions
from rlhf_kit_policy_gradient.steering import Beta
from toy_runs import ppo_options

from rlhf_kit.engine.world import OneProcess
from rlhf_kit.errors import NumericsError, RecipeError
from rlhf_kit.recipe import open_recipe
from rlhf_kit.testing import TabularPolicy, check_kl_controller
from rlhf_kit.types import Rollout

ZERO = "stages.ppo.kl.coef: is 0"


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["ppo.kl.coef=0", "ppo.kl.limit=3", "ppo.kl.on_limit=rollback"], "on_limit: rollback"),
        (["ppo.kl.coef=0", "ppo.kl.controller=adaptive"], "adaptive"),
        (["ppo.kl.coef=0.0", "ppo.kl.controller={use: adaptive, target: 2}"], "adaptive"),
    ],
)
def test_refused_from_zero(toy_recipe: Callable[..., Path], overrides: list[str], why: str) -> None:
    with pytest.raises(RecipeError) as caught:
        open_recipe(toy_recipe("full"), overrides)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"command line: {ZERO}") and why in line
    assert "greater than 0" in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["ppo.kl.coef=0"],
        ["ppo.kl.coef=0", "ppo.kl.limit=3"],
        ["ppo.kl.limit=3", "ppo.kl.on_limit=rollback"],
        ["ppo.kl.controller=adaptive"],
    ],
)
def test_accepted(toy_recipe: Callable[..., Path], overrides: list[str]) -> None:
    open_recipe(toy_recipe("full"), overrides)


def adaptive(**options: Any) -> AdaptiveKL:
    return AdaptiveKL(AdaptiveKLOptions(**options))


@pytest.mark.parametrize("samples", [64, 5 * 64, 6 * 64, 100 * 64])
def test_beta_comes_back_from_wherever_it_was(samples: int) -> None:
    """A rollout of five horizons takes all of beta off; a long calm takes it below any number."""
    controller, beta = adaptive(target=6.0, horizon=64.0), 0.1
    for _ in range(5000):
        beta = controller(beta, 0.0, samples)
    assert beta > 0
    for _ in range(200):
        beta = controller(beta, 60.0, samples)
    assert beta > 0.1


def test_the_published_step_is_as_it_was() -> None:
    controller = adaptive(target=6.0, horizon=1000.0)
    # 10 % over the target, a tenth of the horizon
    assert controller(0.1, 6.6, 100) == pytest.approx(0.1 * 1.01, rel=1e-12)
    assert controller(0.1, 0.0, 100) == pytest.approx(0.1 * 0.98, rel=1e-12)


def test_the_floor_of_beta_is_an_option() -> None:
    assert adaptive(horizon=1.0, least=0.03)(0.1, 0.0, 64) == 0.03


def test_bounds_of_gamma_in_the_wrong_order() -> None:
    with pytest.raises(ValidationError, match="least"):
        AdaptivePtxOptions(least=2.0, most=1.0)
    controller, gamma = AdaptivePtx(AdaptivePtxOptions(gain=20.0)), 1.0
    for perplexity in (10.0, *[1.0] * 50):
        gamma = controller(gamma, perplexity)
    assert gamma > 0
    for _ in range(20):
        gamma = controller(gamma, 100.0)
    assert gamma > 1.0


def test_a_rollback_that_cannot_raise_beta_stops() -> None:
    """A controller of a stranger's may have come to 0 by itself."""
    policy = TabularPolicy()
    learned = {"policy": policy}
    limit = KLLimit(ppo_options(kl={"limit": 1.0, "on_limit": "rollback"}).kl)
    beta = Beta(0.0, FixedKL(FixedKLOptions()), limit, OneProcess())
    assert beta.judge(rollout(policy, 0.5), learned) == "go on"
    over = rollout(policy, 1.5)
    assert beta.judge(over, learned) == "rollback"
    with pytest.raises(NumericsError, match=r"kl\.limit: .* the coefficient is 0"):
        beta.settle("rollback", over, learned)


def rollout(policy: TabularPolicy, kl: float) -> Rollout:
    """Every response once, each ``kl`` nats away from the reference."""
    samples = policy.all_samples()
    logprobs, mask = policy.evaluate(samples).logprobs.detach(), samples.mask
    reference = logprobs - kl / mask.sum(1, keepdim=True)
    return Rollout(samples, logprobs, reference, None, torch.zeros(len(samples)))


class FromZero(AdaptiveKL):
    """Multiplies, and has no floor."""

    def __call__(self, coefficient: float, kl: float, samples: int) -> float:
        return coefficient * (1.1 if kl > 6.0 else 0.9)


def test_the_kit_asks_a_multiplying_controller_to_say_so() -> None:
    check_kl_controller(FixedKL(FixedKLOptions()))
    controller = FromZero(AdaptiveKLOptions())
    check_kl_controller(controller, needs={"positive_coefficient"})
    with pytest.raises(AssertionError, match="positive_coefficient"):
        check_kl_controller(controller)
