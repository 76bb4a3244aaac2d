"""Registration of the hf components; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_kit import Component, Part, hookimpl
from rlhf_kit.recipe.agreement import loaded_refs
from rlhf_kit_hf import options
from rlhf_kit_hf.model_folder import CONFIG, model_damage, weights_damage
from rlhf_kit_hf.note import disagreement


@hookimpl
def rlhf_components() -> Iterable[Component]:
    package = "rlhf_kit_hf"
    yield Component(
        "model",
        "pretrained",
        f"{package}.sources:PretrainedSource",
        options.PretrainedOptions,
        "A causal language model from the hub or from a local folder.",
    )
    yield Component(
        "model",
        "gguf",
        f"{package}.sources:GGUFSource",
        options.GGUFOptions,
        "A GGUF file, dequantised once and cached as safetensors.",
    )
    yield Component(
        "memory",
        options.FullOptions.strategy,
        f"{package}.full:FullMemory",
        options.FullOptions,
        "Separate models for every role, as published by InstructGPT.",
    )
    yield Component(
        "memory",
        options.HydraOptions.strategy,
        f"{package}.hydra:HydraMemory",
        options.HydraOptions,
        "A frozen trunk shared by all roles, a branch of top layers for each.",
    )
    yield Component(
        "memory",
        options.LoraOptions.strategy,
        f"{package}.lora:LoraMemory",
        options.LoraOptions,
        "One frozen backbone, a LoRA adapter for each role.",
    )
    yield Component(
        "sampler",
        "decode",
        f"{package}.sampler:DecodeSampler",
        options.DecodeOptions,
        "The model itself decodes, in this process, with a key-value cache.",
    )
    yield Component(
        "value",
        "separate",
        f"{package}.critic:SeparateCritic",
        options.SeparateValueOptions,
        "A critic with weights of its own, from the reward model.",
    )
    yield Component(
        "reward",
        "reward_model",
        f"{package}.trained_reward:TrainedReward",
        options.TrainedRewardOptions,
        "The score of a reward model that an earlier stage trained.",
    )


def _models(recipe: Any) -> Iterable[Part]:
    """Of the recipe, and of stages that have their own."""
    yield recipe.model
    yield from (recipe.model_and_memory(stage)[0] for stage in recipe.stages)


@hookimpl
def rlhf_check_recipe(recipe: Any) -> Iterable[str]:
    """Models that cannot be whole, and folders of other runs that this recipe cannot load."""
    for model in {part.key: part for part in _models(recipe)}.values():
        o = model.options
        if isinstance(o, options.PretrainedOptions) and isinstance(o.name, Path):
            why = model_damage(o.name)
            if why is not None:
                yield f"{model.key}.name: {why}"
    for stage in recipe.stages.values():
        for loaded in loaded_refs(stage):
            if loaded.ref.folder is None:
                continue
            _, memory = recipe.model_and_memory(stage.id if loaded.own else None)
            chosen = memory.options
            if not isinstance(chosen, options.MemoryOptions):
                continue
            shape = {key: getattr(chosen, key) for key in sorted(chosen.binds())}
            why = disagreement(loaded.ref.folder, chosen.strategy, shape)
            why = why or _damage(loaded.ref.folder)
            if why is not None:
                yield f"{'.'.join(loaded.place)}: {why}"


def _damage(folder: Path) -> str | None:
    """What the headers of a stage's weights say against them."""
    found = [weights_damage(path) for path in sorted(folder.glob("*.safetensors"))]
    if (folder / CONFIG).is_file():
        found.append(model_damage(folder))
    return next((f"{why}; train that stage again" for why in found if why), None)
