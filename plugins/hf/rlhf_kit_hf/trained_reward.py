"""The reward component `reward_model`: the score of a reward model that a stage has trained."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.errors import NumericsError
from rlhf_kit.interfaces import Context, Memory, RewardModel, Tokenizer
from rlhf_kit.ops.sequence import pad
from rlhf_kit.types import Samples, TextBatch
from rlhf_kit_hf.options import TrainedRewardOptions


class TrainedReward:
    """Loaded when the stage that asks for it runs, on the backbone that it was trained on.

    Where its model block is the policy's it scores the policy's tokens, from the captured trunk
    where that is of its own origin. With another model it scores the text, in tokens of its own:
    nothing about the policy's tokens or activations means anything to it.
    """

    needs_models = True

    def __init__(self, options: TrainedRewardOptions, context: Context) -> None:
        self._start, self._context = options.start, context
        self._memory: Memory | None = None  # held, so that others in the stage can share it
        self._model: RewardModel | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """What it scores with."""
        return self._context.tokenizer_of(self._start)

    @property
    def dtype(self) -> torch.dtype | None:
        """What it computes in, once loaded."""
        return None if self._model is None else self._model.dtype

    def load(self, memory: Memory) -> None:
        self._memory = self._context.memory(self._start)
        folder = self._context.artifact(self._start)
        self._model = self._memory.scorer(folder, trainable=False)

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Tensor:
        if self._model is None:
            raise RuntimeError("TrainedReward: load() has not been called")
        if self._context.same_model(self._start):
            return self._model(samples.read_by(self._model.origin))
        return self._model.score(self._texts(samples))

    def _texts(self, samples: Samples) -> TextBatch:
        """Prompts with responses [B, T], right-padded, in the reward model's own tokens.

        Raises:
            NumericsError: one is too long for the reward model.
        """
        tokenizer = self.tokenizer
        rows: list[list[int]] = []
        begins: list[int] = []
        for i, text in enumerate(samples.responses):
            prompt = tokenizer.prompt(samples.rows[i])
            rows.append(prompt + tokenizer.response(text, finished=bool(samples.finished[i])))
            begins.append(len(prompt))
            if len(rows[i]) > tokenizer.max_length:
                raise NumericsError(
                    f"reward model {self._start}: response {i} of {len(samples)} ({text[:60]!r}) "
                    f"and its prompt have {len(rows[i])} tokens, more than the "
                    f"{tokenizer.max_length} of the reward model's context; sample shorter "
                    "responses, or leave out long prompts"
                )
        tokens, mask = pad(rows, tokenizer.pad_id)  # [B, T]
        columns = torch.arange(tokens.shape[1])[None]
        return TextBatch(tokens, mask, mask & (columns >= torch.tensor(begins)[:, None]))
