"""TRL 1.16.0: log-probabilities and the reward model's loss. Legend: G prompts, K completions."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peer import SEEDS, close, draw, need, right_padded

need("trl", "1.16.0")

from datasets import Dataset  # noqa: E402
from rlhf_kit_instructgpt.losses import Pairwise  # noqa: E402
from rlhf_kit_instructgpt.options import PairwiseOptions  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402
from trl import RewardConfig, RewardTrainer  # noqa: E402
from trl.trainer.utils import selective_log_softmax  # noqa: E402

from rlhf_kit.ops.logprobs import selected_logprobs, token_logprobs  # noqa: E402
from rlhf_kit.types import PreferenceInputs, Ranked  # noqa: E402

V = 11
Pairs = list[tuple[int, int]]  # (better, worse), as indices into flat scores


def vocabulary(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_logprobs(seed: int, temperature: float) -> None:
    logits, tokens = 20 * draw(seed, 6, V), vocabulary(seed, 6)
    theirs = selective_log_softmax(logits, tokens, temperature=temperature)
    close(token_logprobs(logits, tokens, temperature), theirs)
    single = selective_log_softmax(logits.float(), tokens, temperature=temperature)
    close(token_logprobs(logits.float(), tokens, temperature), single, 1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_logprobs_of_the_valid_tokens(seed: int) -> None:
    logits, tokens, mask = 5 * draw(seed, 4, 7, V), vocabulary(seed, 4, 7), right_padded(seed, 4, 7)
    theirs = selective_log_softmax(logits, tokens, temperature=0.7, row_mask=mask)
    close(selected_logprobs(lambda states: states, logits, tokens, mask, 0.7), theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_their_bfloat16_stays_bfloat16(seed: int) -> None:
    """Ours turns to float32 before the softmax; theirs answers in bfloat16, with 8 bits.

    From -8 to -16 its numbers are 1/16 apart. Rounding to the nearest is off by 1/64 on average,
    and rounding twice a little more: PPO ratios that should be 1 are off by two per cent.
    """
    logits = draw(seed, 200, 3000).bfloat16()
    tokens = torch.randint(0, 3000, (200,), generator=torch.Generator().manual_seed(seed))
    exact = token_logprobs(logits.double(), tokens)
    ours, theirs = token_logprobs(logits, tokens), selective_log_softmax(logits, tokens)
    assert (ours.dtype, theirs.dtype) == (torch.float32, torch.bfloat16)
    assert (ours - exact).abs().max() < 1e-5
    far = (exact < -8) & (exact > -16)
    assert far.sum() > 50
    assert (theirs[far].double() % (1 / 16) == 0).all()
    errors = (theirs.double() - exact)[far].abs()
    assert 1 / 80 < errors.mean() < 1 / 40
    assert errors.max() < 1 / 16


class Fixed(nn.Module):
    """Scores that stand in for a model's, one per row of the batch, in the order given."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores.clone())

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.scores[input_ids[:, 0]][:, None])


@pytest.fixture(scope="module")
def trainer(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RewardTrainer:
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    rows = [{"chosen_ids": [1, 2], "rejected_ids": [3]}]
    options = RewardConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to="none"
    )
    model = AutoModelForSequenceClassification.from_pretrained(toy_model, num_labels=1)
    return RewardTrainer(
        model=model, args=options, processing_class=tokenizer, train_dataset=Dataset.from_list(rows)
    )


def their_loss(
    trainer: RewardTrainer,
    scores: Tensor,
    pairs: Pairs,
    margins: list[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """`RewardTrainer.compute_loss` on (better, worse) indices into ``scores`` [N], its gradient."""
    model = Fixed(scores)
    rows: list[dict[str, Any]] = [{"chosen_ids": [a], "rejected_ids": [b]} for a, b in pairs]
    for row, margin in zip(rows, margins or [], strict=False):
        row["margin"] = margin
    loss = trainer.compute_loss(model, trainer.data_collator(rows))
    return loss.detach(), torch.autograd.grad(loss, model.scores)[0]


def our_loss(
    scores: Tensor, ranks: Tensor, mask: Tensor, margin: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Pairwise on [G, K], divided as the engine divides it, and its gradient."""
    leaf, loss = scores.clone().requires_grad_(), Pairwise(PairwiseOptions(margin=margin))
    inputs = PreferenceInputs(leaf, ranks, mask)
    mean = loss(inputs).total / loss.count(Ranked(ranks, mask))
    return mean.detach(), torch.autograd.grad(mean, leaf)[0]


def flat(pairs: list[Pairs]) -> Pairs:
    return [pair for group in pairs for pair in group]


def ranked(seed: int, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor, list[Pairs]]:
    """Scores, ranks, mask [G, K] for prompts of these sizes, and each prompt's flat pairs."""
    most = max(sizes)
    scores = 3 * draw(seed, len(sizes), most)
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.stack([torch.randperm(most, generator=generator) for _ in sizes])
    mask = torch.arange(most) < torch.tensor(sizes)[:, None]
    pairs: list[Pairs] = []
    for g, size in enumerate(sizes):
        ordered = sorted(range(size), key=ranks[g].tolist().__getitem__)
        pairs.append([(g * most + a, g * most + b) for a, b in combinations(ordered, 2)])
    return scores, ranks, mask, pairs


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("completions", [2, 4])
def test_reward_loss(trainer: RewardTrainer, seed: int, completions: int) -> None:
    """Pairs as rows and pairs by prompt agree where every prompt has the same number of pairs."""
    scores, ranks, mask, pairs = ranked(seed, [completions] * 5)
    loss, gradient = our_loss(scores, ranks, mask)
    theirs, their_gradient = their_loss(trainer, scores.flatten(), flat(pairs))
    close(loss, theirs)
    close(gradient.flatten(), their_gradient)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_prompt_with_more_pairs_weighs_more_there(trainer: RewardTrainer, seed: int) -> None:
    """Rows are pairs there: of prompts with 1, 6 and 15 pairs the last makes 15/22 of the loss.

    Ours gives each prompt a third, as equation 1 of arXiv:2203.02155 does.
    """
    sizes = [2, 4, 6]
    scores, ranks, mask, pairs = ranked(seed, sizes)
    each = torch.stack([their_loss(trainer, scores.flatten(), p)[0] for p in pairs])
    theirs, their_gradient = their_loss(trainer, scores.flatten(), flat(pairs))
    loss, gradient = our_loss(scores, ranks, mask)
    close(loss, each.mean())
    share = torch.tensor([1.0, 6.0, 15.0], dtype=torch.float64) / 22
    close(theirs, (each * share).sum())
    assert (theirs - loss).abs() > 0.01
    close(their_gradient.view(3, 6), gradient * (3 * share)[:, None])


@pytest.mark.parametrize("seed", SEEDS)
def test_margin(trainer: RewardTrainer, seed: int) -> None:
    """Both subtract it inside the sigmoid; theirs comes with each row, ours from the ranks."""
    scores, ranks, mask, pairs = ranked(seed, [4] * 5)
    gap = (ranks.flatten()[None, :] - ranks.flatten()[:, None]).tolist()  # [better][worse]
    margins = [0.5 * gap[better][worse] for better, worse in flat(pairs)]
    assert set(margins) == {0.5, 1.0, 1.5}
    theirs, their_gradient = their_loss(trainer, scores.flatten(), flat(pairs), margins)
    loss, gradient = our_loss(scores, ranks, mask, margin=0.5)
    close(loss, theirs)
    close(gradient.flatten(), their_gradient)
