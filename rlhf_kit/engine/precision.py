"""Which floating-point type to compute in."""

from __future__ import annotations

from pathlib import Path

import torch

_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively; emulated, it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve_dtype(name: str) -> torch.dtype:
    """ "auto" is bfloat16 where the hardware is fast at it, float32 elsewhere."""
    if name != "auto":
        return _NAMES[name]
    fast = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else cpu_has_bfloat16()
    return torch.bfloat16 if fast else torch.float32
