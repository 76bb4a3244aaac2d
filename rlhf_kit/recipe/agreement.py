"""Whether weights can go from one stage to another: what their model and memory blocks agree on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlhf_kit.components import Part, StageRef
from rlhf_kit.recipe.document import Place
from rlhf_kit.recipe.dump import plain
from rlhf_kit.recipe.problems import Problems, key_of
from rlhf_kit.recipe.schema import Recipe, StageBlock
from rlhf_kit.recipe.walk import parts_of


@dataclass(frozen=True)
class LoadedRef:
    """A reference whose weights a stage loads."""

    place: Place  # ("stages", "ppo", "from")
    ref: StageRef
    own: bool  # into the stage's own memory; else into that of whoever trained them


def loaded_refs(stage: StageBlock) -> Iterator[LoadedRef]:
    """The references of a stage, in its slots too, that are declared with ``loads_into``."""
    for part in parts_of(stage.part):
        for name, field in type(part.options).model_fields.items():
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            into, value = extra.get("loads_into"), getattr(part.options, name)
            if into is None:
                continue
            place = (*part.key.split("."), key_of(name, field))
            if isinstance(value, StageRef):
                yield LoadedRef(place, value, into == "own")
            elif isinstance(value, dict):
                for word, ref in value.items():
                    yield LoadedRef((*place, word), ref, into == "own")


def bound(part: Part) -> dict[str, Any]:
    """What must be the same for one block to load what another has trained."""
    keys = {"use", *part.options.binds()}
    return {key: value for key, value in plain(part).items() if key in keys}


def refuse_disagreement(recipe: Recipe, problems: Problems) -> None:
    """Refuse a stage that starts from weights which its own memory cannot load.

    It would fail when it begins, after the stages before it have run.
    """
    for stage in recipe.stages.values():
        for loaded in loaded_refs(stage):
            if not loaded.own or loaded.ref.stage is None:
                continue
            blocks = zip(
                recipe.model_and_memory(stage.id),
                recipe.model_and_memory(loaded.ref.stage),
                strict=True,
            )
            for seam, (own, other) in zip(("model", "memory"), blocks, strict=True):
                here, there = bound(own), bound(other)
                if here == there:
                    continue
                key = next(k for k in (*there, *here) if here.get(k) != there.get(k))
                problems.add(
                    loaded.place,
                    f"{loaded.ref} trains another {seam} than this stage's own: {key} "
                    f"{there.get(key)!r}, and here {here.get(key)!r}; give both the same {seam} "
                    f"block, or remove one of `{loaded.place[-1]}` and `{seam}`",
                )
