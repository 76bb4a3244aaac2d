"""The seams that a recipe's own grammar gives a place to; every other one is a plugin's word."""

from __future__ import annotations

from typing import Final

STAGE: Final = "stage"
MODEL: Final = "model"
ENGINE: Final = "engine"
MEMORY: Final = "memory"
DATA: Final = "data"
OBSERVER: Final = "observer"

GRAMMAR = frozenset({STAGE, MODEL, ENGINE, MEMORY, DATA, OBSERVER})
"""Those that a recipe has a block for."""

NAMED = frozenset({DATA})
"""Parts with a name at the top of a recipe: a bare word in a slot is one of those names. A run
builds each part once, for all who name it, and asks it for its fingerprint."""

OWN = (MODEL, MEMORY)
"""What a stage may have of its own, in a slot called like the seam, instead of the recipe's."""

FINGERPRINTED = frozenset({MODEL, DATA})
"""Their sources know which files of a folder they read, and say so by ``fingerprint``."""
