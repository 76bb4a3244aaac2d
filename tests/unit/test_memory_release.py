"""What a stage has freed goes back to the system before the next one."""

from __future__ import annotations

import subprocess
import sys

from toys import environment

SCRIPT = """
import torch
from rlhf_kit.engine.release import release_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

begin = resident()
large = torch.ones(7 * 2**20)
del large  # from now on glibc takes tensors of less than 28 MiB from its heap
held = []
for _ in range(200):
    held.append(torch.ones(2**18))  # 1 MiB
    held.append(torch.ones(64))  # what stays in between
class Cycle:
    pass
cycle = Cycle()
cycle.own, cycle.large = cycle, torch.ones(2**18 * 50)
del cycle
held = held[1::2]
before = resident() - begin
release_memory()
print(before, resident() - begin)
"""


def test_freed_memory_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    before, after = map(float, done.stdout.split())
    assert before >= 200  # else there is nothing to give back here: another C library
    assert after <= 30
