"""A proof beside a saved reward model: some texts, and the scores that they had.

A head on another backbone, another split or half-loaded weights still gives scores. Recomputing a
few on loading tells such a mistake from the model that was saved.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.errors import DataError, NumericsError
from rlhf_kit.types import TextBatch
from rlhf_kit_hf.artifact import read_json

PROOF = "reward_proof.json"
_EXACT = 1e-4  # relative or absolute, where precision and kind of device are those of the saving
_OF_SPREAD = 0.1  # of the range of the scores, elsewhere or in low precision

Score = Callable[[TextBatch], Tensor]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def write_proof(
    folder: Path, score: Score, texts: TextBatch, dtype: torch.dtype, device: torch.device
) -> None:
    """Write ``texts`` and their scores, computed at ``dtype`` on ``device``."""
    content: dict[str, Any] = {"dtype": _name(dtype), "device": device.type}
    for name in ("tokens", "mask", "target"):
        content[name] = getattr(texts, name).long().tolist()
    content["scores"] = score(texts).tolist()
    write_json(folder / PROOF, content)


@torch.no_grad()
def check_proof(folder: Path, score: Score, dtype: torch.dtype, device: torch.device) -> None:
    """Recompute the scores in ``folder``, if it has any.

    Raises:
        DataError: the file is damaged.
        NumericsError: they are not what they were.
    """
    path = folder / PROOF
    if not path.is_file():
        return
    content = read_json(path)
    try:
        texts = TextBatch(
            torch.tensor(content["tokens"]),
            torch.tensor(content["mask"], dtype=torch.bool),
            torch.tensor(content["target"], dtype=torch.bool),
        )
        wanted = torch.tensor(content["scores"])  # [B]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: is damaged: {error}; train that stage again") from error
    gap = (score(texts).cpu() - wanted).abs()
    allowed = _EXACT * wanted.abs().clamp(min=1.0)
    now = {"dtype": _name(dtype), "device": device.type}
    if content["dtype"] != "float32" or any(content[key] != now[key] for key in now):
        allowed = allowed.clamp(min=_OF_SPREAD * float(wanted.max() - wanted.min()))
    if not bool((gap <= allowed).all()):
        raise NumericsError(
            f"{folder}: the reward model scores its own proof texts differently than when it was "
            f"saved, by up to {float(gap.max()):.3g} (allowed {float(allowed.max()):.3g}): the "
            "backbone or some weights are not those it was trained with; use the same model and "
            f"memory block, or train that stage again (without {PROOF} nothing is compared)"
        )
