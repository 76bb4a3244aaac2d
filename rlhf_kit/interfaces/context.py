"""What a component's factory may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from rlhf_kit.components import Part, StageRef
from rlhf_kit.interfaces.engine import Engine, World
from rlhf_kit.interfaces.memory import Memory
from rlhf_kit.interfaces.tokenizer import Tokenizer


class Context(Protocol):
    """Passed to factories that have a parameter named ``context``."""

    stage: str  # id of the stage being built
    seed: int

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model of the stage being built."""

    @property
    def engine(self) -> Engine:
        """Of the run: who takes the optimizer steps. There before any memory strategy is built."""

    @property
    def world(self) -> World:
        """The engine's: the processes over which counts and statistics are added up."""

    def tokenizer_of(self, of: StageRef | None) -> Tokenizer:
        """Of the model of another stage; see ``memory``."""

    def same_model(self, of: StageRef | None) -> bool:
        """Whether the model of another stage is this stage's own: the same source of weights and

        the same tokenizer, so that one's tokens are the other's. Their memory may differ.
        """

    def build(self, part: Part) -> Any:
        """The object a nested part describes; a data entry shared by stages is built once."""

    def artifact(self, ref: StageRef | None) -> Path | None:
        """The folder that a reference names; it holds an artifact once that stage has run."""

    def memory(self, of: StageRef | None = None) -> Memory:
        """A memory strategy over a model. Loads weights: only while running.

        A stage whose options have a slot ``model`` or ``memory`` uses its own there; what it does
        not have, and what a folder of another run was made with, is the recipe's.

        Everyone in this stage who asks for the same model and memory blocks shares one object, as
        long as somebody holds it: hold it beside what was built with it.

        Args:
            of: None: over this stage's own blocks. Else one in which the artifact of that stage
                can be loaded.
        """
