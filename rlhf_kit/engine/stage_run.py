"""One execution of a stage: counting steps, checkpoints, Ctrl-C, metrics, observers."""

from __future__ import annotations

import contextlib
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
        self._counted = False
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
        if self._counted:
            raise PluginError(
                f"stage {self.id!r}: run.steps was called twice; the steps of a stage are one count"
            )
        self._counted, first = True, 0
        if self.resumed:
            first = self._checkpoints.load(state, self.say)
            self._metrics.cut(self.id, first)  # of steps that come again
            self.say(f"going on after {unit} {first} of {total}")
        with self._deferred_signals() as came, self._console.bar(self.id, total, unit) as bar:
            bar.advance(first)
            for step in range(first, total):
                yield step
                bar.advance(1)
                done = step + 1
                # After the last step too: what remains to be done may take long.
                if came.signum is not None or done == total or self._checkpoints.due(done):
                    self._save(done, state, last=done == total)
                if came.signum is not None and done < total:
                    raise Interrupted(
                        f"stopped after {unit} {done} of {total} of stage {self.id!r}, saved; "
                        "the same command goes on from here",
                        came.signum,
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

    @property
    def saved(self) -> str:
        """What a run that leaves at once has saved of this stage."""
        last = self._checkpoints.last or (self._checkpoints.newest if not self._fresh else 0)
        return f"saved after {last} of its steps" if last else "nothing of it is saved yet"

    def finish(self) -> None:
        """The artifact is complete: the checkpoints have served."""
        self._checkpoints.clear()

    @contextmanager
    def _deferred_signals(self) -> Iterator[_Came]:
        """Turn a request to stop into a note, so that a step completes.

        Only a second Ctrl-C stops at once: a terminal that is closed, or a service that is stopped,
        sends several signals as one request. What is ignored, as under `nohup`, stays ignored.
        """
        came = _Came()
        if threading.current_thread() is not threading.main_thread():
            yield came
            return

        def handler(signum: int, frame: FrameType | None) -> None:
            if came.signum is None:
                came.signum = signum
                # Not through the console, which this may have interrupted; nobody may be there.
                with contextlib.suppress(OSError):
                    os.write(2, b"stopping after this step; Ctrl-C once more to leave at once\n")
            elif signum == signal.SIGINT:
                raise KeyboardInterrupt

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heeded = [n for n in numbers if signal.getsignal(n) not in (signal.SIG_IGN, None)]
        previous = {number: signal.signal(number, handler) for number in heeded}
        try:
            yield came
        finally:
            for number, before in previous.items():
                signal.signal(number, before)
            self.signum = came.signum


class _Came:
    """The first signal that asked to stop, if one did."""

    signum: int | None = None
