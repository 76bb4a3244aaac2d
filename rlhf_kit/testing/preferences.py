"""Conformance of losses over preferences: rankings, pairs, and answers judged by themselves."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_kit.testing.compare import clean_masks, finite
from rlhf_kit.testing.losses import Checked, LossCheck, check_loss, map_rows, masked
from rlhf_kit.testing.sentences import declared, named, require
from rlhf_kit.types import LabelledInputs, MismatchedInputs, PairInputs, PreferenceInputs, Ranked


def check_preference_loss(loss: Checked, *, seed: int = 0) -> None:
    """:func:`check_loss` for seam ``preference_loss``: K-way, with ties and prompts without pairs.

    Also: the order of a prompt's completions does not matter, nor what an unranked one (a negative
    rank) scores, scores as far apart as 1000 stay finite, and the loss falls as a better
    completion's score rises.
    """
    check_loss(loss, _preference_inputs, units=_ranked, seed=seed)
    inputs = _preference_inputs(torch.Generator().manual_seed(seed))
    check = LossCheck(loss, "scores", _ranked, named(loss))
    whole = check.run(inputs)
    order = torch.tensor([2, 0, 3, 1])
    found = check.run(map_rows(inputs, lambda x: x[:, order]))
    found = replace(found, gradient=found.gradient[:, order.argsort()])
    check.agree(found, whole, "another order of a prompt's completions")
    far = check.run(replace(inputs, scores=inputs.scores * 1000))
    finite(
        torch.cat([far.total[None], far.gradient.flatten()]),
        f"{named(loss)}: scores 1000 apart give a loss or a gradient that is not finite; "
        "log(sigmoid(d)) is -inf below d = -104, use torch.nn.functional.logsigmoid",
    )
    mask = torch.ones((1, 2), dtype=torch.bool)
    pair = PreferenceInputs(torch.zeros((1, 2)), torch.tensor([[0, 1]]), mask)
    gradient = check.run(pair).gradient[0]
    require(
        gradient[0].item() < 0 < gradient[1].item(),
        f"{named(loss)}: minimising total should raise the score of rank 0 (the best) and lower "
        f"that of rank 1, but the gradient is {gradient.tolist()}; rank 0 is the best",
    )
    _unranked(check, inputs)


def _unranked(check: LossCheck, inputs: PreferenceInputs) -> None:
    """A completion that nobody ranked counts as if it were not there."""
    partial = replace(inputs, ranks=inputs.ranks.clone())
    partial.ranks[0] = torch.tensor([1, -1, 0, 2])
    absent = replace(partial, mask=inputs.mask.clone())
    absent.mask[0, 1] = False
    check.agree(
        check.run(partial),
        check.run(absent),
        "a completion without a rank (a negative one: leave it out of every pair)",
    )


def _preference_inputs(generator: torch.Generator) -> PreferenceInputs:
    mask = clean_masks(7, 4, generator)
    mask[1:3] = torch.tensor([[True, True, True, False], [True, False, False, False]])
    ranks = torch.stack([torch.randperm(4, generator=generator) for _ in range(7)])
    ranks[1] = torch.tensor([1, 0, 1, 0])  # a tie
    ranks[3] = 0  # nothing but ties
    return PreferenceInputs(torch.randn((7, 4), generator=generator), ranks, mask)


def _ranked(inputs: PreferenceInputs) -> Ranked:
    return Ranked(inputs.ranks, inputs.mask)


def check_pair_loss(loss: Checked, *, seed: int = 0) -> None:
    """:func:`check_loss` for seam ``pair_loss``; the loss falls as the chosen answer gains."""

    def make(generator: torch.Generator) -> PairInputs:
        chosen, rejected, first, second = -20 * torch.rand((4, 7), generator=generator)
        lengths = torch.randint(1, 9, (2, 7), generator=generator)
        mask = torch.arange(7) != 4
        return PairInputs(chosen, rejected, first, second, lengths[0], lengths[1], mask)

    for trained in ("chosen", "rejected"):
        check_loss(loss, make, trained=trained, seed=seed)
    inputs = make(torch.Generator().manual_seed(seed))
    equal = replace(inputs, chosen=inputs.reference_chosen, rejected=inputs.reference_rejected)
    for trained, sign in (("chosen", -1), ("rejected", 1)):
        gradient = LossCheck(loss, trained, masked, named(loss)).run(equal).gradient
        require(
            bool((sign * gradient[inputs.mask] > 0).all()),
            f"{named(loss)}: at the reference, minimising total should raise the chosen answer's "
            "log-probability and lower the rejected one's; check the sign",
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Judged(LabelledInputs):
    """With the answers to other prompts beside them."""

    other: Tensor
    other_reference: Tensor


def check_labelled_loss(loss: Checked, *, needs: Collection[str] = (), seed: int = 0) -> None:
    """:func:`check_loss` for seam ``labelled_loss``; desirable answers gain, the others lose.

    ``needs`` are its component's: with "mismatched" it observes ``MismatchedInputs``.
    """

    declared("labelled_loss", named(loss), needs)

    def make(generator: torch.Generator) -> _Judged:
        logprobs, reference, other = -20 * torch.rand((3, 8), generator=generator)
        return _Judged(
            logprobs,
            reference,
            torch.arange(8) % 2 == 0,
            torch.randint(1, 9, (8,), generator=generator),
            torch.arange(8) != 5,
            other=other,
            # More likely than in the reference on the whole, as a KL is: not all clamped to 0.
            other_reference=other + 3 - 10 * torch.rand(8, generator=generator),
        )

    def crossed(inputs: _Judged) -> MismatchedInputs:
        return MismatchedInputs(inputs.other, inputs.other_reference, inputs.mask)

    observes = crossed if "mismatched" in needs else None
    check_loss(loss, make, observes=observes, seed=seed)
    inputs = make(torch.Generator().manual_seed(seed))
    equal = replace(inputs, logprobs=inputs.reference_logprobs)
    gradient = LossCheck(loss, "logprobs", masked, named(loss), observes).run(equal).gradient
    pushed = torch.where(inputs.desirable, -gradient, gradient)[inputs.mask]
    require(
        bool((pushed > 0).all()),
        f"{named(loss)}: at the reference, minimising total should raise the log-probability of "
        "desirable answers and lower that of the others; check the sign",
    )
