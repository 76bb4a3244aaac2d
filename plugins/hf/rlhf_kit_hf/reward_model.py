"""A reward model: one role and a scalar head."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from rlhf_kit.engine.checkpoint import save_tensors, write_json
from rlhf_kit.errors import DataError
from rlhf_kit.types import PackedTexts, Samples, TextBatch, TrunkId
from rlhf_kit_hf.artifact import read_json, read_weights
from rlhf_kit_hf.packing import can_pack, should_pack
from rlhf_kit_hf.pooling import POOLINGS, pool
from rlhf_kit_hf.proof import PROOF, check_proof, write_proof
from rlhf_kit_hf.role import Role

HEAD, HEAD_CONFIG = "reward_head.safetensors", "reward_head.json"


def has_head(folder: Path) -> bool:
    """Whether a reward model was saved there; a policy's folder has none of a head's files."""
    return any((folder / name).is_file() for name in (HEAD, HEAD_CONFIG, PROOF))


class TransformersRewardModel:
    """Implements rlhf_kit.interfaces.RewardModel and Critic over any memory strategy.

    ``pooling`` "last" scores the state of the last token, as InstructGPT does; "mean" averages
    the states of the response, which a small model learns from with fewer comparisons.
    """

    def __init__(
        self,
        role: Role,
        device: torch.device,
        dtype: torch.dtype,
        *,
        pooling: str = "last",
        init_std: float | None = None,
        trainable: bool = True,
    ) -> None:
        self._role, self._device, self.dtype, self.pooling = role, device, dtype, pooling
        self._head = nn.Linear(role.hidden_size, 1, device=device)  # float32 whatever the backbone
        # Std 1/sqrt(d + 1), bias 0: arXiv:2009.01325 as in openai/summarize-from-feedback.
        std = 1.0 / math.sqrt(role.hidden_size + 1) if init_std is None else init_std
        nn.init.normal_(self._head.weight, std=std)
        nn.init.zeros_(self._head.bias)
        self._head.requires_grad_(trainable)

    @property
    def origin(self) -> TrunkId | None:
        return self._role.origin

    def encode(self, texts: PackedTexts) -> PackedTexts:
        packed, on_device = self._packs(texts), texts.to(self._device)
        if packed:
            trunk = self._role.encode(on_device.tokens, on_device.visible(), on_device.positions)
            return replace(on_device, trunk=trunk)
        rows, _ = on_device.unpacked()
        trunk = self._role.encode(rows.tokens, rows.mask)
        return on_device if trunk is None else on_device.with_trunk(trunk)

    def features(self, texts: PackedTexts) -> Tensor:
        packed, texts = self._packs(texts), texts.to(self._device)
        if packed:
            states = self._role.hidden(
                texts.tokens, texts.visible(), texts.trunk, texts.positions
            )  # [G, T, H]
            return pool(states, texts.places(), self.pooling)
        rows, exists = texts.unpacked()
        found = self._text_features(rows)  # [N, H]
        features = found.new_zeros((*exists.shape, found.shape[1]))
        features[exists] = found
        return features

    def compare(self, texts: PackedTexts) -> Tensor:
        scores = self._head(self.features(texts)).squeeze(-1)  # [G, K]
        return torch.where((texts.lengths() > 0).to(self._device), scores, 0.0)

    def score(self, texts: TextBatch) -> Tensor:
        return self._head(self._text_features(texts)).squeeze(-1)

    def _text_features(self, texts: TextBatch) -> Tensor:
        """[B, H] float32"""
        tokens, mask = texts.tokens.to(self._device), texts.mask.to(self._device)
        trunk = None if texts.trunk is None else texts.trunk.to(self._device)
        states = self._role.hidden(tokens, mask, trunk)  # [B, T, H]
        places = mask if self.pooling == "last" else mask & texts.target.to(self._device)
        return pool(states, places[:, None], self.pooling).squeeze(1)

    @cached_property
    def _can_pack(self) -> bool:
        return can_pack(self._role, self._device)

    def _packs(self, texts: PackedTexts) -> bool:
        return should_pack(texts, self._role.config) and self._can_pack

    @torch.no_grad()
    def set_head(self, weight: Tensor, bias: float) -> None:
        self._head.weight.copy_(weight[None])
        self._head.bias.fill_(bias)

    @torch.no_grad()
    def shift(self, delta: float) -> None:
        self._head.bias += delta

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Tensor:
        prompt = torch.zeros_like(samples.prompts.mask)
        texts = TextBatch(
            samples.tokens,
            samples.token_mask,
            torch.cat([prompt, samples.response_mask], 1),
            samples.padded_trunk(),
        )
        return self.score(texts)

    def values(self, samples: Samples) -> Tensor:
        """[B, R] float32, with gradients: the head at the state that chose each token."""
        tokens, mask = samples.tokens.to(self._device), samples.token_mask.to(self._device)
        trunk = samples.padded_trunk()
        trunk = None if trunk is None else trunk.to(self._device)
        begin = samples.prompts.tokens.shape[1] - 1
        states = self._role.hidden(tokens, mask, trunk)[:, begin:-1]  # [B, R, H]
        return self._head(states.float()).squeeze(-1).to(samples.response_tokens.device)

    def parameters(self) -> Iterable[Parameter]:
        yield from self._role.parameters()
        yield from self._head.parameters()

    def state_dict(self) -> dict[str, Any]:
        return {"role": self._role.state_dict(), "head": self._head.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._role.load_state_dict(state["role"])
        self._head.load_state_dict(state["head"])

    def save(self, folder: Path, proof: TextBatch | None = None) -> None:
        self._role.save(folder)
        save_tensors(folder / HEAD, self._head.state_dict())
        write_json(folder / HEAD_CONFIG, {"pooling": self.pooling})
        if proof is not None:
            write_proof(folder, self.score, proof, self.dtype, self._device)

    def load_head(self, folder: Path) -> None:
        """Take head and pooling from the folder of a trained reward model.

        Raises:
            DataError: a file of the head is missing or damaged.
            NumericsError: the scores of the folder's proof come out differently.
        """
        self._head.load_state_dict(read_weights(folder / HEAD, self._head.state_dict()))
        pooling = read_json(folder / HEAD_CONFIG).get("pooling")
        if pooling not in POOLINGS:
            raise DataError(
                f"{folder / HEAD_CONFIG}: pooling is {pooling!r}, and may be "
                f"{' or '.join(POOLINGS)}; train that stage again"
            )
        self.pooling = pooling
        check_proof(folder, self.score, self.dtype, self._device)
