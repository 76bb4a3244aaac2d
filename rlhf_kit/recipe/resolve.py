"""Resolve a document into a Recipe: every name found, every option checked, every problem said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlhf_kit.components import Part
from rlhf_kit.errors import PluginError, RlhfKitError
from rlhf_kit.importable import why_no_attribute
from rlhf_kit.option_fields import block_default
from rlhf_kit.recipe.agreement import refuse_disagreement
from rlhf_kit.recipe.blocks import Blocks, Scope
from rlhf_kit.recipe.document import Document, Place, shown
from rlhf_kit.recipe.problems import Problems
from rlhf_kit.recipe.schema import Recipe, RecipeFile, StageBlock
from rlhf_kit.recipe.walk import parts_of, refs_of
from rlhf_kit.registry import BUILT_IN, Registry
from rlhf_kit.seams import DATA, ENGINE, MEMORY, MODEL, STAGE
from rlhf_kit.stage_options import CheckpointOptions


def resolve(document: Document, registry: Registry, plugins: Sequence[Path] = ()) -> Recipe:
    """Return the recipe of ``document``, or raise one error that names every problem."""
    problems = Problems(document)
    try:
        RecipeFile.model_validate(document.values)
    except ValidationError as error:
        problems.add_invalid(error, RecipeFile, document.values, ())
    blocks = Blocks(document, registry, problems)

    blocks.scope.produces = _produces(blocks)
    data = _data(blocks)
    blocks.scope.earlier = []
    model = _top(blocks, MODEL)
    engine = _top(blocks, ENGINE)
    memory = _top(blocks, MEMORY)
    observers = _observers(blocks)
    stages = _stages(blocks)
    _refuse_unused(blocks, data, stages)
    problems.raise_if_any()
    assert model is not None and engine is not None and memory is not None

    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", document.path.stem)
    recipe = Recipe(
        path=document.path,
        name=document.values.get("name") or stem,
        seed=int(document.values.get("seed", 0)),
        plugins=list(plugins),
        model=model,
        engine=engine,
        memory=memory,
        data={name: part for name, part in data.items() if part is not None},
        observers=observers,
        stages=stages,
        checkpoint=CheckpointOptions.model_validate(document.values.get("checkpoint", {})),
        ambiguous=registry.ambiguous(),
    )
    refuse_disagreement(recipe, problems)
    _refuse_unbuildable(recipe, problems)
    problems.raise_if_any()
    _ask_plugins(recipe, document, registry)
    return recipe


def _produces(blocks: Blocks) -> dict[str, str | None]:
    """What each stage produces, before any of them is resolved. Says nothing about problems yet."""
    quiet = Blocks(blocks.document, blocks.registry, Problems(blocks.document))
    found: dict[str, str | None] = {}
    for name, block in _section(blocks, "stages").items():
        component = quiet.component(STAGE, block, ("stages", name))
        found[name] = component[0].produces if component else None
    return found


def _section(blocks: Blocks, key: str) -> dict[str, Any]:
    section = blocks.document.values.get(key)
    return section if isinstance(section, dict) else {}


def _top(blocks: Blocks, seam: str) -> Part | None:
    if blocks.problems.at((seam,)):
        return None  # missing, or not a block: said already
    default = block_default(RecipeFile.model_fields[seam]) or {}
    block = blocks.document.values.get(seam, default)
    return blocks.part(seam, block, (seam,), default.get("use"))


def _data(blocks: Blocks) -> dict[str, Part | None]:
    """Resolve the named data in the order written; an entry may build on the entries above it."""
    entries: dict[str, Part | None] = {}
    for name, block in _section(blocks, "data").items():
        place = ("data", name)
        blocks.scope.data = dict(entries)
        entries[name] = None if blocks.problems.at(place) else blocks.part(DATA, block, place)
    blocks.scope.data = entries
    return entries


def _observers(blocks: Blocks) -> dict[str, Part]:
    found: dict[str, Part] = {}
    for name, block in _section(blocks, "observers").items():
        place = ("observers", name)
        part = None if blocks.problems.at(place) else blocks.part("observer", block, place)
        if part is not None:
            found[name] = part
    return found


def _stages(blocks: Blocks) -> dict[str, StageBlock]:
    stages: dict[str, StageBlock] = {}
    scope: Scope = blocks.scope
    scope.earlier = []
    for name, block in _section(blocks, "stages").items():
        place = ("stages", name)
        part = None if blocks.problems.at(place) else blocks.part(STAGE, block, place)
        if part is not None:
            named = {ref.stage for ref in refs_of(part) if ref.stage is not None}
            _check_data_order(blocks, named, place)
            stages[name] = StageBlock(
                name, part, [other for other in scope.earlier if other in named]
            )
        scope.earlier.append(name)
    return stages


def _check_data_order(blocks: Blocks, named: set[str], place: Place) -> None:
    """Named data may refer to any stage; whether that runs early enough depends on who uses it."""
    for other in sorted(named - set(blocks.scope.earlier or [])):
        blocks.problems.add(
            place, f"uses data that comes from stage {other!r}; {other!r} must run earlier"
        )


def _refuse_unused(
    blocks: Blocks, data: dict[str, Part | None], stages: dict[str, StageBlock]
) -> None:
    """Named data must be in some stage's slot, or below a block that is."""
    if blocks.problems:
        return  # a block that is wrong may be the one that uses it
    used = {part.key for stage in stages.values() for part in parts_of(stage.part)}
    for name in data:
        if f"data.{name}" not in used:
            blocks.problems.add(
                ("data", name), "no stage uses it; remove it, or name it in a data slot of a stage"
            )


def _refuse_unbuildable(recipe: Recipe, problems: Problems) -> None:
    """Refuse components whose code is not there, as building would when the run has begun."""
    tops = [recipe.model, recipe.engine, recipe.memory, *recipe.data.values()]
    tops += [*recipe.observers.values(), *(stage.part for stage in recipe.stages.values())]
    for part in {part.key: part for top in tops for part in parts_of(top)}.values():
        component = part.component
        if part.package == BUILT_IN:
            continue  # one installation with what asks here; reading it takes a third of a check
        module, _, attribute = component.target.partition(":")
        why = why_no_attribute(module, attribute)
        if why is not None:
            what = f"{component.seam} {component.name!r}: cannot import {component.target}: {why}"
            place = tuple(part.key.split("."))
            problems.add_error(PluginError(f"{part.where}: {part.key}: {what}"), place)


def _ask_plugins(recipe: Recipe, document: Document, registry: Registry) -> None:
    """Let plugins object to how blocks fit together (hook ``rlhf_check_recipe``)."""
    problems = Problems(document)
    errors: list[RlhfKitError] = []
    for plugin, answer in registry.loaded.call_each("rlhf_check_recipe", recipe=recipe):
        if isinstance(answer, RlhfKitError):
            errors.append(answer)
        elif isinstance(answer, BaseException):
            what = f"raised {type(answer).__name__}: {answer}"
            errors.append(_wrong_check(document, plugin, what))
        else:
            for item in answer:
                if isinstance(item, RlhfKitError):
                    errors.append(item)
                elif isinstance(item, str):
                    _add_text(problems, document, item)
                else:
                    what = f"returned {item!r:.60}; it should return texts and RlhfKitErrors"
                    errors.append(_wrong_check(document, plugin, what))
    problems.raise_if_any()
    if errors:
        raise errors[0]


def _wrong_check(document: Document, plugin: str, what: str) -> PluginError:
    return PluginError(f"{shown(document.path)}:1: plugin {plugin}: rlhf_check_recipe {what}")


def _add_text(problems: Problems, document: Document, text: str) -> None:
    """Give a plugin's "stages.ppo.kl.coef: too high; ..." the line of that key."""
    key, colon, what = text.partition(": ")
    place = tuple(key.split("."))
    known = colon and place[0] in RecipeFile.model_fields and " " not in key
    if known:
        problems.add(place, what)
    elif text.startswith((shown(document.path), "command line: ")):
        problems.add_error(RlhfKitError(text), ())
    else:
        problems.add_error(RlhfKitError(f"{shown(document.path)}:1: {text}"), ())
