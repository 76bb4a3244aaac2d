"""Episodes of deaths and continuations, and what is wrong with what they leave."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deaths import Death
from folders import differences, finished, owed
from forker import Attempt, Forker
from places import Place

from rlhf_kit.stage_options import CheckpointOptions

SEED = int(os.environ.get("CHAOS_SEED", "0"))
SHARE = float(os.environ.get("CHAOS_SHARE", "1"))  # of the deaths that are planned
_WORK = re.compile(r"\b(step|prompt) \d+/\d+")
_SAVED = re.compile(r"^stopped: stopped after \w+ (\d+) of \d+ of stage '(\w+)'", re.M)
_ENDED = re.compile(r"^stopped: stopped after stage '(\w+)'", re.M)
IN_A_ROW = 5  # deaths in one run folder

Standing = dict[str, tuple[bool, int]]  # of each stage: whether it is finished, steps it has saved


@dataclass(frozen=True)
class Fault:
    """What went wrong after which deaths."""

    place: str
    deaths: tuple[str, ...]
    overrides: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        lines = [f"{self.place} {' '.join(self.overrides)}", *map(str, self.deaths), self.text]
        return "\n  ".join(lines)


@dataclass
class Tally:
    """What was done, over all episodes."""

    kinds: Counter[str] = field(default_factory=Counter)  # of deaths that came in time
    stages: Counter[str] = field(default_factory=Counter)  # in which they came
    places: Counter[str] = field(default_factory=Counter)  # model/memory
    operations: set[str] = field(default_factory=set)
    continued: int = 0
    compared: int = 0
    faults: list[Fault] = field(default_factory=list)

    def __str__(self) -> str:
        def told(counts: Counter[str]) -> str:
            return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))

        return (
            f"{sum(self.kinds.values())} deaths ({told(self.kinds)}) in {told(self.stages)}; "
            f"of {told(self.places)}; at {len(self.operations)} kinds of file operations; "
            f"{self.continued} continuations, {self.compared} runs compared, "
            f"{len(self.faults)} faults"
        )


class Campaign:
    """Cuts runs and lets them go on.

    Args:
        forker: makes the attempts.
        folder: for run folders; emptied after each episode.
        tally: is added to.
    """

    def __init__(self, forker: Forker, folder: Path, tally: Tally) -> None:
        self._forker, self._folder, self.tally = forker, folder, tally

    def cut_at(self, place: Place, overrides: Sequence[str], deaths: Iterable[Death]) -> None:
        """Die of each of ``deaths`` in turn, several in a run folder.

        A run that ends before its death comes is compared, and the next one begins; a death that
        does not come in a whole run is left out.
        """
        left = list(deaths)
        while left:
            died = self.episode(place, overrides, left[:IN_A_ROW])
            left = left[max(died, 1) :]

    def episode(self, place: Place, overrides: Sequence[str], deaths: Sequence[Death]) -> int:
        """One run folder, one death after another until it is complete; how many came in time."""
        out, this = self._begun(place), _Episode(place, tuple(overrides))
        for death in [*deaths, None]:
            before = _standing(out, place, overrides)
            attempt = self._forker.run(place.recipe, out, overrides, death)
            self.tally.continued += bool(this.died)
            this.attempts.append(attempt)
            came = death is not None and attempt.code != 0
            if death is not None and came:
                this.died.append(death)
                self._count(place, death, out)
            if faults := [*_ending(attempt, death), *this.lost(attempt, before)]:
                self._blame(this, "; ".join(faults) + "\n" + attempt.text[-2000:])
                break
            if not came:
                self._compare(this, out)
                break
        return len(this.died)

    def _begun(self, place: Place) -> Path:
        out = self._folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        if place.start is not None:
            shutil.copytree(place.start, out)
        return out

    def _count(self, place: Place, death: Death, out: Path) -> None:
        how = "at an operation" if death.operation else "by the clock"
        name = signal.Signals(death.signal).name
        self.tally.kinds[f"{name} {'by the command line' if death.command_line else how}"] += 1
        model, _, rest = place.name.partition("/")
        self.tally.places[f"{model}/{rest.partition('/')[0]}"] += 1
        self.tally.stages[next((id for id in place.stages if not finished(out, id)), "end")] += 1
        if death.operation:
            self.tally.operations.add(death.operation)

    def _compare(self, this: _Episode, out: Path) -> None:
        self.tally.compared += 1
        if found := differences(out, this.place.wanted):
            self._blame(this, "\n  ".join(found[:12]))

    def _blame(self, this: _Episode, text: str) -> None:
        died = tuple(str(death) for death in this.died)
        self.tally.faults.append(Fault(this.place.name, died, this.overrides, text))


@dataclass
class _Episode:
    place: Place
    overrides: tuple[str, ...]
    died: list[Death] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)

    def lost(self, attempt: Attempt, before: Standing) -> Iterable[str]:
        """What an attempt did again that was finished or saved, or that the one before promised."""
        if len(self.attempts) > 1:
            before = before | _promised(self.attempts[-2], before)
        for id, (done, steps) in before.items():
            own = [line for line in attempt.text.splitlines() if line.startswith(f"[{id}] ")]
            went_on = re.search(rf"^\[{id}\] going on after \w+ (\d+) of", attempt.text, re.M)
            if done and any("finished already" not in line for line in own):
                yield f"{id} was finished, and then: {own[0]}"
            elif went_on and int(went_on[1]) < steps:
                yield f"{id} had saved {steps} steps, and went on after {went_on[1]}"
            elif not done and steps and not went_on and _WORK.search("\n".join(own)):
                yield f"{id} had saved {steps} steps, and began anew"


def _standing(out: Path, place: Place, overrides: Sequence[str]) -> Standing:
    options = _options(overrides)
    return {id: (finished(out, id), owed(out, id, options)) for id in place.stages}


def _promised(attempt: Attempt, before: Standing) -> Standing:
    """What the last line of an attempt that was stopped has said of a stage."""
    if said := _SAVED.search(attempt.text):
        return {said[2]: (False, max(int(said[1]), before[said[2]][1]))}
    said = _ENDED.search(attempt.text)
    return {said[1]: (True, 0)} if said else {}


def _ending(attempt: Attempt, death: Death | None) -> Iterable[str]:
    """What is wrong with how an attempt ended."""
    if attempt.hung:
        yield "it hung"
    if "Traceback" in attempt.text:
        yield "a traceback"
    if attempt.code == 0:
        return
    if death is None:
        yield f"exit code {attempt.code}"
    elif attempt.code == 128 + death.signal:
        if not re.search(r"^stopped: ", attempt.text, re.M):
            yield "it did not say that it was stopped"
    # Outside of steps a request to stop ends the process as the system has it.
    elif attempt.code != -death.signal:
        yield f"exit code {attempt.code}"


def _options(overrides: Sequence[str]) -> CheckpointOptions:
    found = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if key.startswith("checkpoint."):
            found[key.removeprefix("checkpoint.")] = json.loads(value)
    return CheckpointOptions(**found)
