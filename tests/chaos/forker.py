"""Attempts at runs, one at a time, each in a process of its own (``forked.py``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

from deaths import Death

_SERVER = Path(__file__).with_name("forked.py")


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
        # In turn, since sets have another order in each process, which no result may depend on.
        servers = [_started(hash_seed) for hash_seed in ("1", "2")]
        self._servers, self._turns = servers, cycle(servers)

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
        server = next(self._turns)
        assert server.stdin is not None and server.stdout is not None
        print(json.dumps(request), file=server.stdin, flush=True)
        answer = json.loads(server.stdout.readline())
        operations = json.loads(noted.read_text()) if noted.exists() else []
        return Attempt(text=log.read_text(errors="replace"), operations=operations, **answer)

    def close(self) -> None:
        for server in self._servers:
            assert server.stdin is not None
            server.stdin.close()
            server.wait(timeout=60)


def _started(hash_seed: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    # Sums come out alike only with as many threads.
    own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": hash_seed}
    return subprocess.Popen(
        [sys.executable, str(_SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | own,
    )
