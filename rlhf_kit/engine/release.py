"""Giving memory back between stages."""

from __future__ import annotations

import ctypes
import gc


def release_memory() -> None:
    """Let go of what a finished stage has left behind.

    Models and optimizers are in reference cycles, which wait for the collector; and the C library
    keeps what was freed for itself, in pieces that the next stage's larger tensors do not fit into.
    Not for use inside a stage: what is given back costs page faults to get again.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
