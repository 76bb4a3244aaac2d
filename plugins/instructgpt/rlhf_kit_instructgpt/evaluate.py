"""Stage `evaluate`: a policy against the SFT model it came from, on held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.engine.scoring import load_models, probe, score
from rlhf_kit.interfaces import Context, Policy, RewardFn, StageRun
from rlhf_kit.ops.bootstrap import bootstrap_interval
from rlhf_kit.ops.kl import sequence_kl
from rlhf_kit.types import Samples, TextBatch
from rlhf_kit_instructgpt.batches import (
    check_prompts,
    prompt_batch,
    sampling_of,
    short_prompts,
    text_blocks,
)
from rlhf_kit_instructgpt.endings import Endings
from rlhf_kit_instructgpt.options import EvaluateOptions
from rlhf_kit_instructgpt.perplexity import perplexity


@dataclass
class Judged:
    """One policy's samples on all prompts; the tensors are [N], prompt-major."""

    texts: list[str]
    gold: Tensor
    reward: Tensor | None
    kl: Tensor
    length: Tensor
    finished: Tensor


class Evaluate:
    def __init__(self, options: EvaluateOptions, context: Context) -> None:
        self._options, self._context = options, context
        rows = context.build(options.prompts).split("test")
        self._rows = short_prompts(rows, context.tokenizer, options.max_prompt_tokens)
        check_prompts(self._rows, context.tokenizer, options.sampling.max_new_tokens)
        self._gold: RewardFn = context.build(options.gold)
        probe(self._gold, self._rows)
        self._reward: RewardFn | None = (
            None if options.reward is None else context.build(options.reward)
        )
        self._texts: TextBatch | None = None
        if options.pretraining is not None:
            text = context.build(options.pretraining).split("test")
            blocks = text_blocks(text, context.tokenizer, options.pretraining_length)
            most = max(1, options.pretraining_tokens // options.pretraining_length)
            self._texts = blocks.select(torch.arange(min(len(blocks), most)))

    def run(self, run: StageRun) -> dict[str, Any]:
        o, context = self._options, self._context
        memory = context.memory()
        for part in filter(None, (self._gold, self._reward)):
            load_models(part, memory)
        policy = memory.policy(
            context.artifact(o.ppo), reference=context.artifact(o.sft), trainable=False
        )
        run.say(f"sampling {o.samples_per_prompt} x {len(self._rows)} responses of each policy")
        ppo = self._judge(policy, run, "of ppo")
        with policy.reference():
            sft = self._judge(policy, run, "of sft")
        won = wins(ppo.gold, sft.gold, o)
        low, high = bootstrap_interval(won, torch.ones_like(won), run.generator)
        summary: dict[str, Any] = {
            "gold_score": {"sft": _mean(sft.gold), "ppo": _mean(ppo.gold)},
            "win_rate": _mean(won),
            "win_rate_ci": [low, high],
            "kl": _mean(ppo.kl),
            "response_length": {"sft": _mean(sft.length), "ppo": _mean(ppo.length)},
            "finished": {"sft": _mean(sft.finished), "ppo": _mean(ppo.finished)},
        }
        if sft.reward is not None and ppo.reward is not None:
            summary["reward_model_score"] = {"sft": _mean(sft.reward), "ppo": _mean(ppo.reward)}
        if self._texts is not None:
            after = perplexity(policy, self._texts)
            with policy.reference():
                summary["perplexity"] = {"sft": perplexity(policy, self._texts), "ppo": after}
        write_json(run.folder / "samples.json", self._pairs(sft, ppo))
        self._show(run, sft, ppo)
        return summary

    @torch.no_grad()
    def _judge(self, policy: Policy, run: StageRun, whose: str) -> Judged:
        o = self._options
        sampling = sampling_of(o.sampling, run.generator)
        endings = Endings(run, whose)
        size = max(1, o.sampling.batch_size // o.samples_per_prompt)
        found: list[tuple[Samples, Tensor, Tensor | None, Tensor]] = []
        for begin in range(0, len(self._rows), size):
            rows = self._rows[begin : begin + size]
            prompts = prompt_batch(rows, self._context.tokenizer).repeat(o.samples_per_prompt)
            samples = policy.generate(prompts, sampling)
            endings.see(samples)
            logprobs = policy.evaluate(samples).logprobs
            with policy.reference():
                reference = policy.evaluate(samples).logprobs
            gold, _ = score(self._gold, samples, "gold")
            reward = None if self._reward is None else score(self._reward, samples)[0]
            kl = sequence_kl(logprobs, reference, samples.response_mask)
            found.append((samples, gold, reward, kl))
        batches = [samples for samples, *_ in found]
        rewards = [reward for _, _, reward, _ in found if reward is not None]
        return Judged(
            texts=[text for samples in batches for text in samples.responses],
            gold=torch.cat([gold.cpu() for _, gold, _, _ in found]),
            reward=torch.cat(rewards).cpu() if rewards else None,
            kl=torch.cat([kl.cpu() for *_, kl in found]),
            length=torch.cat([s.response_mask.sum(1).float().cpu() for s in batches]),
            finished=torch.cat([s.finished.float().cpu() for s in batches]),
        )

    def _pairs(self, sft: Judged, ppo: Judged) -> list[dict[str, Any]]:
        prompts = [row for row in self._rows for _ in range(self._options.samples_per_prompt)]
        return [
            {
                "prompt": row.get("prompt") or row["messages"][-1]["content"],
                "sft": sft.texts[i],
                "ppo": ppo.texts[i],
                "gold": {"sft": sft.gold[i].item(), "ppo": ppo.gold[i].item()},
            }
            for i, row in enumerate(prompts)
        ]

    def _show(self, run: StageRun, sft: Judged, ppo: Judged) -> None:
        pairs = self._pairs(sft, ppo)[:: self._options.samples_per_prompt]
        for pair in pairs[: self._options.side_by_side]:
            run.say(f"prompt: {pair['prompt']}")
            for name in ("sft", "ppo"):
                run.say(f"  {name} ({pair['gold'][name]:+.2f}): {pair[name]}")


def _mean(values: Tensor) -> float:
    return values.float().mean().item()


def wins(ppo: Tensor, sft: Tensor, options: EvaluateOptions) -> Tensor:
    """Per prompt, the share of sample pairs that ``ppo`` wins; a tie counts half. [prompts]"""
    gap = ppo - sft
    won = (gap > options.tie_margin).float() + 0.5 * (gap.abs() <= options.tie_margin).float()
    return won.view(-1, options.samples_per_prompt).mean(1)
