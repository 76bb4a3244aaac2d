"""The seams. Each is a Protocol: an implementation inherits nothing.

But an observer: most want one event of seven, and :class:`Observer` has all of them, empty.
"""

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
from rlhf_kit.interfaces.labeler import Labeler, Labels
from rlhf_kit.interfaces.loss import AnyLoss, Loss, ObservingLoss
from rlhf_kit.interfaces.memory import (
    Identified,
    Memory,
    ModelSource,
    NeedsModels,
    ReadsFolders,
)
from rlhf_kit.interfaces.normalizer import InvertibleNormalizer, Normalizer
from rlhf_kit.interfaces.observer import Observer, ObserverContext
from rlhf_kit.interfaces.policy import Policy, Reference
from rlhf_kit.interfaces.reward import (
    CompositeReward,
    ModelReward,
    RewardFn,
    RewardModel,
    RewardOfParts,
)
from rlhf_kit.interfaces.sampler import Sampler
from rlhf_kit.interfaces.stage import Stage, StageRun
from rlhf_kit.interfaces.state import Stateful, Trainable
from rlhf_kit.interfaces.tokenizer import Tokenizer
from rlhf_kit.interfaces.value import Critic, ValueHead

__all__ = [
    "AdvantageEstimator",
    "AnyLoss",
    "CompositeReward",
    "Context",
    "Critic",
    "DataSource",
    "DropsRows",
    "Engine",
    "Identified",
    "InvertibleNormalizer",
    "KLController",
    "Labeler",
    "Labels",
    "Loss",
    "Memory",
    "ModelReward",
    "ModelSource",
    "NeedsModels",
    "Normalizer",
    "Observer",
    "ObserverContext",
    "ObservingLoss",
    "Optimizer",
    "ParameterGroup",
    "Policy",
    "PtxController",
    "ReadsFolders",
    "Reference",
    "RewardFn",
    "RewardModel",
    "RewardOfParts",
    "Sampler",
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
