"""Stage `reward_model`: learn to score from K-way comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.held_out import held_out_loss
from rlhf_kit.interfaces import (
    AnyLoss,
    Context,
    DropsRows,
    RewardModel,
    StageRun,
    Term,
)
from rlhf_kit.ops.sequence import by_length
from rlhf_kit.stagekit.batches import answered, read_comparisons
from rlhf_kit.stagekit.fit import fit
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.stagekit.splits import by_split
from rlhf_kit.types import (
    Activations,
    ComparisonBatch,
    Comparisons,
    PackedTexts,
    PreferenceInputs,
    Ranked,
    TextBatch,
    Texts,
)
from rlhf_kit_instructgpt.losses import better_pairs
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
        self._loss: AnyLoss[PreferenceInputs, Ranked] = context.build(options.loss)
        self._term = Term(self._loss, lambda inputs: Ranked(inputs.ranks, inputs.mask))
        self._demonstrations: Texts | None = None
        if options.demonstrations is not None:
            rows = context.build(options.demonstrations).split("train")
            prompts = PromptSet.of(rows, context.tokenizer)
            answers = ((row["response"], True) for row in rows)
            self._demonstrations = answered(prompts, answers, context.tokenizer)
        self._comparisons = by_split(
            self._source, lambda rows: read_comparisons(rows, context.tokenizer)
        )

    def run(self, run: StageRun) -> dict[str, Any]:
        o = self._options
        read = self._comparisons("train"), self._comparisons("validation")
        dropped = dict(self._source.dropped) if isinstance(self._source, DropsRows) else {}
        for why, count in dropped.items():
            run.say(f"left out {count}: {why}")
        model: RewardModel = self._context.memory().scorer(
            self._context.artifact(o.start), pooling=o.pooling, init_std=o.head_init_std
        )
        train, held_out = (self._encoded(model, split) for split in read)
        if o.head_init == "probe":
            states = self._in_chunks(model.features, train)  # [G, K, H]
            model.set_head(*fit_probe(states, train, self._loss, o.probe_l2))
            del states  # as large as all completions
            run.say(f"probe  held-out accuracy {self.judge(model, held_out)[0]['accuracy']:.3f}")
        fit(
            run,
            self._context.engine,
            model,
            o,
            train.lengths,
            {"rm": Term(self._loss, train.ranked)},
            lambda prompts: {"rm": self._inputs(model, train.select(prompts))},
            lambda: self.judge(model, held_out)[0],
            "accuracy",
        )
        if self._demonstrations is not None:
            model.shift(-self._mean_score(model, self._demonstrations))
        figures, bins = self.judge(model, held_out)
        model.save(run.folder, proof=self._proof())
        clear = figures.get("clear_accuracy", figures["accuracy"])
        summary = {"rm_pair_accuracy": clear, "reward_model": {**figures, "reliability": bins}}
        return summary | ({"left_out": dropped} if dropped else {})

    @torch.no_grad()
    def _encoded(self, model: RewardModel, data: Comparisons) -> Comparisons:
        """With the frozen trunk computed once, if it fits into the cache that the recipe allows."""
        trunk = model.encode(data.select(torch.tensor([0])).texts).trunk
        if trunk is None:
            return data
        states = trunk.states
        size = states.element_size() * states.shape[-1] * int(data.lengths.sum()) / 2**20
        if size > self._options.trunk_cache_mib:
            return data
        chunks = by_length(data.lengths, self._options.micro_batch)
        found = Activations.join(self._trunk_of(model, data, prompts) for prompts in chunks)
        return replace(data, trunk=found.select(torch.cat(list(chunks)).argsort().tolist()))

    @staticmethod
    def _trunk_of(model: RewardModel, data: Comparisons, prompts: Tensor) -> Activations:
        texts = model.encode(data.select(prompts).texts)
        assert texts.trunk is not None
        return Activations.of(texts.trunk, texts.mask).to(torch.device("cpu"))

    @staticmethod
    def _inputs(model: RewardModel, batch: ComparisonBatch) -> PreferenceInputs:
        scores = model.compare(batch.texts).to(batch.ranks.device)  # [G, K]
        return PreferenceInputs(scores, batch.ranks, batch.mask)

    @torch.no_grad()
    def _in_chunks(self, compute: Callable[[PackedTexts], Tensor], data: Comparisons) -> Tensor:
        """[G, ...]: ``compute`` of all prompts, of neighbours in length together."""
        chunks = by_length(data.lengths, self._options.micro_batch)
        found = torch.cat([compute(data.select(prompts).texts).cpu() for prompts in chunks])
        return found[torch.cat(list(chunks)).argsort()]

    @torch.no_grad()
    def judge(self, model: RewardModel, batch: Comparisons) -> tuple[dict[str, float], Bins]:
        """Loss, accuracy, calibration and length bias, and the bins of the calibration.

        On pairs with a clear gold margin too, where there is gold.
        """
        scores, mask = self._in_chunks(model.compare, batch), batch.mask  # [G, K]
        inputs = PreferenceInputs(scores, batch.ranks, mask)
        pairs = better_pairs(batch.ranks, mask)
        # A generator of its own: how often a run judges must not change what it samples.
        generator = torch.Generator().manual_seed(self._context.seed)
        low, high = accuracy_interval(scores, pairs, generator)
        margins = pair_margins(scores, pairs)
        bins = reliability(margins)
        figures = {
            "loss": held_out_loss(self._term, [inputs], lambda all_of_it: all_of_it)["loss"],
            "accuracy": accuracy(scores, pairs),
            "accuracy_low": low,
            "accuracy_high": high,
            "pairs": float(pairs.sum()),
            "calibration_error": calibration_error(bins),
            "brier": brier(margins),
            **length_figures(scores, batch.completion_lengths(), mask, pairs),
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
    def _mean_score(self, model: RewardModel, texts: Texts) -> float:
        chunks = by_length(texts.lengths, self._options.micro_batch)
        return torch.cat([model.score(texts.select(rows)) for rows in chunks]).mean().item()

    def _proof(self) -> TextBatch:
        """A few held-out texts, whose scores tell the saved model from another."""
        held_out = self._comparisons("validation")
        few = held_out.select(torch.arange(len(held_out))[: _PROOF_TEXTS // 2])
        texts, _ = few.texts.unpacked()
        return texts.select(torch.arange(len(texts))[:_PROOF_TEXTS])
