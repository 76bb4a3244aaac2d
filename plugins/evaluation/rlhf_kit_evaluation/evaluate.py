"""Stage `evaluate`: any number of policies against one baseline, on held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.engine.release import release_memory
from rlhf_kit.engine.scoring import load_models, score, try_out
from rlhf_kit.interfaces import Context, Policy, Reference, RewardFn, Sampler, StageRun
from rlhf_kit.ops.bootstrap import bootstrap_interval
from rlhf_kit.ops.kl import sequence_kl
from rlhf_kit.stagekit.batches import text_blocks
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.stagekit.perplexity import perplexity
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.stagekit.sample import sample
from rlhf_kit.types import Samples, Texts, asked
from rlhf_kit_evaluation.options import BASELINE, EvaluateOptions


@dataclass(frozen=True, eq=False)
class Judged:
    """What is kept of one policy's samples, not the samples; the tensors are [N], prompt-major."""

    texts: list[str]
    gold: Tensor
    reward: Tensor | None
    kl: Tensor | None  # to the baseline; None: it is the baseline
    length: Tensor
    finished: Tensor
    perplexity: float | None = None  # of the held-out text, if there is any

    @classmethod
    def join(cls, parts: Sequence[Judged]) -> Judged:
        """Of several batches of prompts, one after the other."""
        return cls(
            texts=[text for part in parts for text in part.texts],
            gold=torch.cat([part.gold for part in parts]),
            reward=_joined([part.reward for part in parts]),
            kl=_joined([part.kl for part in parts]),
            length=torch.cat([part.length for part in parts]),
            finished=torch.cat([part.finished for part in parts]),
        )


class Evaluate:
    def __init__(self, options: EvaluateOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._left_out = LeftOut()
        self._prompts = PromptSet.to_answer(
            context.build(options.prompts), "test", options, context.tokenizer, self._left_out
        )
        self._sampler: Sampler = context.build(options.sampling.sampler)
        self._gold: RewardFn = context.build(options.gold)
        try_out(self._gold, self._prompts.rows, "gold")
        self._reward: RewardFn | None = (
            None if options.reward is None else context.build(options.reward)
        )
        if self._reward is not None:
            try_out(self._reward, self._prompts.rows)
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
        o = self._options
        self._left_out.tell(run)
        memory = self._context.memory()
        for part in filter(None, (self._gold, self._reward)):
            load_models(part, memory)
        baseline = memory.policy(self._context.artifact(o.baseline), trainable=False)
        run.say(f"sampling {o.samples_per_prompt} x {len(self._prompts)} responses of each policy")
        found = {BASELINE: self._judge(baseline, None, run, BASELINE)}
        for name, ref in o.candidates.items():
            # In memory for no longer than it is judged; only an adapter, which is small, stays.
            policy = memory.policy(self._context.artifact(ref), trainable=False)
            found[name] = self._judge(policy, baseline, run, name)
            del policy
            release_memory()
        rows = self._side_by_side(found)
        write_json(run.folder / "samples.json", rows)
        for row in rows[:: o.samples_per_prompt][: o.side_by_side]:
            run.say(f"prompt: {row['prompt']}")
            for name, text in row["responses"].items():
                run.say(f"  {name} ({row['gold'][name]:+.2f}): {text}")
        return self._summary(found, run) | self._left_out.summary()

    def _judge(
        self, policy: Policy, baseline: Reference | None, run: StageRun, name: str
    ) -> Judged:
        o = self._options
        prompts = self._prompts.all().repeat(o.samples_per_prompt)
        # With a name of their own in the key, the samples of two policies are independent.
        key, endings = run.key("sample", name), Endings(run, f"of {name}")
        drawn = sample(self._sampler, policy, prompts, o.sampling, key, endings=endings)
        parts = [self._judge_samples(policy, baseline, samples) for samples in drawn]
        text = None if self._texts is None else perplexity(policy, self._texts)
        return replace(Judged.join(parts), perplexity=text)

    @torch.no_grad()
    def _judge_samples(
        self, policy: Policy, baseline: Reference | None, samples: Samples
    ) -> Judged:
        gold = score(self._gold, samples, "gold").total
        reward = None if self._reward is None else score(self._reward, samples).total.cpu()
        return Judged(
            texts=samples.responses,
            gold=gold.cpu(),
            reward=reward,
            kl=None if baseline is None else _kl(policy, baseline, samples),
            length=samples.response_mask.sum(1).float().cpu(),
            finished=samples.finished.float().cpu(),
        )

    def _side_by_side(self, found: Mapping[str, Judged]) -> list[dict[str, Any]]:
        """A row per sample: the prompt, then what each policy answers and its gold score."""
        times = self._options.samples_per_prompt
        prompts = [asked(row) for row in self._prompts.rows for _ in range(times)]
        return [
            {
                "prompt": prompt,
                "responses": {name: judged.texts[i] for name, judged in found.items()},
                "gold": {name: judged.gold[i].item() for name, judged in found.items()},
            }
            for i, prompt in enumerate(prompts)
        ]

    def _summary(self, found: Mapping[str, Judged], run: StageRun) -> dict[str, Any]:
        """Each measure by the names of the policies; what compares has no baseline."""
        baseline = found[BASELINE]
        candidates = {name: judged for name, judged in found.items() if name != BASELINE}
        won = {name: wins(j.gold, baseline.gold, self._options) for name, j in candidates.items()}
        summary: dict[str, Any] = {
            "gold_score": {name: _mean(judged.gold) for name, judged in found.items()},
            "win_rate": {name: _mean(shares) for name, shares in won.items()},
            "win_rate_ci": {
                name: list(bootstrap_interval(shares, torch.ones_like(shares), run.generator))
                for name, shares in won.items()
            },
            "kl": {name: _mean(j.kl) for name, j in found.items() if j.kl is not None},
            "response_length": {name: _mean(judged.length) for name, judged in found.items()},
            "finished": {name: _mean(judged.finished) for name, judged in found.items()},
        }
        scores = {name: _mean(j.reward) for name, j in found.items() if j.reward is not None}
        texts = {name: j.perplexity for name, j in found.items() if j.perplexity is not None}
        summary |= {"reward_model_score": scores} if scores else {}
        summary |= {"perplexity": texts} if texts else {}
        return summary


def _kl(policy: Policy, baseline: Reference, samples: Samples) -> Tensor:
    """[B], of whole responses."""
    logprobs = policy.evaluate(samples).logprobs
    reference = baseline.evaluate(samples).logprobs
    return sequence_kl(logprobs, reference, samples.response_mask).cpu()


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _mean(values: Tensor) -> float:
    return values.float().mean().item()


def wins(candidate: Tensor, baseline: Tensor, options: EvaluateOptions) -> Tensor:
    """Per prompt, the share of sample pairs that ``candidate`` wins; a tie counts half. [prompts]

    Paired: sample i of one against sample i of the other, which answer the same prompt.
    """
    gap = candidate - baseline
    won = (gap > options.tie_margin).float() + 0.5 * (gap.abs() <= options.tie_margin).float()
    return won.view(-1, options.samples_per_prompt).mean(1)
