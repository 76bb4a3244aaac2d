"""Stage `best_of_n`: what a proxy reward picks among n samples, and what it is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.engine.scoring import load_models, score, summed, try_out
from rlhf_kit.errors import PluginError
from rlhf_kit.interfaces import Context, RewardFn, Sampler, StageRun
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.stagekit.journal import Journal
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.stagekit.sample import sample
from rlhf_kit.stagekit.state import stateful
from rlhf_kit_evaluation.options import BestOfNOptions


def best_of_n_kl(n: int) -> float:
    """``log n - (n - 1) / n``, an upper bound of the KL of best-of-n to its policy, in nats."""
    return math.log(n) - (n - 1) / n


def best_of_n_weights(total: int, n: int) -> Tensor:
    """[total] float64: the chance that place i, from the worst, is the best of n drawn of them.

    ``C(i, n - 1) / C(total, n)`` for i = 0 .. total - 1: the unbiased estimator of
    arXiv:2112.09332, appendix I, which uses every sample for every n.
    """
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} of {total} samples")
    place = torch.arange(total, dtype=torch.float64)
    possible = place >= n - 1
    place = torch.where(possible, place, n - 1.0)
    log_ways = torch.lgamma(place + 1) - math.lgamma(n) - torch.lgamma(place - n + 2)
    log_all = math.lgamma(total + 1) - math.lgamma(n + 1) - math.lgamma(total - n + 1)
    return torch.where(possible, (log_ways - log_all).exp(), 0.0)


def best_of_n(proxy: Tensor, gold: Tensor, n: int) -> tuple[float, float]:
    """Expected proxy and gold score, over prompts, of the sample that ``proxy`` likes best of n.

    Args:
        proxy, gold: [prompts, samples]. Samples that the proxy cannot tell apart share their
            chances, so that their order means nothing.
    """
    order = proxy.argsort(dim=1, stable=True)
    weights = best_of_n_weights(proxy.shape[1], n).expand(proxy.shape)  # by place
    ranked = proxy.gather(1, order)
    shared = torch.stack([_shared(w, p) for w, p in zip(weights, ranked, strict=True)])
    found = [(shared * x.double().gather(1, order)).sum(1).mean().item() for x in (proxy, gold)]
    return found[0], found[1]


def _shared(weights: Tensor, ranked: Tensor) -> Tensor:
    """Weights averaged over neighbours of equal score. Both [samples]."""
    _, group, count = torch.unique_consecutive(ranked, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(count), dtype=weights.dtype).index_add_(0, group, weights)
    return (sums / count)[group]


class BestOfN:
    """Samples N responses to every prompt once, and reads all n and all proxies off them."""

    def __init__(self, options: BestOfNOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._left_out = LeftOut()
        self._prompts = PromptSet.to_answer(
            context.build(options.prompts),
            options.split,
            options,
            context.tokenizer,
            self._left_out,
            most=options.most_prompts,
            option="most_prompts",
        )
        self._sampler: Sampler = context.build(options.sampling.sampler)
        self._gold: RewardFn = context.build(options.gold)
        try_out(self._gold, self._prompts.rows, "gold")
        self._proxies: dict[str, RewardFn] = {
            name: context.build(part) for name, part in options.proxies.items()
        }
        for name, proxy in self._proxies.items():
            try_out(proxy, self._prompts.rows, name)

    def run(self, run: StageRun) -> dict[str, Any]:
        o = self._options
        self._left_out.tell(run)
        memory = self._context.memory()
        for reward in (self._gold, *self._proxies.values()):
            load_models(reward, memory)
        policy = memory.policy(self._context.artifact(o.start), trainable=False)
        done, endings, key = Journal(), Endings(run), run.key("sample")
        parts = {"gold": self._gold, **self._proxies}
        rewards = {f"reward {name}": part for name, part in parts.items()}
        state = stateful(scores=done, sampler=self._sampler, **rewards)
        for step in run.steps(len(self._prompts), state, unit="prompt"):
            prompts = self._prompts.batch(torch.tensor([step])).repeat(o.samples_per_prompt)
            found: dict[str, list[float | None]] = {name: [] for name in parts}
            counts: list[dict[str, float]] = []
            for samples in sample(self._sampler, policy, prompts, o.sampling, key, endings=endings):
                for name, part in parts.items():
                    scores = score(part, samples, name)
                    found[name] += scores.known_or_none()
                    counts.append(scores.counted(name))
            done.add(found)
            metrics = summed(counts)
            for name, column in found.items():
                known = [x for x in column if x is not None]
                metrics |= {name: sum(known) / len(known)} if known else {}
            line = f"prompt {step + 1}/{len(self._prompts)}" if step % 10 == 9 else None
            run.end_step(step, metrics, line)
        curves = self.curves(self._tables(list(done)), used := LeftOut())
        used.tell(run)
        write_json(run.folder / "best_of_n.json", curves)
        return {"best_of_n": curves[-1], **(self._left_out | used).summary()}

    def _tables(
        self, rows: Sequence[Mapping[str, Sequence[float | None]]]
    ) -> list[dict[str, Tensor]]:
        """Of each prompt the scores [1, samples] of the answers that have all, name by name."""
        found = []
        for row in rows:
            answers = zip(*row.values(), strict=True)
            whole = [scores for scores in answers if None not in scores]
            table = torch.tensor(whole).view(-1, len(row)).T[:, None]
            found.append(dict(zip(row, table, strict=True)))
        if not any(table["gold"].numel() for table in found):
            raise PluginError("no answer to any prompt has all scores; nothing to compare")
        return found

    def curves(
        self, tables: Sequence[Mapping[str, Tensor]], left_out: LeftOut
    ) -> list[dict[str, float]]:
        """For n = 1, 2, 4, ...: ``kl`` in nats, and of each proxy ``name/proxy``, ``name/gold``.

        Means over the prompts, of each of which there is a table: name -> [1, samples]; at each n
        over those with so many answers. There is no point where no prompt has.
        """
        found = []
        n = 1
        while n <= self._options.samples_per_prompt:
            enough = [table for table in tables if table["gold"].shape[1] >= n]
            why = f"fewer than n = {n} of the answers have all scores"
            left_out.note(len(tables) - len(enough), len(tables), "prompts", why)
            if enough:
                found.append(self._point(enough, n))
            n *= 2
        return found

    def _point(self, tables: Sequence[Mapping[str, Tensor]], n: int) -> dict[str, float]:
        point = {"n": float(n), "kl": best_of_n_kl(n)}
        for name in self._proxies:
            each = [best_of_n(table[name], table["gold"], n) for table in tables]
            proxy, gold = (sum(scores) / len(each) for scores in zip(*each, strict=True))
            point |= {f"{name}/proxy": proxy, f"{name}/gold": gold}
        return point
