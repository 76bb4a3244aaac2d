"""What a stage folder holds beside weights, and reading it: a note of which strategy wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.errors import DataError, RecipeError
from rlhf_kit_hf.model_folder import json_object, listed, weights_damage
from rlhf_kit_hf.note import NOTE, disagreement

_AGAIN = "train that stage again"


def write_note(folder: Path, strategy: str, **details: Any) -> None:
    """Record which strategy wrote the folder and with what shape."""
    write_json(folder / NOTE, {"strategy": strategy, **details})


def check_note(folder: Path, strategy: str, **details: Any) -> None:
    """Refuse a folder that another strategy, or the same one shaped otherwise, has written."""
    why = disagreement(folder, strategy, details)
    if why is not None:
        raise RecipeError(why)


def read_weights(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file that a stage has left, which are those of ``like`` and of their shapes.

    Raises:
        DataError: it is missing or damaged, or holds others.
    """
    why = weights_damage(path)
    if why is not None:
        raise DataError(f"{why}; {_AGAIN}")
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read: {error}; {_AGAIN}") from error
    wrong = sorted({*found} ^ {*like})
    wrong = wrong or [name for name, t in sorted(like.items()) if found[name].shape != t.shape]
    if wrong:
        raise DataError(
            f"{path}: is not what it was saved as: {listed(wrong)} is missing, too many or of "
            f"another shape; {_AGAIN}"
        )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that a stage has left.

    Raises:
        DataError: it is missing or damaged.
    """
    found = json_object(path)
    if isinstance(found, str):
        raise DataError(f"{found}; {_AGAIN}")
    return found
