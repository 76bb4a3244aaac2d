"""The seams. Each is a Protocol: an implementation inherits nothing."""

from rlhf_kit.interfaces.advantage import AdvantageEstimator
from rlhf_kit.interfaces.context import Context
from rlhf_kit.interfaces.control import KLController, PtxController
from rlhf_kit.interfaces.data import DataSource, DropsRows
from rlhf_kit.interfaces.engine import (
    Engine,
    Optimizer,
    ParameterGroup,
    Schedule,
    Step,
    Term,
    World,
)
from rlhf_kit.interfaces.labeler import Labeler
from rlhf_kit.interfaces.loss import Loss
from rlhf_kit.interfaces.memory import Identified, Memory, ModelSource
from rlhf_kit.interfaces.normalizer import InvertibleNormalizer, Normalizer
from rlhf_kit.interfaces.policy import Policy
from rlhf_kit.interfaces.reward import CompositeReward, NeedsModels, RewardFn, RewardModel
from rlhf_kit.interfaces.stage import Stage, StageRun
from rlhf_kit.interfaces.state import Stateful, Trainable
from rlhf_kit.interfaces.tokenizer import Tokenizer
from rlhf_kit.interfaces.value import ValueHead

__all__ = [
    "AdvantageEstimator",
    "CompositeReward",
    "Context",
    "DataSource",
    "DropsRows",
    "Engine",
    "Identified",
    "InvertibleNormalizer",
    "KLController",
    "Labeler",
    "Loss",
    "Memory",
    "ModelSource",
    "NeedsModels",
    "Normalizer",
    "Optimizer",
    "ParameterGroup",
    "Policy",
    "PtxController",
    "RewardFn",
    "RewardModel",
    "Schedule",
    "Stage",
    "StageRun",
    "Stateful",
    "Step",
    "Term",
    "Tokenizer",
    "Trainable",
    "ValueHead",
    "World",
]
