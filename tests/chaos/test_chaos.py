"""Runs that are killed, again and again, and end as they would have: `make chaos`.

`CHAOS_SEED=1 make chaos` draws other deaths; a failure says how to see it again.
"""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Callable, Sequence

import pytest
from campaign import SEED, SHARE, Campaign
from deaths import Death
from places import Pipeline

MEMORIES = ("hydra", "lora", "full")
KINDS = ("moving", "bounded", "guests")
MODELS = ("toy", "trained")
CHECKPOINTS = (
    ("checkpoint.steps=1",),
    ("checkpoint.steps=2", "checkpoint.keep=1"),
    ("checkpoint.steps=3",),
    ("checkpoint.minutes=0.002",),
)
STAGES = ("sft", "collect", "reward_model", "ppo", "best_of_n", "evaluate")
PIPELINES = [
    # Each model under each memory, with what the other model does not have there.
    (model, memory, KINDS[(i + shift) % 3])
    for shift, model in enumerate(MODELS)
    for i, memory in enumerate(MEMORIES)
]
PLACES = [
    (*pipeline, stage)
    for pipeline in PIPELINES
    for stage in (*STAGES, *(("dpo", "kto") if pipeline[2] == "guests" else ()))
]
FEW = (
    ("hydra", "moving", "sft"),
    ("hydra", "moving", "collect"),
    ("hydra", "moving", "ppo"),
    ("lora", "bounded", "sft"),
    ("full", "guests", "sft"),
)
_COMMON = re.compile(r"^(?!.* stages/)|checkpoints|stage\.json")
Places = Callable[[str, str, str], Pipeline]


def judged(campaign: Campaign, request: pytest.FixtureRequest, before: int) -> None:
    """Fail with every fault that has been found since there were ``before``."""
    found = campaign.tally.faults[before:]
    again = f"CHAOS_SEED={SEED} python -m pytest {request.node.nodeid!r} -m chaos"
    assert not found, "\n\n".join([*map(str, found), f"again: {again}"])


def at_each(operations: Sequence[str], share: float, draw: random.Random) -> list[Death]:
    """A death at each kind of operation on an artifact, and at a share of all others.

    Those others, on records, rows and checkpoints, are the same in all stages. It comes at the
    first, the second or any of them, and cuts what was being written.
    """
    found = []
    for name in sorted(set(operations)):
        if _COMMON.search(name) and draw.random() > share:
            continue
        count = operations.count(name)
        number = min(count, draw.choice((1, 2, draw.randint(1, count))))
        if draw.random() < 0.75:
            kept = draw.choice((1.0, 0.5, 0.0))
            found.append(Death(operation=name, occurrence=number, kept=kept))
        else:
            asked = draw.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
            times = 2 if asked == signal.SIGINT else 1
            found.append(Death(asked, times, operation=name, occurrence=number))
    draw.shuffle(found)
    return found


def at_any_time(seconds: float, count: int, draw: random.Random) -> list[Death]:
    """By the clock of a run that takes ``seconds``."""
    kinds = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
    return [Death(draw.choice(kinds), seconds=draw.uniform(0, seconds)) for _ in range(count)]


@pytest.mark.parametrize(("memory", "kind", "stage"), FEW)
def test_a_few(
    memory: str,
    kind: str,
    stage: str,
    places: Places,
    campaign: Campaign,
    draw: random.Random,
    request: pytest.FixtureRequest,
) -> None:
    """Stopped at its first row, killed with rows of steps that are not saved, killed anywhere."""
    place, before = places("toy", memory, kind).stage(stage), len(campaign.tally.faults)
    row, deaths = "open metrics.jsonl", at_each(place.operations, 1.0, draw)
    anywhere = next(death for death in deaths if death.signal == signal.SIGKILL)
    inside = Death(operation=row, occurrence=3)
    asked = Death(signal.SIGTERM, operation=row)
    assert campaign.episode(place, ("checkpoint.steps=2",), [asked, inside, anywhere]) >= 2
    judged(campaign, request, before)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("model", "memory", "kind", "stage"), PLACES)
def test_at_every_operation(
    model: str,
    memory: str,
    kind: str,
    stage: str,
    places: Places,
    campaign: Campaign,
    draw: random.Random,
    request: pytest.FixtureRequest,
) -> None:
    place, before = places(model, memory, kind).stage(stage), len(campaign.tally.faults)
    overrides = draw.choice(CHECKPOINTS)
    deaths = at_each(place.operations, 0.2, draw)
    campaign.cut_at(place, overrides, deaths[: max(1, round(SHARE * len(deaths)))])
    judged(campaign, request, before)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("model", "memory", "kind"), PIPELINES)
def test_at_any_time(
    model: str,
    memory: str,
    kind: str,
    places: Places,
    campaign: Campaign,
    draw: random.Random,
    request: pytest.FixtureRequest,
) -> None:
    place, before = places(model, memory, kind).whole(), len(campaign.tally.faults)
    # Of a part of the time, since a run that was cut has less left.
    deaths = at_any_time(0.3 * place.seconds, max(1, round(15 * SHARE)), draw)
    campaign.cut_at(place, draw.choice(CHECKPOINTS), deaths)
    judged(campaign, request, before)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("memory", MEMORIES)
def test_by_the_command_line(
    memory: str,
    places: Places,
    campaign: Campaign,
    draw: random.Random,
    request: pytest.FixtureRequest,
) -> None:
    """In processes of their own, which may die while they import."""
    kind = KINDS[MEMORIES.index(memory)]
    place, before = places("toy", memory, kind).whole(), len(campaign.tally.faults)
    kinds = (signal.SIGKILL, signal.SIGTERM)
    deaths = [
        Death(
            draw.choice(kinds),
            seconds=draw.uniform(0.1, 5 + 0.3 * place.seconds),
            command_line=True,
        )
        for _ in range(5)
    ]
    campaign.cut_at(place, draw.choice(CHECKPOINTS), deaths)
    judged(campaign, request, before)
