"""A Python function as the reward."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.errors import PluginError
from rlhf_kit.plugins import import_file, one_line
from rlhf_kit.types import Samples, asked
from rlhf_kit_rewards.options import OFFERED, PythonOptions, unoffered


class PythonReward:
    """Calls ``function`` with those of prompts, responses, rows and samples that it has parameters

    for. ``prompts`` and ``responses`` are lists of str, ``rows`` the source rows as dicts,
    ``samples`` the tensors. It returns one finite number per response, or a tensor
    [B, R] of one per token, 0 in the padding.
    """

    def __init__(self, options: PythonOptions) -> None:
        module = _module(options)
        name = f"{options.path or options.module}:{options.function}"
        function = getattr(module, options.function, None)
        if not callable(function):
            raise PluginError(f"reward: {name} is not a function")
        self._function: Callable[..., Any] = function
        self._name = name
        parameters = inspect.signature(function).parameters
        self._wanted = [name for name in OFFERED if name in parameters]
        wrong = unoffered(
            [
                (p.name, p.default is p.empty and p.kind is not p.VAR_KEYWORD)
                for p in parameters.values()
            ]
        )
        if wrong is not None:
            raise PluginError(f"reward: {name} {wrong}")

    def __call__(self, samples: Samples) -> Tensor:
        offered = {
            "prompts": lambda: [asked(row) for row in samples.rows],
            "responses": lambda: samples.responses,
            "rows": lambda: list(samples.rows),
            "samples": lambda: samples,
        }
        value = self._function(**{name: offered[name]() for name in self._wanted})
        try:
            return torch.as_tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{self._name} returned {value!r:.60}; it should return one number per response"
            ) from error


def _module(options: PythonOptions) -> ModuleType:
    try:
        if options.module is not None:
            return importlib.import_module(options.module)
        return import_file(Path(str(options.path)), "rlhf_kit_reward")
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"reward: cannot import {options.path or options.module}: {one_line(error)}"
        ) from error
