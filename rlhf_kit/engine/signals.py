"""Signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """The signal that asked a run to stop, if one did.

    Only a second Ctrl-C stops at once: a terminal that is closed, or a service that is stopped,
    sends several signals as one request. So what comes after the first is heeded no more until the
    run has left. What is ignored, as under `nohup`, stays ignored.
    """

    signum: int | None = None

    def __init__(self) -> None:
        self._previous: dict[int, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> StopRequests:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, a request is a note, so that a step completes."""
        if threading.current_thread() is threading.main_thread() and not self._previous:
            heeded = [n for n in _ASKING if signal.getsignal(n) not in (signal.SIG_IGN, None)]
            self._previous = {number: signal.signal(number, self._note) for number in heeded}
        try:
            yield
        finally:
            if self.signum is None:
                self.restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
            # Not through the console, which this may have interrupted; nobody may be there.
            with contextlib.suppress(OSError):
                os.write(2, b"stopping after this step; Ctrl-C once more to leave at once\n")
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt

    def restore(self) -> None:
        """Signals mean what they meant before."""
        for number, before in self._previous.items():
            signal.signal(number, before)
        self._previous = {}

    def leave(self) -> None:
        """The process ends now, with the exit code of the request that it has answered."""
        self.restore()
        if self.signum is not None:
            for number in _ASKING:
                signal.signal(number, signal.SIG_IGN)
