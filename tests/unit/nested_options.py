"""Options with blocks inside, for the tests of the kit: as a plugin's, they import no torch."""

from __future__ import annotations

from rlhf_kit import Options, Part, block, slot


class Block(Options):
    """With slots."""

    controller: Part = slot("controller", use="fixed", description="a slot")
    maybe: Part | None = slot("controller", use="fixed", description="a slot that may be null")


class Outer(Options):
    """A block in it."""

    kl: Block = block({"controller": "adaptive"}, description="a block")
    ptx: Block | None = block(None, description="null: none")


class Thing:
    """What they are the options of."""

    def __init__(self, options: Options) -> None:
        pass
