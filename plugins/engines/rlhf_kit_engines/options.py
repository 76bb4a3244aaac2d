"""Options of the engines. Torch-free."""

from __future__ import annotations

from rlhf_kit import Options


class SingleOptions(Options):
    """One process has nothing to choose."""
