"""TRL 1.12.0, the last release with a PPO trainer: where it agrees with us and where it differs.

The helper functions are compared in float64. The arithmetic inside `PPOTrainer.train` is compared
by running the trainer on a tiny model and recording what passes through those helpers: from the
recorded log-probabilities, values and scores our operations must arrive at the recorded rewards,
advantages and losses. Legend: B rows, R response.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peer import SEEDS, close, draw, need, right_padded

need("trl", "1.12.0")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from datasets import Dataset  # noqa: E402
from rlhf_kit_policy_gradient.losses import ClippedValue, PPOClip  # noqa: E402
from rlhf_kit_policy_gradient.options import ClipOptions  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # noqa: E402
from trl.experimental.utils import get_reward  # noqa: E402

from rlhf_kit.ops.kl import kl_penalised_rewards  # noqa: E402
from rlhf_kit.ops.masking import masked_mean, masked_var, whiten  # noqa: E402
from rlhf_kit.ops.returns import gae  # noqa: E402
from rlhf_kit.ops.sequence import last_index, response_mask, with_place_after_end  # noqa: E402
from rlhf_kit.testing import made_up_policy_inputs  # noqa: E402
from rlhf_kit.types import ValueLossInputs  # noqa: E402

B, R, STOP, PAD = 8, 12, 3, 0
# TRL corrects the variance by n / (n - 1) in float32, whatever the values are.
COUNTED = 1e-7


def tokens(seed: int) -> Tensor:
    """[B, R] without padding: stops are frequent, and one row has none."""
    found = torch.randint(1, 9, (B, R), generator=torch.Generator().manual_seed(seed))
    found[0] = 1
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_masked_statistics(seed: int) -> None:
    x, mask = 3 + draw(seed, B, R), right_padded(seed, B, R)
    close(masked_mean(x, mask), ppo_trainer.masked_mean(x, mask))
    for unbiased in (True, False):
        theirs = ppo_trainer.masked_var(x, mask, unbiased=unbiased)
        close(masked_var(x, mask, unbiased=unbiased), theirs, COUNTED if unbiased else 1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening(seed: int, shift_mean: bool) -> None:
    """The same with n - 1. Theirs leaves the padding as it comes out, ours clears it."""
    x, mask = 3 + draw(seed, B, R), right_padded(seed, B, R)
    theirs = ppo_trainer.masked_whiten(x, mask, shift_mean=shift_mean)
    ours = whiten(x, mask, shift_mean=shift_mean, unbiased=True)
    close(ours[mask], theirs[mask], COUNTED)
    assert (theirs[~mask] != 0).all()
    assert (ours[~mask] == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_their_whitening_is_narrower_than_our_default(seed: int) -> None:
    """We divide by n, as openai/lm-human-preferences: theirs is ours times sqrt((n - 1) / n)."""
    x, mask = draw(seed, 2, 4), right_padded(seed, 2, 4)
    theirs, ours = ppo_trainer.masked_whiten(x, mask), whiten(x, mask)
    count = mask.sum().double()
    assert count == 5
    close(theirs[mask] / ours[mask], torch.full((5,), (4 / 5) ** 0.5, dtype=torch.float64), COUNTED)


def test_not_a_number_in_the_padding() -> None:
    """Theirs multiplies by the mask, and NaN times zero is NaN; ours never reads the padding."""
    x, mask = draw(0, B, R), right_padded(0, B, R)
    dirty = torch.where(mask, x, torch.nan)
    assert ppo_trainer.masked_mean(dirty, mask).isnan()
    assert ppo_trainer.masked_whiten(dirty, mask).isnan().all()
    assert torch.equal(whiten(dirty, mask), whiten(x, mask))


@pytest.mark.parametrize("seed", SEEDS)
def test_response_mask(seed: int) -> None:
    """What they fill with padding is what our mask leaves out."""
    theirs = ppo_trainer.truncate_response(STOP, PAD, tokens(seed))
    assert torch.equal(response_mask(tokens(seed), (STOP,)), theirs != PAD)


class Position(nn.Module):
    """A reward model whose score at a place is the place's index."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.backbone = lambda input_ids, **_: SimpleNamespace(
            hidden_states=[torch.arange(input_ids.shape[1]).double().expand(*input_ids.shape)]
        )
        self.score = lambda states: states[..., None]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pad", [PAD, STOP])
def test_where_their_reward_model_looks(seed: int, pad: int) -> None:
    """At the last token, unless padding and stop are one token: then one before the stop.

    Padding is found by its token there; with ``pad == eos`` the end itself counts as padding, and
    neither reward model nor policy loss sees it. Our mask goes by position.
    """
    prompt = torch.full((B, 2), 1)
    cut = ppo_trainer.truncate_response(STOP, pad, tokens(seed))
    _, scores, _ = get_reward(Position(), torch.cat([prompt, cut], 1), pad, 2)
    mask = response_mask(tokens(seed), (STOP,))
    stopped = (tokens(seed) == STOP).any(1)
    assert 0 < stopped.sum() < B
    missed = stopped if pad == STOP else torch.zeros_like(stopped)
    close(scores, (2 + last_index(mask) - missed.long()).double())


def of_response(values: Tensor) -> Tensor:
    """[B, T, 1] -> [B, R]: the values of the states that chose the response tokens."""
    return values[:, -R - 1 : -1].squeeze(-1)


@dataclass
class Record:
    """What passed through the trainer's helpers, in order."""

    responses: list[Tensor] = field(default_factory=list)
    logprobs: list[Tensor] = field(default_factory=list)  # sampling, reference, then each pass
    values: list[Tensor] = field(default_factory=list)  # of each pass
    rewards: list[tuple[Tensor, Tensor]] = field(
        default_factory=list
    )  # critic, reward model: (all, end)
    whitened: list[tuple[Tensor, Tensor, bool]] = field(default_factory=list)
    means: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@pytest.fixture(scope="module")
def record(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """One rollout of `PPOTrainer` in float32 and two passes over it, each in one minibatch."""
    found = Record()
    patch = pytest.MonkeyPatch()

    def watch(name: str, keep: Any) -> None:
        original = getattr(ppo_trainer, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            keep(out, *args, **kwargs)
            return out

        patch.setattr(ppo_trainer, name, watched)

    def selected(out: Tensor, logits: Tensor, index: Tensor) -> None:
        found.logprobs.append(out.detach().clone())
        found.responses.append(index.clone())

    def passed(out: Any, *_: Any) -> None:
        if isinstance(out, tuple):  # policy and critic together; the reference comes alone
            found.values.append(of_response(out[1].detach().clone()))

    def whitened(out: Tensor, x: Tensor, mask: Tensor, shift_mean: bool = True) -> None:
        found.whitened.append((x.clone(), mask.clone(), shift_mean))

    watch("forward", passed)
    watch("selective_log_softmax", selected)
    watch("get_reward", lambda out, *_: found.rewards.append((out[0].clone(), out[1].clone())))
    watch("masked_whiten", whitened)
    watch(
        "masked_mean", lambda out, x, mask: found.means.append((x.detach().clone(), mask.clone()))
    )
    # Rows stay in order, so that the losses can be laid beside the rollout.
    patch.setattr(ppo_trainer.np.random, "permutation", ppo_trainer.np.arange)

    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    torch.manual_seed(1)
    policy = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(
            toy_model, num_labels=1, dtype=torch.float32
        )
        for _ in range(2)
    )
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in ["Hi", "Tea?", "Why not?"] * 3]
    tokenizer.padding_side = "left"
    options = PPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        num_sample_generations=0,
        total_episodes=B,
        per_device_train_batch_size=B,
        gradient_accumulation_steps=1,
        num_ppo_epochs=2,
        learning_rate=3e-3,
        response_length=R,
        stop_token="eos",
        missing_eos_penalty=1.0,
        whiten_rewards=True,
        kl_coef=0.1,
        temperature=0.7,
    )
    trainer = PPOTrainer(
        args=options,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        train_dataset=Dataset.from_list(rows),
        value_model=value,
    )
    head = trainer.ref_model.lm_head.weight
    with torch.no_grad():  # the reference is a copy of the policy; a KL of zero would test nothing
        head.add_(0.05 * torch.randn(head.shape))
    try:
        trainer.train()
    finally:
        patch.undo()
    return found


@dataclass
class Rollout:
    """The recorded rollout as our operations want it."""

    logprobs: Tensor
    reference: Tensor
    values: Tensor
    scores: Tensor
    mask: Tensor
    places: Tensor


@pytest.fixture(scope="module")
def rollout(record: Record, toy_model: Path) -> Rollout:
    end = AutoTokenizer.from_pretrained(toy_model).eos_token_id
    responses = record.responses[0]
    mask = response_mask(responses, (end,))
    finished = (responses == end).any(1)
    assert 0 < finished.sum() < B
    (values, _), (_, scores) = record.rewards
    return Rollout(
        logprobs=record.logprobs[0],
        reference=record.logprobs[1],
        values=of_response(values),
        scores=torch.where(finished, scores, scores - 1.0),
        mask=mask,
        places=with_place_after_end(mask),
    )


def credit(x: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards before whitening, advantages before whitening, and returns; by our operations."""
    rewards = kl_penalised_rewards(
        x.scores, x.logprobs, x.reference, x.mask, 0.1, last_index(x.places)
    )
    white = whiten(rewards, x.places, shift_mean=False, unbiased=True)
    return rewards, *gae(white, x.values, x.places, discount=1.0, lam=0.95)


def test_the_trainers_rewards_and_advantages(record: Record, rollout: Rollout) -> None:
    """k1 in the reward, score after the end, whitening with and without the mean, GAE: all agree.

    Recorded and recomputed in float32.
    """
    (rewards, places, shift_first), (advantages, mask, shift_second) = record.whitened
    assert (shift_first, shift_second) == (False, True)
    assert torch.equal(rollout.mask, mask)
    assert torch.equal(rollout.places, places)
    assert (rollout.logprobs - rollout.reference)[mask].abs().mean() > 0.05
    ours, our_advantages, _ = credit(rollout)
    close(ours, rewards, 1e-6)
    close(our_advantages, advantages, 2e-6)


@pytest.mark.parametrize("inner_epoch", [0, 1])
def test_the_trainers_losses(record: Record, rollout: Rollout, inner_epoch: int) -> None:
    """Policy and value loss of each pass over the rollout, and their clipped shares."""
    clip, mask, places = ClipOptions(clip_range=0.2), rollout.mask, rollout.places
    _, advantages, returns = credit(rollout)
    advantages = whiten(advantages, mask, unbiased=True)
    logprobs, values = record.logprobs[2 + inner_epoch], record.values[inner_epoch]
    moved = (logprobs - rollout.logprobs)[mask].abs().max() > 0.2
    assert moved == (inner_epoch == 1)

    actor = PPOClip(clip)(made_up_policy_inputs(logprobs, rollout.logprobs, advantages, mask))
    critic = ClippedValue(clip)(ValueLossInputs(values, rollout.values, returns, places))
    # The last eight means are of the two passes: value loss, clipped, policy loss, clipped.
    theirs = [ppo_trainer.masked_mean(x, m) for x, m in record.means[-8:]][4 * inner_epoch :][:4]
    close(critic.total / places.sum(), 0.5 * theirs[0], 1e-5)
    close(critic.stats["clip_fraction"] / places.sum(), theirs[1], 1e-6)
    close(actor.total / mask.sum(), theirs[2], 1e-5)
    close(actor.stats["clip_fraction"] / mask.sum(), theirs[3], 1e-6)
    assert (theirs[3] > 0) == (inner_epoch == 1)
