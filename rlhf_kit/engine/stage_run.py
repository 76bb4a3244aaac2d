"""One execution of a stage: counting steps, checkpoints, Ctrl-C, metrics, observers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rlhf_kit.engine.checkpoints import Checkpoints
from rlhf_kit.engine.held import Held
from rlhf_kit.engine.metrics import MetricsFile
from rlhf_kit.engine.progress import Console
from rlhf_kit.engine.seeding import GeneratorState, derive_seed, seed_everything
from rlhf_kit.engine.signals import StopRequests
from rlhf_kit.errors import DataError, Interrupted, PluginError
from rlhf_kit.interfaces import Observer, Stateful
from rlhf_kit.run_folder import CHECKPOINTS
from rlhf_kit.stage_options import CheckpointOptions
from rlhf_kit.types import Rollout


class StageExecution:
    """Implements rlhf_kit.interfaces.StageRun."""

    def __init__(
        self,
        id: str,
        folder: Path,
        *,
        seed: int,
        metrics: MetricsFile,
        console: Console,
        observers: Observer,
        begin: Callable[[], None],
        checkpoint: CheckpointOptions,
        requests: StopRequests,
        fresh: bool = False,
    ) -> None:
        """``begin`` is called once, before anything is written; ``fresh``: what is in ``folder``

        now is of another recipe and makes room then.
        """
        self.id, self._folder = id, folder
        self._begin, self._fresh, self.begun = begin, fresh, False
        self._seed = seed
        self.generator = seed_everything(derive_seed(seed, id))
        self._metrics, self._console, self._observers = metrics, console, observers
        self._checkpoints = Checkpoints(folder / CHECKPOINTS, checkpoint)
        self._requests, self._counted = requests, False
        self._before: tuple[int, dict[str, Held]] | None = None  # the step that is under way

    def key(self, *names: str | int) -> int:
        return derive_seed(self._seed, self.id, *map(str, names))

    @property
    def folder(self) -> Path:
        """Asked for by a stage that is about to write."""
        self.begin()
        return self._folder

    @property
    def resumed(self) -> bool:
        return not self._fresh and bool(self._checkpoints)

    def begin(self) -> None:
        """From here on the stage writes: all that could be refused before has been."""
        if self.begun:
            return
        self._begin()
        self._fresh, self.begun = False, True
        if not self.resumed:
            self._metrics.cut(self.id)

    def say(self, text: str) -> None:
        self._console.line(f"[{self.id}] {text}")

    def rollout_collected(self, step: int, rollout: Rollout) -> None:
        self._observers.rollout_collected(self.id, step, rollout)

    def end_step(self, step: int, metrics: Mapping[str, float], line: str | None = None) -> None:
        self._metrics.write(self.id, step, metrics)
        self._observers.step_ended(self.id, step, metrics)
        if line:
            self.say(line)

    def steps(self, total: int, state: Mapping[str, Stateful], unit: str = "step") -> Iterator[int]:
        """See rlhf_kit.interfaces.StageRun.steps."""
        self.begin()
        state = {**state, "generators": GeneratorState(self.generator)}
        if self._counted:
            raise PluginError(
                f"stage {self.id!r}: run.steps was called twice; the steps of a stage are one count"
            )
        self._counted, first = True, 0
        if self.resumed:
            first = self._checkpoints.load(state, self.say)
            self._metrics.cut(self.id, first)  # of steps that come again
            self.say(f"going on after {unit} {first} of {total}")
        with self._requests.noted(), self._console.bar(self.id, total, unit) as bar:
            bar.advance(first)
            for step in range(first, total):
                self._before = step, {name: Held(part, name) for name, part in state.items()}
                yield step
                self._before = None
                bar.advance(1)
                done = step + 1
                # After the last step too: what remains to be done may take long.
                signum = self._requests.signum
                if signum is not None or done == total or self._checkpoints.due(done):
                    self._save(done, state, last=done == total)
                if signum is not None and done < total:
                    raise Interrupted(
                        f"stopped after {unit} {done} of {total} of stage {self.id!r}, saved; "
                        "the same command goes on from here",
                        signum,
                    )

    def _save(self, done: int, state: Mapping[str, Stateful], *, last: bool) -> None:
        try:
            path = self._checkpoints.save(done, state)
        except DataError as error:
            if not last:
                raise
            # The training is complete: its artifact may still fit where a checkpoint does not.
            self.say(f"warning: no checkpoint after the last step: {error}")
        else:
            self._observers.checkpoint_saved(self.id, done - 1, path)

    def save_before_step(self) -> None:
        """Keep what was complete when the step began which an error leaves now."""
        if self._before is None or self._before[0] <= self._checkpoints.last:
            return
        done, state = self._before
        # The error that leaves is the one to report; a device that has failed cannot be read.
        with contextlib.suppress(Exception):
            self._save(done, state, last=False)
            self.say(f"saved after {done} of its steps; the same command goes on from there")

    @property
    def saved(self) -> str:
        """What a run that leaves at once has saved of this stage."""
        last = self._checkpoints.last or (self._checkpoints.newest if not self._fresh else 0)
        return f"saved after {last} of its steps" if last else "nothing of it is saved yet"

    def finish(self) -> None:
        """The artifact is complete: the checkpoints have served."""
        self._checkpoints.clear()
