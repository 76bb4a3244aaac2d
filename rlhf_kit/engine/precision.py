"""Where to compute, and in which floating-point type. Asks the hardware; loads nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf_kit.errors import RecipeError

_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively; emulated, it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def gpu_has_bfloat16(device: torch.device) -> bool:
    """Whether this GPU multiplies bfloat16 natively: NVIDIA's from compute capability 8.0 on.

    torch.cuda.is_bf16_supported() counts emulation in and judges the current device only.
    """
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)


def resolve_device(name: str) -> torch.device:
    """ "auto" is cuda if there is a GPU, else cpu.

    Raises:
        RecipeError: there is no such GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (device.index or 0):
            seen = f"{count} GPU{'s' if count > 1 else ''}" if count else "no GPU"
            raise RecipeError(f"memory.device: {name}, but torch sees {seen}; use cpu or auto")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 where ``device`` is fast at it, float32 elsewhere."""
    if name != "auto":
        return _NAMES[name]
    fast = gpu_has_bfloat16(device) if device.type == "cuda" else cpu_has_bfloat16()
    return torch.bfloat16 if fast else torch.float32
