"""Giving memory back that nothing uses."""

from __future__ import annotations

import ctypes
import gc


def trim_heap() -> None:
    """Have the C library give back what has been freed; a few hundredths of a second.

    glibc takes tensors below 32 MiB from a heap whose freed middle it keeps, in pieces that other
    tensors do not fit into: phases of different shapes, one after the other, add up.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


def release_memory() -> None:
    """Let go of what a finished stage has left behind: models that reference cycles hold, too.

    Not for use inside a stage, where collecting takes longer than it gains.
    """
    gc.collect()
    trim_heap()
