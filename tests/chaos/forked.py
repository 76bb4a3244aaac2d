"""The process of which attempts at runs are forked, with everything imported already.

An attempt so costs what it does, and not the seconds that importing torch takes. This process has
one thread and computes nothing, so that a child begins as a fresh process does. It reads a line of
JSON for each attempt and answers with another.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from deaths import Death, Operations

from rlhf_kit.plugins import load_plugins

HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    _load()
    for line in sys.stdin:
        request = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)  # until the child has its own handlers
        pid = os.fork()
        if pid == 0:
            _become(request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
        print(json.dumps(_waited(pid, request)), file=answers, flush=True)


def _load() -> None:
    """Import what a run imports, and compute nothing: a thread would not survive the fork."""
    for name in ("rlhf_kit.cli.main", "rlhf_kit.cli.run", "rlhf_kit.run"):
        importlib.import_module(name)
    for _, _, component in load_plugins().components:
        component.load()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # or the first collection in each child would copy every page of this


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
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
            os.execv(sys.executable, [sys.executable, "-m", "rlhf_kit", *request["args"]])
        operations = Operations(Path(request["folder"]), death)
        sys.addaudithook(operations)
        code = _main(request["args"])
        Path(request["operations"]).write_text(json.dumps(operations.seen))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _main(args: list[str]) -> int:
    main = importlib.import_module("rlhf_kit.cli.main").main
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
        main(args, prog_name="rlhf-kit")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except KeyboardInterrupt:  # between these two lines: the command line was not there yet
        print("stopped: before it began", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        atexit._run_exitfuncs()
    return 0


if __name__ == "__main__":
    _serve()
