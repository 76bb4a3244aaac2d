"""VADER sentiment: a rule-based gold standard that runs anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.errors import PluginError
from rlhf_kit.types import Samples
from rlhf_kit_rewards.options import VaderOptions


class Vader:
    def __init__(self, options: VaderOptions) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise PluginError("reward 'vader' needs vaderSentiment; pip install it") from error
        self._part = options.part
        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, samples: Samples) -> Tensor:
        scores = [self._analyzer.polarity_scores(text)[self._part] for text in samples.responses]
        return torch.tensor(scores, dtype=torch.float32)  # [B]
