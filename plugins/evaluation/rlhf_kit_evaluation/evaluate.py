"""Stage `evaluate`: a policy against the SFT model it came from, on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.engine.scoring import load_models, probe, score
from rlhf_kit.interfaces import Context, Policy, Reference, RewardFn, Sampler, StageRun
from rlhf_kit.ops.bootstrap import bootstrap_interval
from rlhf_kit.ops.kl import sequence_kl
from rlhf_kit.stagekit.batches import text_blocks
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.stagekit.perplexity import perplexity
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.stagekit.sample import sample
from rlhf_kit.types import Samples, Texts
from rlhf_kit_evaluation.options import EvaluateOptions


@dataclass
class Judged:
    """What is kept of one policy's samples, not the samples; the tensors are [N], prompt-major."""

    texts: list[str]
    gold: Tensor
    reward: Tensor | None
    kl: Tensor
    length: Tensor
    finished: Tensor

    @classmethod
    def join(cls, parts: Sequence[Judged]) -> Judged:
        """Of several batches of prompts, one after the other."""
        rewards = [part.reward for part in parts if part.reward is not None]
        return cls(
            texts=[text for part in parts for text in part.texts],
            gold=torch.cat([part.gold for part in parts]),
            reward=torch.cat(rewards) if rewards else None,
            kl=torch.cat([part.kl for part in parts]),
            length=torch.cat([part.length for part in parts]),
            finished=torch.cat([part.finished for part in parts]),
        )


class Evaluate:
    def __init__(self, options: EvaluateOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._left_out = LeftOut()
        self._prompts = PromptSet.chosen(
            context.build(options.prompts).split("test"),
            context.tokenizer,
            "test",
            self._left_out,
            longest=options.max_prompt_tokens,
            room=options.sampling.max_new_tokens,
        )
        self._sampler: Sampler = context.build(options.sampling.sampler)
        self._gold: RewardFn = context.build(options.gold)
        probe(self._gold, self._prompts.rows)
        self._reward: RewardFn | None = (
            None if options.reward is None else context.build(options.reward)
        )
        self._texts = self._held_out()

    def _held_out(self) -> Texts | None:
        o, left_out = self._options, self._left_out
        if o.pretraining is None:
            return None
        rows, length = self._context.build(o.pretraining).split("test"), o.pretraining_length
        blocks = text_blocks(rows, self._context.tokenizer, length, left_out, "test")
        most = max(1, o.pretraining_tokens // length)
        why = f"more than pretraining_tokens {o.pretraining_tokens}"
        left_out.note(max(0, len(blocks) - most), len(blocks), "blocks of text, split test", why)
        return blocks.first(most)

    def run(self, run: StageRun) -> dict[str, Any]:
        o, context = self._options, self._context
        self._left_out.tell(run)
        memory = context.memory()
        for part in filter(None, (self._gold, self._reward)):
            load_models(part, memory)
        policy = memory.policy(context.artifact(o.ppo), trainable=False)
        baseline = memory.policy(context.artifact(o.sft), trainable=False)
        run.say(f"sampling {o.samples_per_prompt} x {len(self._prompts)} responses of each policy")
        ppo = self._judge(policy, baseline, run, "ppo")
        sft = self._judge(baseline, baseline, run, "sft")
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
        summary |= self._left_out.summary()
        if sft.reward is not None and ppo.reward is not None:
            summary["reward_model_score"] = {"sft": _mean(sft.reward), "ppo": _mean(ppo.reward)}
        if self._texts is not None:
            of = {"sft": baseline, "ppo": policy}
            summary["perplexity"] = {k: perplexity(p, self._texts) for k, p in of.items()}
        write_json(run.folder / "samples.json", self._pairs(sft, ppo))
        self._show(run, sft, ppo)
        return summary

    def _judge(self, policy: Policy, baseline: Reference, run: StageRun, whose: str) -> Judged:
        o = self._options
        prompts = self._prompts.all().repeat(o.samples_per_prompt)
        # With a name of their own in the key, the samples of two policies are independent.
        key, endings = run.key("sample", whose), Endings(run, f"of {whose}")
        found = sample(self._sampler, policy, prompts, o.sampling, key, endings=endings)
        return Judged.join([self._judge_samples(policy, baseline, samples) for samples in found])

    @torch.no_grad()
    def _judge_samples(self, policy: Policy, baseline: Reference, samples: Samples) -> Judged:
        logprobs = policy.evaluate(samples).logprobs
        reference = baseline.evaluate(samples).logprobs
        gold, _ = score(self._gold, samples, "gold")
        reward = None if self._reward is None else score(self._reward, samples)[0].cpu()
        return Judged(
            texts=samples.responses,
            gold=gold.cpu(),
            reward=reward,
            kl=sequence_kl(logprobs, reference, samples.response_mask).cpu(),
            length=samples.response_mask.sum(1).float().cpu(),
            finished=samples.finished.float().cpu(),
        )

    def _pairs(self, sft: Judged, ppo: Judged) -> list[dict[str, Any]]:
        prompts = [
            row for row in self._prompts.rows for _ in range(self._options.samples_per_prompt)
        ]
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
