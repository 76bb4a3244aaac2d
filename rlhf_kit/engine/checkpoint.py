"""Checkpoints of everything with state: written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rlhf_kit.errors import DataError, interruption
from rlhf_kit.file_system import file_error, replace
from rlhf_kit.interfaces import Stateful
from rlhf_kit.run_folder import FORMAT, check_format


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line what keeps ``path`` from being written.

    Raises:
        DataError: a full disk, no permission, something in the way, ...
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = _os_error(error)
        told = None if cause is None else file_error(cause, path)
        if told is None or interruption(error) is not None:
            raise
        raise told from error


def _os_error(error: Exception) -> OSError | None:
    """What the system said: torch.save passes it on as the cause of a RuntimeError, or says only

    that it could not write, and safetensors puts the number into words.
    """
    if isinstance(error, SafetensorError):
        number = re.search(r"os error (\d+)", str(error))
        return OSError(int(number[1]), str(error)) if number else None
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OSError):
            return cause
    full = "PytorchStreamWriter" in str(error)
    return OSError(errno.ENOSPC, str(error)) if full else None


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write through a temporary file, so that a full disk or a kill leaves the old file intact.

    Raises:
        DataError: it cannot be written; nothing that was there before is lost.
    """
    temporary = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


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
