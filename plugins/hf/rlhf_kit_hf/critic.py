"""A critic with weights of its own: a model, an adapter or a branch, as the memory has it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from rlhf_kit.errors import RecipeError
from rlhf_kit.interfaces import Context, Critic, Memory, Policy
from rlhf_kit.types import Samples
from rlhf_kit_hf.options import SeparateValueOptions
from rlhf_kit_hf.tokenizer import reading


class SeparateCritic:
    """Implements rlhf_kit.interfaces.ValueHead; reads the tokens, not the policy's states.

    InstructGPT's critic starts as a copy of the reward model (arXiv:2203.02155, appendix C.4):
    its scalar head then reads the state before every token of the response. Without a reward model
    it starts from the pretrained weights with a head of zeros.
    """

    needs_models = True

    def __init__(self, options: SeparateValueOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._memory: Memory | None = None  # held, so that others in the stage can share it
        self._model: Critic | None = None
        start = options.start
        if start is not None and reading(context.tokenizer) != reading(context.tokenizer_of(start)):
            raise RecipeError(
                f"critic.value: it starts from {start}, whose tokenizer is not the policy's; "
                "values are per token, so both must read the same tokens"
            )

    def load(self, memory: Memory) -> None:
        start = self._options.start
        self._memory = memory if start is None else self._context.memory(start)
        self._model = self._memory.critic(self._context.artifact(start))

    @property
    def model(self) -> Critic:
        if self._model is None:
            raise RuntimeError("SeparateCritic: load() has not been called")
        return self._model

    def attach(self, policy: Policy) -> None:
        """It reads nothing of the policy's."""

    def __call__(self, states: Tensor, samples: Samples) -> Tensor:
        return self.model.values(samples.read_by(self.model.origin))  # [B, R]

    def parameters(self) -> Iterable[Parameter]:
        return self.model.parameters()

    def state_dict(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state)

    def save(self, folder: Path) -> None:
        (folder / "critic").mkdir(parents=True, exist_ok=True)
        self.model.save(folder / "critic")
