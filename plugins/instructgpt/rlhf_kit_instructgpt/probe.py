"""A linear probe: the scalar head alone, fitted on frozen states before everything trains.

Fine-tuning from a random head first distorts the features it should build on; fitting the head
first avoids that (LP-FT, arXiv:2202.10054). The problem is convex and takes a second.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_kit.engine.observed import observed
from rlhf_kit.engine.terms import count_of, output_of
from rlhf_kit.interfaces import AnyLoss, Term
from rlhf_kit.types import Comparisons, PreferenceInputs, Ranked


def fit_probe(
    features: Tensor,
    batch: Comparisons,
    loss: AnyLoss[PreferenceInputs, Ranked],
    l2: float,
) -> tuple[Tensor, float]:
    """Minimise mean loss + l2/2 |w|^2 over a linear score of standardised features.

    Args:
        features: [G, K, H], of the completions of ``batch``.
        batch: the comparisons to fit.
        loss: a preference loss, convex in the scores.
        l2: penalty on the weights of the standardised features.

    Returns:
        weight [H] and bias, for the features as they are. Scores of the completions average 0.
    """
    features = features.detach().float().cpu()
    valid = features[batch.mask]  # [N, H]
    mean, std = valid.mean(0), valid.std(0) + 1e-4
    del valid
    standard = (features - mean) / std  # a few dimensions of a language model dwarf all others
    weight = torch.zeros(features.shape[2], requires_grad=True)
    term = Term(loss, lambda inputs: Ranked(inputs.ranks, inputs.mask))
    count = count_of(term, Ranked(batch.ranks, batch.mask), "").clamp(min=1)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        scores = standard @ weight  # [G, K]
        inputs = PreferenceInputs(scores, batch.ranks, batch.mask)
        seen = observed({"": term}, lambda read: {"": read}, [inputs])[""]
        total = output_of(term, inputs, seen, "").total / count
        total = total + 0.5 * l2 * weight.square().sum()
        total.backward()
        return total

    optimizer.step(objective)
    found = weight.detach() / std
    return found, -float(found @ mean)
