"""One execution of a stage: counting steps, checkpoints, Ctrl-C, metrics, observers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rlhf_kit.engine.checkpoint import load_checkpoint, save_checkpoint
from rlhf_kit.engine.metrics import MetricsFile
from rlhf_kit.engine.progress import Console
from rlhf_kit.engine.seeding import GeneratorState, derive_seed, seed_everything
from rlhf_kit.errors import Interrupted
from rlhf_kit.interfaces import Observer, Stateful
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
        fresh: bool = False,
        checkpoint_seconds: float = 300.0,
    ) -> None:
        """``begin`` is called once, before anything is written; ``fresh``: what is in ``folder``

        now is of another recipe and makes room then.
        """
        self.id, self._folder = id, folder
        self._begin, self._fresh, self.begun = begin, fresh, False
        self._seed = seed
        self.generator = seed_everything(derive_seed(seed, id))
        self._metrics, self._console, self._observers = metrics, console, observers
        self._checkpoint = folder / "checkpoints" / "last.pt"
        self._checkpoint_seconds = checkpoint_seconds
        self.interrupted = False  # Ctrl-C came during the last step

    def key(self, *names: str | int) -> int:
        return derive_seed(self._seed, self.id, *map(str, names))

    @property
    def folder(self) -> Path:
        """Asked for by a stage that is about to write."""
        self.begin()
        return self._folder

    @property
    def resumed(self) -> bool:
        return not self._fresh and self._checkpoint.exists()

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
            first = load_checkpoint(self._checkpoint, state)
            self._metrics.cut(self.id, first)  # of steps that come again
            self.say(f"going on after {unit} {first} of {total}")
        saved_at = time.monotonic()
        with _deferred_interrupt() as interrupted, self._console.bar(self.id, total, unit) as bar:
            bar.advance(first)
            for step in range(first, total):
                try:
                    yield step
                except GeneratorExit:  # the stage ends early, of its own
                    self.interrupted = interrupted.is_set()
                    raise
                bar.advance(1)
                done = step + 1
                due = time.monotonic() - saved_at > self._checkpoint_seconds
                if (due or interrupted.is_set()) and done < total:
                    save_checkpoint(self._checkpoint, done, state)
                    saved_at = time.monotonic()
                    self._observers.checkpoint_saved(self.id, step, self._checkpoint)
                if interrupted.is_set() and done < total:
                    raise Interrupted(
                        f"stopped after {unit} {done} of {total} of stage {self.id!r}, saved; "
                        "the same command goes on from here"
                    )

            self.interrupted = interrupted.is_set()

    def finish(self) -> None:
        """The artifact is complete: the checkpoint has served."""
        self._checkpoint.unlink(missing_ok=True)


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that a step completes; the second one stops at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handler(signum: int, frame: FrameType | None) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
