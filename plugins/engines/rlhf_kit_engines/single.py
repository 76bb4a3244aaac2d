"""Engine `single`: one process, one optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch.nn import Parameter

from rlhf_kit.engine.accumulate import accumulating
from rlhf_kit.engine.adamw import build_optimizer
from rlhf_kit.engine.world import OneProcess
from rlhf_kit.interfaces import Optimizer, ParameterGroup, Step, World
from rlhf_kit.stage_options import OptimizerOptions
from rlhf_kit_engines.options import SingleOptions


class Single:
    """Implements rlhf_kit.interfaces.Engine."""

    def __init__(self, options: SingleOptions) -> None:
        self.world: World = OneProcess()

    def optimizer(
        self, groups: Sequence[ParameterGroup], options: OptimizerOptions, total_steps: int
    ) -> Optimizer:
        return build_optimizer(groups, options, total_steps)

    def step(
        self, optimizer: Optimizer, watch: Sequence[Parameter] = ()
    ) -> AbstractContextManager[Step]:
        return accumulating(optimizer, watch, self.world)
