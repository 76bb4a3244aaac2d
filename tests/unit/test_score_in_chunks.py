"""The place after the end is the same whether a rollout is collected whole or in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rlhf_kit_policy_gradient.options import LinearValueOptions
from rlhf_kit_policy_gradient.value import LinearValue
from torch import Tensor
from toy_runs import ppo_of, ppo_options
from toys import prompts

from rlhf_kit.types import Activations, Samples, Sampling

LONGEST = 7


class Scripted:
    """A sampler that answers each prompt with the tokens written for it, whatever the batch."""

    def __init__(self, tokenizer: Any, lengths: list[int]) -> None:
        self._pad, self._eos = tokenizer.pad_id, tokenizer.eos_id
        self._lengths = lengths
        self._decode = tokenizer.decode

    def __call__(self, policy: Any, given: Any, sampling: Sampling) -> Samples:
        lengths = [self._lengths[group] for group in given.group.tolist()]
        width = max(lengths)
        tokens = torch.full((len(lengths), width), self._pad)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        finished = torch.tensor([length < LONGEST for length in lengths])
        for row, (length, group) in enumerate(zip(lengths, given.group.tolist(), strict=True)):
            tokens[row, :length] = 40 + torch.arange(length) + 9 * group
            if length < LONGEST:
                tokens[row, length - 1] = self._eos
            mask[row, :length] = True
        samples = Samples(given, tokens, mask, finished, sampling.temperature, self._decode)
        # As a decoder that captures the trunk would.
        trunk = policy.role.encode(samples.tokens, samples.token_mask)
        return Samples(
            given,
            tokens,
            mask,
            finished,
            sampling.temperature,
            self._decode,
            None if trunk is None else Activations.of(trunk, samples.token_mask),
        )


def collected(context: Any, lengths: list[int], size: int, score_at: str) -> Any:
    tokenizer = context.tokenizer
    policy = context.memory().policy(None)
    critic = LinearValue(LinearValueOptions())
    critic.attach(policy)
    with torch.no_grad():
        critic._head.weight.copy_(torch.linspace(-1, 1, policy.hidden_size)[None])
    options = ppo_options(
        end={"score_at": score_at}, sampling={"batch_size": size, "max_new_tokens": LONGEST}
    )
    ppo = ppo_of(
        policy,
        options,
        sampler=Scripted(tokenizer, lengths),
        value=critic,
        reward=lambda samples: torch.arange(1.0, len(lengths) + 1)[samples.group],
    )
    rollout = ppo.score(ppo.sample(prompts(tokenizer), key=0))
    targets = ppo.credit(ppo.experience(rollout))
    return rollout, targets, ppo.batch(rollout, targets)


def shown(x: Tensor, places: Tensor) -> list[Tensor]:
    return [row[place] for row, place in zip(x, places, strict=True)]


@pytest.mark.parametrize("memory", ["full", "hydra"])
@pytest.mark.parametrize("score_at", ["last_token", "after_end"])
@pytest.mark.parametrize(
    "lengths", [[3, 5, 2, 6], [2, 3, 4, 5], [5, 5, 5, 5], [1, 7, 3, 2], [7, 7, 2, 4]]
)
def test_chunks_give_what_the_whole_gives(
    context_of: Callable[..., Any], memory: str, score_at: str, lengths: list[int]
) -> None:
    context = context_of(memory)
    _, targets, batch = collected(context, lengths, 4, score_at)
    after = score_at == "after_end"
    # A place after the end where sampling could have gone on, whoever else is in the rollout.
    room = [length + (after and length < LONGEST) for length in lengths]
    for size in (4, 3, 2, 1):
        _, found, other = collected(context, lengths, size, score_at)
        assert other.places.sum(1).tolist() == room
        assert other.mask.sum(1).tolist() == lengths
        for x, y in (
            (other.values, batch.values),
            (found.advantages, targets.advantages),
            (found.returns, targets.returns),
        ):
            for row, wanted in zip(shown(x, other.places), shown(y, batch.places), strict=True):
                torch.testing.assert_close(row, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [4, 2, 1])
def test_the_value_after_the_end_is_the_critics(context_of: Callable[..., Any], size: int) -> None:
    """At the state of the last token, by hand: one unpadded row after the other."""
    context, lengths = context_of("full"), [3, 5, 2, 6]
    rollout, _, batch = collected(context, lengths, size, "after_end")
    policy = context.memory().policy(None)
    weight = torch.linspace(-1, 1, policy.hidden_size)
    samples = rollout.samples
    for row, length in enumerate(lengths):
        tokens = samples.tokens[row][samples.token_mask[row]][None]
        states = policy.role.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool))
        wanted = (states[0, -1].detach() * weight).sum()
        assert abs(wanted) > 1e-3
        torch.testing.assert_close(batch.values[row, length], wanted, rtol=1e-4, atol=1e-4)
