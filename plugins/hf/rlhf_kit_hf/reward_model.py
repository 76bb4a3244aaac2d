"""A reward model: one role and a scalar head."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import Parameter

from rlhf_kit.engine.checkpoint import save_tensors, write_json
from rlhf_kit.interfaces import Context, Memory
from rlhf_kit.ops.sequence import last_index
from rlhf_kit.types import Samples, TextBatch
from rlhf_kit_hf.options import TrainedRewardOptions
from rlhf_kit_hf.role import Role

HEAD, HEAD_CONFIG = "reward_head.safetensors", "reward_head.json"


class TransformersRewardModel:
    """Implements rlhf_kit.interfaces.RewardModel over any memory strategy.

    ``pooling`` "last" scores the state of the last token, as InstructGPT does; "mean" averages
    the states of the response, which a small model learns from with fewer comparisons.
    """

    def __init__(
        self,
        role: Role,
        device: torch.device,
        *,
        pooling: str = "last",
        init_std: float | None = None,
        trainable: bool = True,
    ) -> None:
        self._role, self._device, self.pooling = role, device, pooling
        self._head = nn.Linear(role.hidden_size, 1, device=device)  # float32 whatever the backbone
        # Std 1/sqrt(d + 1), bias 0: arXiv:2009.01325 as in openai/summarize-from-feedback.
        std = 1.0 / math.sqrt(role.hidden_size + 1) if init_std is None else init_std
        nn.init.normal_(self._head.weight, std=std)
        nn.init.zeros_(self._head.bias)
        self._head.requires_grad_(trainable)
        self.bias = 0.0

    def encode(self, texts: TextBatch) -> TextBatch:
        on_device = TextBatch(
            texts.tokens.to(self._device),
            texts.mask.to(self._device),
            texts.target.to(self._device),
        )
        trunk = self._role.encode(on_device.tokens, on_device.mask)
        return TextBatch(on_device.tokens, on_device.mask, on_device.target, trunk)

    def features(self, texts: TextBatch) -> Tensor:
        tokens, mask = texts.tokens.to(self._device), texts.mask.to(self._device)
        trunk = None if texts.trunk is None else texts.trunk.to(self._device)
        hidden = self._role.hidden(tokens, mask, trunk)  # [B, T, H]
        return self._pool(hidden, mask, texts.target.to(self._device)).float()

    def score(self, texts: TextBatch) -> Tensor:
        return self._head(self.features(texts)).squeeze(-1) + self.bias

    @torch.no_grad()
    def set_head(self, weight: Tensor, bias: float) -> None:
        self._head.weight.copy_(weight[None])
        self._head.bias.fill_(bias)

    def _pool(self, hidden: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        if self.pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), last_index(mask)]
        target = (target & mask)[..., None]
        total = torch.where(target, hidden.float(), 0.0).sum(1)
        return total / target.sum(1).clamp(min=1)

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Tensor:
        prompt = torch.zeros_like(samples.prompts.mask)
        texts = TextBatch(
            samples.tokens,
            samples.token_mask,
            torch.cat([prompt, samples.response_mask], 1),
            samples.trunk,
        )
        return self.score(texts)

    def parameters(self) -> Iterable[Parameter]:
        yield from self._role.parameters()
        yield from self._head.parameters()

    def state_dict(self) -> dict[str, Any]:
        return {
            "role": self._role.state_dict(),
            "head": self._head.state_dict(),
            "bias": self.bias,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._role.load_state_dict(state["role"])
        self._head.load_state_dict(state["head"])
        self.bias = state["bias"]

    def save(self, folder: Path) -> None:
        self._role.save(folder)
        save_tensors(folder / HEAD, self._head.state_dict())
        write_json(folder / HEAD_CONFIG, {"pooling": self.pooling, "bias": self.bias})

    def load_head(self, folder: Path) -> None:
        """Take head, pooling and bias from the folder of a trained reward model."""
        self._head.load_state_dict(load_file(folder / HEAD))
        config = json.loads((folder / HEAD_CONFIG).read_text())
        self.pooling, self.bias = config["pooling"], config["bias"]


class TrainedReward:
    """The reward component: a reward model that an earlier stage trained, loaded when it runs."""

    needs_models = True

    def __init__(self, options: TrainedRewardOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._model: TransformersRewardModel | None = None

    def load(self, memory: Memory) -> None:
        folder = self._context.artifact(self._options.start)
        self._model = memory.reward_model(folder, trainable=False)

    def __call__(self, samples: Samples) -> Tensor:
        if self._model is None:
            raise RuntimeError("TrainedReward: load() has not been called")
        return self._model(samples)
