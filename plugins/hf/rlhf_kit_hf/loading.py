"""Loading a whole model, and refusing one whose files are not exactly its weights."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.errors import RecipeError
from rlhf_kit_hf.model_folder import listed

_REPORTS = ("LOAD REPORT", "This checkpoint seem corrupted")


def _not_a_report(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in _REPORTS)


# Tables for people, of what is said here in one line.
logging.getLogger("transformers.modeling_utils").addFilter(_not_a_report)


def load_exactly(load: Callable[..., Any], place: Any) -> Any:
    """What ``load`` of transformers makes, in evaluation mode, if its files hold its weights.

    Weights that it leaves out on purpose, such as a tied head, are none that are missing.

    Args:
        load: ``from_pretrained``, called with further arguments only.
        place: what it loads, for messages.

    Raises:
        RecipeError: weights are missing, of another shape, or of layers that the model has not.
    """
    model, report = load(output_loading_info=True, ignore_mismatched_sizes=True)
    wrong = _wrong(model, report)
    if wrong:
        raise RecipeError(
            f"{place}: {wrong}; its config and its weights must be of one model: fetch both again"
        )
    unread = sorted(report["unexpected_keys"])
    if unread:
        warnings.warn(
            f"{place}: {len(unread)} weights in its files are not read: {listed(unread)}",
            stacklevel=2,
        )
    return model.eval()


def _wrong(model: Any, report: Mapping[str, Any]) -> str | None:
    expected, others = model.state_dict(), sorted(report["unexpected_keys"])
    missing = sorted(report["missing_keys"])
    if missing:
        instead = f", and hold {listed(others)} instead" if others else ""
        return (
            f"its files lack {len(missing)} of {len(expected)} weights: {listed(missing)}{instead}"
        )
    for name, found, wanted in sorted(report["mismatched_keys"]):
        return f"{name} is {list(found)} in its files, and by its config {list(wanted)}"
    kinds = {_kind(name) for name in expected}
    surplus = [name for name in others if _kind(name) in kinds]
    if surplus:
        return f"its files hold {listed(surplus)}, and by its config it has no such layers"
    return None


def _kind(name: str) -> str:
    """The same for the same weight of every layer."""
    return re.sub(r"\d+", "N", name)


@torch.no_grad()
def refuse_not_finite(model: Any) -> None:
    """Look at every weight of a loaded model once.

    Raises:
        RecipeError: some are NaN or infinite.
    """
    found = [name for name, p in model.named_parameters() if not _finite(p)]
    if found:
        raise RecipeError(
            f"model: {model.config.name_or_path}: NaN or inf in {len(found)} of its weights: "
            f"{listed(found)}; they are damaged: fetch them again"
        )


def _finite(weight: Tensor) -> bool:
    if not weight.is_floating_point() or not weight.numel():
        return True
    # Extremes have no copy of the weight in between; eight bits have none.
    low, high = (weight.float() if weight.itemsize == 1 else weight).aminmax()
    return bool(low.isfinite() & high.isfinite())
