"""rlhf_kit: RLHF from YAML recipes, with every part a plugin. Importing it never imports torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module. Loaded on first use, so that `import rlhf_kit` stays cheap.
_PUBLIC = {
    "Component": "rlhf_kit.components",
    "Execution": "rlhf_kit.components",
    "ModuleName": "rlhf_kit.components",
    "Observation": "rlhf_kit.components",
    "Options": "rlhf_kit.components",
    "Part": "rlhf_kit.components",
    "RecipePath": "rlhf_kit.components",
    "StageRef": "rlhf_kit.components",
    "block": "rlhf_kit.components",
    "in_recipe": "rlhf_kit.components",
    "slot": "rlhf_kit.components",
    "slots": "rlhf_kit.components",
    "stage_ref": "rlhf_kit.components",
    "stage_refs": "rlhf_kit.components",
    "FitOptions": "rlhf_kit.stage_options",
    "OptimizerOptions": "rlhf_kit.stage_options",
    "PromptOptions": "rlhf_kit.stage_options",
    "SamplingOptions": "rlhf_kit.stage_options",
    "hookimpl": "rlhf_kit.hookspecs",
    "RlhfKitError": "rlhf_kit.errors",
    "RecipeError": "rlhf_kit.errors",
    "PluginError": "rlhf_kit.errors",
    "DataError": "rlhf_kit.errors",
    "NumericsError": "rlhf_kit.errors",
    "Interrupted": "rlhf_kit.errors",
}

__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from rlhf_kit.components import (
        Component as Component,
        Execution as Execution,
        ModuleName as ModuleName,
        Observation as Observation,
        Options as Options,
        Part as Part,
        RecipePath as RecipePath,
        StageRef as StageRef,
        block as block,
        in_recipe as in_recipe,
        slot as slot,
        slots as slots,
        stage_ref as stage_ref,
        stage_refs as stage_refs,
    )
    from rlhf_kit.errors import (
        DataError as DataError,
        Interrupted as Interrupted,
        NumericsError as NumericsError,
        PluginError as PluginError,
        RecipeError as RecipeError,
        RlhfKitError as RlhfKitError,
    )
    from rlhf_kit.hookspecs import hookimpl as hookimpl
    from rlhf_kit.stage_options import (
        FitOptions as FitOptions,
        OptimizerOptions as OptimizerOptions,
        PromptOptions as PromptOptions,
        SamplingOptions as SamplingOptions,
    )


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'rlhf_kit' has no attribute {name!r}")
