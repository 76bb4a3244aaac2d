"""Conformance of controllers: coefficient to coefficient, and nothing remembered in secret."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from rlhf_kit.interfaces import KLController, PtxController, Stateful
from rlhf_kit.testing.sentences import named, require


def check_kl_controller(controller: KLController, *, needs: Collection[str] = ()) -> None:
    """Check a KL controller: finite coefficients >= 0, and state that survives.

    More KL never lowers beta below what less KL gives; one that remembers is Stateful and goes on
    exactly after ``load_state_dict(state_dict())``. ``needs`` are its component's: one that raises
    a coefficient but never one of 0 needs "positive_coefficient".
    """
    name = named(controller)

    def after(start: float, *kls: float) -> float:
        return _followed(controller, start, kls, lambda c, beta, kl: c(beta, kl, 64))

    low, high = after(0.05, *[0.0] * 50), after(0.05, *[1e3] * 50)
    require(high >= low, f"{name}: a large KL should not give a smaller coefficient than none")
    stuck = after(0.0, *[1e3] * 50) == 0
    require(
        not (stuck and high > 0.05) or "positive_coefficient" in needs,
        f"{name}: a coefficient of 0 stays 0 whatever the KL; declare "
        'needs=frozenset({"positive_coefficient"}) on its component',
    )
    _remembers(controller, (20.0, 3.0, 9.0), lambda c, beta, kl: c(beta, kl, 64))


def check_ptx_controller(controller: PtxController) -> None:
    """Check a controller of gamma: finite coefficients >= 0, and state that survives.

    ``every`` says how often to measure, 0 for never; a perplexity that has risen since the first
    measurement never gives a smaller coefficient than one that has fallen; one that remembers is
    Stateful and goes on exactly after ``load_state_dict(state_dict())``.
    """
    name, every = named(controller), controller.every
    require(
        type(every) is int and every >= 0,
        f"{name}.every should be an int, 0 for never measuring, got {every!r}",
    )

    def call(controller: PtxController, gamma: float, perplexity: float) -> float:
        return controller(gamma, perplexity)

    for length in (1, 50):
        low = _followed(controller, 0.5, (20.0, *[10.0] * length), call)
        high = _followed(controller, 0.5, (20.0, *[1e6] * length), call)
        require(
            high >= low,
            f"{name}: a perplexity that rises should not give a smaller coefficient than one that "
            "falls: the pretraining term is what holds it down",
        )
    _remembers(controller, (20.0, 20.5, 40.0, 20.6), call)


def _followed(
    controller: Any, start: float, seen: Sequence[float], call: Callable[[Any, float, float], float]
) -> float:
    """The coefficient after a fresh copy of ``controller`` has seen what there is to see."""
    fresh, value = copy.deepcopy(controller), start
    for x in seen:
        value = call(fresh, value, x)
        require(
            isinstance(value, float) and math.isfinite(value) and value >= 0,
            f"{named(controller)}: from {start}, after {x}, the coefficient is {value!r}; it "
            "should be a float >= 0",
        )
    return value


def _remembers(
    controller: Any, seen: Sequence[float], call: Callable[[Any, float, float], float]
) -> None:
    """What a call depends on besides its arguments is state that a checkpoint holds."""
    name, straight, value = named(controller), copy.deepcopy(controller), 0.5
    value = call(straight, value, seen[0])
    if isinstance(straight, Stateful):
        state = copy.deepcopy(straight.state_dict())
        resumed = copy.deepcopy(controller)
        for x in (5.0, 80.0):  # nothing of this may be left after loading
            call(resumed, 0.3, x)
        resumed.load_state_dict(state)
    else:
        resumed = copy.deepcopy(controller)
    other = value
    for x in seen[1:]:
        value, other = call(straight, value, x), call(resumed, other, x)
        require(
            other == value,
            f"{name}: after a resume the coefficient is {other}, without one {value}; put all "
            "that it remembers into state_dict",
        )
