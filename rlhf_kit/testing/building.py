"""Parts outside a run: components built as a recipe would build them, without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_kit.components import Component, Part, StageRef
from rlhf_kit.context import construct
from rlhf_kit.engine.world import ALONE
from rlhf_kit.interfaces import Engine, Memory, Tokenizer, World
from rlhf_kit.option_fields import over_defaults
from rlhf_kit.testing.stand_ins import none_if_nothing, stand_in


def _construct(part: Part, context: Any) -> Any:
    """The core's own way, with a context that is not its own."""
    return construct(part, context)


class ToyContext:
    """Implements rlhf_kit.interfaces.Context, for components that build nested parts.

    Args:
        tokenizer: for components that ask for one.
        folder: where references to stages point to: ``folder / stage``.
        seed: of the run.
        engine: for components that train.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        folder: Path = Path(),
        seed: int = 0,
        engine: Engine | None = None,
    ) -> None:
        self.stage, self.seed = "toy", seed
        self._tokenizer, self._folder, self._engine = tokenizer, folder, engine

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise AssertionError("this ToyContext has no tokenizer; pass one to its constructor")
        return self._tokenizer

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise AssertionError("this ToyContext has no engine; pass one to its constructor")
        return self._engine

    @property
    def world(self) -> World:
        return ALONE if self._engine is None else self._engine.world

    def tokenizer_of(self, of: StageRef | None) -> Tokenizer:
        return self.tokenizer

    def same_model(self, of: StageRef | None) -> bool:
        return True

    def build(self, part: Part) -> Any:
        return _construct(part, self)

    def artifact(self, ref: StageRef | None) -> Path | None:
        if ref is None:
            return None
        return self._folder / ref.stage if ref.stage is not None else ref.folder

    def memory(self, of: StageRef | None = None) -> Memory:
        raise AssertionError("a ToyContext has no model, and so no memory strategy")


def part(component: Component, **options: Any) -> Part:
    """A part as a recipe's block would give it: validated options and a place in a file.

    Slots that admit None are None unless given, in nested blocks too; other slots take a part made
    by this function: ``part(component, kl={"controller": part(adaptive, target=3.0)})``.

    Raises:
        pydantic.ValidationError: an unknown or invalid option.
    """
    return _part(component, over_defaults(component.options, options, fill=none_if_nothing))


def hollow_part(component: Component, **options: Any) -> Part:
    """As ``part``, with a part of no component in every slot of which nothing is given.

    For options that a test reads without building what they name.
    """
    return _part(component, over_defaults(component.options, options, fill=stand_in))


def _part(component: Component, values: dict[str, Any]) -> Part:
    return Part(component, component.options(**values), "toy", component.name, "toy.yaml:1")


def build(component: Component, context: ToyContext | None = None, **options: Any) -> Any:
    """The object that ``component`` describes, built as a run would build it."""
    return _construct(part(component, **options), context or ToyContext())
