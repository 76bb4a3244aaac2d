"""What a component's factory may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from rlhf_kit.components import Part, StageRef
from rlhf_kit.interfaces.memory import Memory
from rlhf_kit.interfaces.tokenizer import Tokenizer


class Context(Protocol):
    """Passed to factories that have a parameter named ``context``."""

    stage: str  # id of the stage being built
    seed: int

    @property
    def tokenizer(self) -> Tokenizer: ...

    def build(self, part: Part) -> Any:
        """The object a nested part describes; a data entry shared by stages is built once."""

    def artifact(self, ref: StageRef | None) -> Path | None:
        """The folder that a reference names; it holds an artifact once that stage has run."""

    def memory(self) -> Memory:
        """A fresh memory strategy over the recipe's model. Loads weights: only while running."""
