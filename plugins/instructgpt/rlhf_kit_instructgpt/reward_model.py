"""Stage `reward_model`: learn to score from K-way comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.accumulate import Term, accumulating
from rlhf_kit.engine.minibatch import Cycle
from rlhf_kit.engine.optim import ParameterGroup
from rlhf_kit.interfaces import Context, Loss, RewardModel, StageRun
from rlhf_kit.ops.sequence import by_length
from rlhf_kit.types import ComparisonBatch, PackedTexts, PreferenceInputs, TextBatch
from rlhf_kit_instructgpt.batches import answered, comparison_batch
from rlhf_kit_instructgpt.losses import better_pairs
from rlhf_kit_instructgpt.optimizer import build_optimizer
from rlhf_kit_instructgpt.options import RewardModelOptions
from rlhf_kit_instructgpt.preference_metrics import (
    Bins,
    accuracy,
    accuracy_interval,
    brier,
    calibration_error,
    length_figures,
    pair_margins,
    reliability,
)
from rlhf_kit_instructgpt.probe import fit_probe

_PROOF_TEXTS = 8


class RewardModelStage:
    """arXiv:2203.02155, section 3.5: every completion once, all pairs of a prompt together."""

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
        for why, count in getattr(self._source, "dropped", {}).items():
            run.say(f"left out {count}: {why}")
        model: RewardModel = self._context.memory().reward_model(
            self._context.artifact(o.start), pooling=o.pooling, init_std=o.head_init_std
        )
        train, held_out = (self._encoded(model, self._batches[n]) for n in ("train", "validation"))
        if o.head_init == "probe":
            states = self._in_chunks(model.features, train.texts)  # [G, K, H]
            model.set_head(*fit_probe(states, train, self._loss, o.probe_l2))
            run.say(f"probe  held-out accuracy {self.judge(model, held_out)[0]['accuracy']:.3f}")
        self._train(run, model, train, held_out)
        if self._demonstrations is not None:
            model.shift(-self._mean_score(model, self._demonstrations))
        figures, bins = self.judge(model, held_out)
        model.save(run.folder, proof=self._proof())
        clear = figures.get("clear_accuracy", figures["accuracy"])
        return {"rm_pair_accuracy": clear, "reward_model": {**figures, "reliability": bins}}

    def _train(
        self, run: StageRun, model: RewardModel, train: ComparisonBatch, held_out: ComparisonBatch
    ) -> None:
        o = self._options
        per_epoch = math.ceil(len(train) / o.batch_size)
        total = per_epoch * o.epochs
        group = ParameterGroup(list(model.parameters()), o.optimizer.learning_rate)
        optimizer = build_optimizer([group], o.optimizer, total)
        cycle = Cycle(len(train), o.batch_size, run.generator, span_passes=False)
        state = {"model": model, "optimizer": optimizer, "cycle": cycle}
        for step in run.steps(total, state):
            batch = train.select(cycle.next())
            micro_batches = by_length(batch.texts.mask, o.micro_batch)
            with accumulating(optimizer) as update:
                update.add(
                    {"rm": Term(self._loss)},
                    lambda micro: {"rm": self._inputs(model, micro)},
                    [batch.select(prompts) for prompts in micro_batches],
                )
            metrics = dict(update.stats)
            line = f"step {step + 1}/{total}  loss {metrics['rm/loss']:.3f}"
            if (step + 1) % per_epoch == 0:
                figures, _ = self.judge(model, held_out)
                metrics |= {f"validation/{key}": value for key, value in figures.items()}
                line += f"  held-out accuracy {figures['accuracy']:.3f}"
            run.end_step(step, metrics, line)

    def _encoded(self, model: RewardModel, batch: ComparisonBatch) -> ComparisonBatch:
        """With the frozen trunk computed once, if it fits into the cache that the recipe allows."""
        texts = batch.texts
        trunk = model.encode(texts.select(torch.tensor([0]))).trunk
        if trunk is None:
            return batch
        size = trunk.element_size() * trunk.shape[-1] * texts.tokens.numel() / 2**20
        if size > self._options.trunk_cache_mib:
            return batch
        full = torch.zeros((*texts.tokens.shape, trunk.shape[-1]), dtype=trunk.dtype)
        for prompts in by_length(texts.mask, self._options.micro_batch):
            part = model.encode(texts.select(prompts)).trunk
            assert part is not None
            full[prompts, : part.shape[1]] = part.to(full.device)
        return replace(batch, texts=replace(texts, trunk=full))

    @staticmethod
    def _inputs(model: RewardModel, batch: ComparisonBatch) -> PreferenceInputs:
        scores = model.compare(batch.texts).to(batch.ranks.device)  # [G, K]
        return PreferenceInputs(scores, batch.ranks, batch.mask)

    @torch.no_grad()
    def _in_chunks(self, compute: Callable[[PackedTexts], Tensor], texts: PackedTexts) -> Tensor:
        """[G, ...]: ``compute`` of all prompts, of neighbours in length together."""
        chunks = by_length(texts.mask, self._options.micro_batch)
        found = torch.cat([compute(texts.select(prompts)).cpu() for prompts in chunks])
        return found[torch.cat(list(chunks)).argsort()]

    @torch.no_grad()
    def judge(self, model: RewardModel, batch: ComparisonBatch) -> tuple[dict[str, float], Bins]:
        """Loss, accuracy, calibration and length bias, and the bins of the calibration.

        On pairs with a clear gold margin too, where there is gold.
        """
        scores, mask = self._in_chunks(model.compare, batch.texts), batch.mask  # [G, K]
        inputs = PreferenceInputs(scores, batch.ranks, mask)
        pairs = better_pairs(batch.ranks, mask)
        # A generator of its own: how often a run judges must not change what it samples.
        generator = torch.Generator().manual_seed(self._context.seed)
        low, high = accuracy_interval(scores, pairs, generator)
        margins = pair_margins(scores, pairs)
        bins = reliability(margins)
        figures = {
            "loss": (self._loss(inputs).total / self._loss.count(inputs).clamp(min=1)).item(),
            "accuracy": accuracy(scores, pairs),
            "accuracy_low": low,
            "accuracy_high": high,
            "pairs": float(pairs.sum()),
            "calibration_error": calibration_error(bins),
            "brier": brier(margins),
            **length_figures(scores, batch.texts.lengths(), mask, pairs),
            "score_mean": scores[mask].mean().item(),
            "score_std": scores[mask].std().item(),
        }
        if batch.gold is not None:
            gap = batch.gold[:, :, None] - batch.gold[:, None, :]
            clear = pairs & (gap >= self._options.clear_margin)
            figures |= {
                "clear_accuracy": accuracy(scores, clear),
                "clear_pairs": float(clear.sum()),
            }
        return figures, bins

    @torch.no_grad()
    def _mean_score(self, model: RewardModel, texts: TextBatch) -> float:
        chunks = by_length(texts.mask, self._options.micro_batch)
        return torch.cat([model.score(texts.select(rows)) for rows in chunks]).mean().item()

    def _proof(self) -> TextBatch:
        """A few held-out texts, whose scores tell the saved model from another."""
        few = self._batches["validation"].select(
            torch.arange(len(self._batches["validation"]))[: _PROOF_TEXTS // 2]
        )
        texts, _ = few.texts.unpacked()
        return texts.select(torch.arange(len(texts))[:_PROOF_TEXTS])
