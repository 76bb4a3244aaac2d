"""One execution of a stage: counting steps, checkpoints, Ctrl-C, metrics, observers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rlhf_kit.engine.checkpoints import Checkpoints
from rlhf_kit.engine.metrics import MetricsFile
from rlhf_kit.engine.progress import Console
from rlhf_kit.engine.seeding import GeneratorState, derive_seed, seed_everything
from rlhf_kit.errors import Interrupted
from rlhf_kit.interfaces import Observer, Stateful
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
        self._checkpoints = Checkpoints(folder / "checkpoints", checkpoint)
        self.signum: int | None = None  # of the signal that came during the last step

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
        first = 0
        if self.resumed:
            first = self._checkpoints.load(state, self.say)
            self._metrics.cut(self.id, first)  # of steps that come again
            self.say(f"going on after {unit} {first} of {total}")
        with _deferred_signals() as came, self._console.bar(self.id, total, unit) as bar:
            bar.advance(first)
            for step in range(first, total):
                try:
                    yield step
                except GeneratorExit:  # the stage ends early, of its own
                    self.signum = came.signum
                    raise
                bar.advance(1)
                done = step + 1
                # After the last step too: what remains to be done may take long.
                if came.signum is not None or done == total or self._checkpoints.due(done):
                    path = self._checkpoints.save(done, state)
                    self._observers.checkpoint_saved(self.id, step, path)
                if came.signum is not None and done < total:
                    raise Interrupted(
                        f"stopped after {unit} {done} of {total} of stage {self.id!r}, saved; "
                        "the same command goes on from here",
                        came.signum,
                    )
            self.signum = came.signum

    @property
    def saved(self) -> str:
        """What a run that leaves at once has saved of this stage."""
        last = self._checkpoints.last
        return f"saved after {last} of its steps" if last else "nothing of it is saved yet"

    def finish(self) -> None:
        """The artifact is complete: the checkpoints have served."""
        self._checkpoints.clear()


class _Came:
    """The first signal that asked to stop, if one did."""

    signum: int | None = None


@contextmanager
def _deferred_signals() -> Iterator[_Came]:
    """Turn the first request to stop into a note, so that a step completes; a second one stops."""
    came = _Came()
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def handler(signum: int, frame: FrameType | None) -> None:
        if came.signum is not None:
            raise KeyboardInterrupt
        came.signum = signum
        # Not through the console, which this may have interrupted.
        os.write(2, b"stopping after this step; once more to leave at once\n")

    wanted = [s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None))]
    previous = {signum: signal.signal(signum, handler) for signum in wanted}
    try:
        yield came
    finally:
        for signum, before in previous.items():
            signal.signal(signum, before)
