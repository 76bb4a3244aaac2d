"""Checkpoints of everything with state: written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rlhf_kit.errors import DataError, interruption
from rlhf_kit.interfaces import Stateful
from rlhf_kit.run_folder import FORMAT, check_format

_FULL = {errno.ENOSPC, errno.EDQUOT}


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write through a temporary file, so that a full disk or a kill leaves the old file intact.

    Raises:
        DataError: no space is left; nothing that was there before is lost.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if interruption(error) is None and _disk_full(error):
            raise DataError(
                f"{path}: no space left on the disk; what was written before is intact. "
                "Free some space and run the same command again"
            ) from error
        raise


def _disk_full(error: BaseException) -> bool:
    """torch.save reports a failed write as a RuntimeError whose cause carries the errno, and

    safetensors puts the errno into words only.
    """
    if isinstance(error, SafetensorError):
        return any(f"os error {number}" in str(error) for number in _FULL)
    causes = (error, error.__cause__, error.__context__)
    return any(isinstance(e, OSError) and e.errno in _FULL for e in causes) or (
        isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error)
    )


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors, atomically."""
    whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # Through its own writer, which makes no copy of all of them in memory.
    write_atomically(path, lambda file: save_file(whole, file.name))


def save_checkpoint(path: Path, step: int, state: Mapping[str, Stateful]) -> None:
    """Save the state of every part after ``step`` completed steps."""
    content = {
        "format": FORMAT,
        "step": step,
        "state": {name: part.state_dict() for name, part in state.items()},
    }
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, state: Mapping[str, Stateful]) -> int:
    """Restore every part of ``state`` and return how many steps were complete.

    Raises:
        DataError: the checkpoint holds other parts than the stage has now, or is of another format.
    """
    content = torch.load(path, weights_only=True, map_location="cpu")
    check_format(path, content.get("format", 1))
    saved = content["state"]
    if saved.keys() != state.keys():
        raise DataError(
            f"{path}: holds state of {sorted(saved)}, but the stage has {sorted(state)}; "
            f"remove {path.parent} to start the stage again"
        )
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return int(content["step"])
