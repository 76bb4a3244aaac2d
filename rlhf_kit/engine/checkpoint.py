"""Checkpoints of everything with state: written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rlhf_kit.engine.foreign import foreign
from rlhf_kit.errors import DataError, PluginError, interruption
from rlhf_kit.file_system import file_error, replace
from rlhf_kit.interfaces import Stateful
from rlhf_kit.origins import Whose
from rlhf_kit.run_folder import FORMAT, check_format

_PLAIN = {str, bytes, int, float, bool, type(None)}


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


def state_of(part: Stateful, name: str) -> dict[str, Any]:
    """The state of a part, which a checkpoint can hold and give back.

    Raises:
        PluginError: it is no dict, or something in it would not be read back.
    """
    who = Whose(part, repr(name), "state_dict()")
    with foreign(who):
        state = part.state_dict()
    if not isinstance(state, dict):
        raise PluginError(f"{who} returned {type(state).__name__}; it should return a dict")
    wrong = next(_unreadable(state, ""), None)
    if wrong is not None:
        raise PluginError(
            f"{who}{wrong[0]} is a {wrong[1]}, which a checkpoint would not give back; state is "
            "made of tensors, numbers, text, lists and dicts"
        )
    return state


def _unreadable(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Place and kind of what `torch.load` with `weights_only` refuses."""
    kind = type(value)
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _unreadable(key, f"{place} key")
            yield from _unreadable(item, f"{place}[{key!r}]")
    elif kind in (list, tuple):
        if not set(map(type, value)) <= _PLAIN:
            for index, item in enumerate(value):
                yield from _unreadable(item, f"{place}[{index}]")
    elif kind not in _PLAIN and not isinstance(value, Tensor) and not _comes_back(value):
        yield place, f"{kind.__module__}.{kind.__qualname__}"


def _comes_back(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:
        return False
    return True


def save_checkpoint(path: Path, step: int, state: Mapping[str, Stateful]) -> None:
    """Save the state of every part after ``step`` completed steps."""
    content = {
        "format": FORMAT,
        "step": step,
        "state": {name: state_of(part, name) for name, part in state.items()},
    }
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, state: Mapping[str, Stateful]) -> int:
    """Restore every part of ``state`` and return how many steps were complete.

    Raises:
        DataError: the checkpoint holds other parts than the stage has now, or is of another format.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{path}: cannot be read: {cause}; remove {path.parent} to start the stage again"
        ) from error
    check_format(path, content.get("format", 1))
    saved = content["state"]
    if saved.keys() != state.keys():
        raise DataError(
            f"{path}: holds state of {sorted(saved)}, but the stage has {sorted(state)}; "
            f"remove {path.parent} to start the stage again"
        )
    for name, part in state.items():
        with foreign(Whose(part, repr(name), "load_state_dict()")):
            part.load_state_dict(saved[name])
    return int(content["step"])
