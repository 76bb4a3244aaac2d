"""Attempts at runs, each in a process forked from one that has loaded everything already.

An attempt so costs what it does, and not the seconds that importing torch takes. The forking
process has one thread and never computes, so that a child begins as a fresh process does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from deaths import Death, Operations

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Attempt:
    """How one attempt ended."""

    code: int  # as of subprocess: minus the signal that killed it
    seconds: float
    text: str  # of standard error
    hung: bool  # it was killed because it took too long
    operations: list[str]  # on files of the run folder; empty if it was killed


class Forker:
    """Makes attempts, one at a time.

    Args:
        folder: for the log of an attempt.
        limit: seconds after which an attempt counts as hung.
    """

    def __init__(self, folder: Path, limit: float = 300.0) -> None:
        self._folder, self._limit = folder, limit
        paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
        # Sums come out alike only with as many threads.
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(
        self, recipe: Path, out: Path, overrides: Sequence[str] = (), death: Death | None = None
    ) -> Attempt:
        """`rlhf-kit run RECIPE OVERRIDES --out OUT`, which ``death`` ends."""
        log, noted = self._folder / "log.txt", self._folder / "operations.json"
        noted.unlink(missing_ok=True)
        request = {
            "args": ["run", str(recipe), *overrides, "--out", str(out)],
            "folder": str(out),
            "log": str(log),
            "operations": str(noted),
            "limit": self._limit,
            "death": None if death is None else asdict(death),
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        operations = json.loads(noted.read_text()) if noted.exists() else []
        return Attempt(text=log.read_text(errors="replace"), operations=operations, **answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def _serve() -> None:
    """Answer a line of JSON for every one that is read."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    _load()
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(request)
        print(json.dumps(_waited(pid, request)), file=answers, flush=True)


def _load() -> None:
    import torch

    from rlhf_kit.plugins import load_plugins

    torch.set_num_threads(1)
    for _, _, component in load_plugins().components:
        component.load()


def _waited(pid: int, request: dict[str, Any]) -> dict[str, Any]:
    """Send the signals that come from outside; how the child has ended."""
    begin, descriptor = time.monotonic(), os.pidfd_open(pid)
    ends, hung = select.poll(), False
    ends.register(descriptor, select.POLLIN)
    death = None if request["death"] is None else Death(**request["death"])
    if death is not None and death.seconds is not None:
        for _ in range(death.times):
            if ends.poll(1000 * death.seconds):
                break
            signal.pidfd_send_signal(descriptor, death.signal)
    if not ends.poll(1000 * request["limit"]):
        hung = True
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(descriptor)
    seconds = time.monotonic() - begin
    return {"code": os.waitstatus_to_exitcode(status), "seconds": seconds, "hung": hung}


def _become(request: dict[str, Any]) -> None:
    """In the child: what the shell and `rlhf-kit` do. Never returns."""
    code = 70
    try:
        for number in HEEDED:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open(os.devnull, os.O_RDWR)
        for old, new in ((nothing, 0), (nothing, 1), (log, 2)):
            os.dup2(old, new)
        death = None if request["death"] is None else Death(**request["death"])
        if death is not None and death.command_line:
            os.execv(sys.executable, [sys.executable, "-m", "rlhf_kit", *request["args"]])
        operations = Operations(Path(request["folder"]), death)
        sys.addaudithook(operations)
        code = _main(request["args"])
        Path(request["operations"]).write_text(json.dumps(operations.seen))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _main(args: list[str]) -> int:
    from rlhf_kit.cli.main import main

    try:
        main(args, prog_name="rlhf-kit")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


if __name__ == "__main__":
    _serve()
