"""Stage `reward_model`: learn to score from K-way comparisons."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.accumulate import Term, accumulating
from rlhf_kit.engine.minibatch import Cycle
from rlhf_kit.engine.optim import ParameterGroup
from rlhf_kit.interfaces import Context, Loss, RewardModel, StageRun
from rlhf_kit.types import ComparisonBatch, PreferenceInputs, TextBatch
from rlhf_kit_instructgpt.batches import answered, comparison_batch
from rlhf_kit_instructgpt.losses import better_pairs
from rlhf_kit_instructgpt.optimizer import build_optimizer
from rlhf_kit_instructgpt.options import RewardModelOptions
from rlhf_kit_instructgpt.probe import fit_probe


class RewardModelStage:
    """arXiv:2203.02155, section 3.5: one forward per completion, all pairs of a prompt together."""

    def __init__(self, options: RewardModelOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._source = context.build(options.comparisons)
        self._loss: Loss[PreferenceInputs] = context.build(options.loss)
        self._batches: dict[str, ComparisonBatch] = {}
        self._demonstrations: TextBatch | None = None
        if options.demonstrations is not None:
            rows = context.build(options.demonstrations).split("train")
            pairs = [(r, r["response"], True) for r in rows]
            self._demonstrations = answered(pairs, context.tokenizer)
        if self._source.ready:
            self._read()

    def _read(self) -> None:
        for name in ("train", "validation"):
            rows = self._source.split(name)
            self._batches[name] = comparison_batch(rows, self._context.tokenizer)

    def run(self, run: StageRun) -> dict[str, Any]:
        o = self._options
        if not self._source.ready:
            self._read()
        model: RewardModel = self._context.memory().reward_model(
            self._context.artifact(o.start), pooling=o.pooling, init_std=o.head_init_std
        )
        train, held_out = (self._encoded(model, self._batches[n]) for n in ("train", "validation"))
        if o.head_init == "probe":
            with torch.no_grad():
                states = torch.cat([model.features(micro) for micro in train.texts.split(64)])
            model.set_head(*fit_probe(states, train, self._loss, o.probe_l2))
            run.say(f"probe  held-out accuracy {self.judge(model, held_out)['accuracy']:.3f}")
        per_epoch = math.ceil(len(train) / o.batch_size)
        total = per_epoch * o.epochs
        group = ParameterGroup(list(model.parameters()), o.optimizer.learning_rate)
        optimizer = build_optimizer([group], o.optimizer, total)
        cycle = Cycle(len(train), o.batch_size, run.generator)
        state = {"model": model, "optimizer": optimizer, "cycle": cycle}
        for step in run.steps(total, state):
            batch = train.select(cycle.next())
            with accumulating(optimizer) as update:
                update.add(
                    {"rm": Term(self._loss)},
                    lambda micro: {"rm": self._inputs(model, micro)},
                    list(batch.split(o.micro_batch)),
                )
            metrics = dict(update.stats)
            line = f"step {step + 1}/{total}  loss {metrics['rm/loss']:.3f}"
            if (step + 1) % per_epoch == 0:
                metrics |= {f"validation/{k}": v for k, v in self.judge(model, held_out).items()}
                line += f"  held-out accuracy {metrics['validation/accuracy']:.3f}"
            run.end_step(step, metrics, line)
        if self._demonstrations is not None:
            model.bias -= self._mean_score(model, self._demonstrations)
        figures = self.judge(model, held_out)
        model.save(run.folder)
        clear = figures.get("clear_accuracy", figures["accuracy"])
        return {"rm_pair_accuracy": clear, "reward_model": figures}

    def _encoded(self, model: RewardModel, batch: ComparisonBatch) -> ComparisonBatch:
        """With the frozen trunk computed once, if it fits into the cache that the recipe allows."""
        chunk = next(batch.texts.split(1))
        trunk = model.encode(chunk).trunk
        if trunk is None:
            return batch
        size = trunk.element_size() * trunk.shape[-1] * batch.texts.tokens.numel() / 2**20
        if size > self._options.trunk_cache_mib:
            return batch
        texts = batch.texts
        full = torch.zeros((*texts.tokens.shape, trunk.shape[-1]), dtype=trunk.dtype)
        for rows in torch.arange(len(texts)).split(64):
            part = model.encode(texts.select(rows)).trunk
            assert part is not None
            full[rows, : part.shape[1]] = part.to(full.device)
        texts = TextBatch(texts.tokens, texts.mask, texts.target, full)
        return ComparisonBatch(texts, batch.index, batch.ranks, batch.mask, batch.gold)

    @staticmethod
    def _inputs(model: RewardModel, batch: ComparisonBatch) -> PreferenceInputs:
        scores = batch.grouped(model.score(batch.texts))  # [G, K]
        return PreferenceInputs(scores, batch.ranks, batch.mask)

    @torch.no_grad()
    def judge(self, model: RewardModel, batch: ComparisonBatch) -> dict[str, float]:
        """Loss and pair accuracy; on pairs with a clear gold margin too, where there is gold."""
        parts = [self._inputs(model, m).scores for m in batch.split(self._options.micro_batch)]
        scores = torch.cat(parts)  # [G, K]; micro-batches keep the width of the whole
        inputs = PreferenceInputs(scores, batch.ranks, batch.mask)
        count = self._loss.count(inputs).clamp(min=1)
        pairs = better_pairs(batch.ranks, batch.mask)
        figures = {
            "loss": (self._loss(inputs).total / count).item(),
            "accuracy": _accuracy(scores, pairs),
            "pairs": float(pairs.sum()),
            "score_mean": scores[batch.mask].mean().item(),
            "score_std": scores[batch.mask].std().item(),
        }
        if batch.gold is not None:
            gap = batch.gold[:, :, None] - batch.gold[:, None, :]
            clear = pairs & (gap >= self._options.clear_margin)
            figures |= {
                "clear_accuracy": _accuracy(scores, clear),
                "clear_pairs": float(clear.sum()),
            }
        return figures

    @torch.no_grad()
    def _mean_score(self, model: RewardModel, texts: TextBatch) -> float:
        return torch.cat([model.score(micro) for micro in texts.split(64)]).mean().item()


def _accuracy(scores: Tensor, pairs: Tensor) -> float:
    """Share of ``pairs`` [G, K, K] that ``scores`` [G, K] orders rightly; equal counts half."""
    margin = (scores[:, :, None] - scores[:, None, :])[pairs]
    right = (margin > 0).float() + 0.5 * (margin == 0).float()
    return right.mean().item() if len(right) else math.nan
