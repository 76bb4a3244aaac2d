"""Stage `evaluate`: any number of policies against one baseline, on held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.checkpoint import write_json
from rlhf_kit.engine.release import release_memory
from rlhf_kit.engine.scoring import load_models, score, summed, try_out
from rlhf_kit.errors import PluginError
from rlhf_kit.interfaces import Context, Memory, Policy, Reference, RewardFn, Sampler, StageRun
from rlhf_kit.ops.bootstrap import bootstrap_interval
from rlhf_kit.ops.kl import sequence_kl
from rlhf_kit.stagekit.batches import text_blocks
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.stagekit.journal import Journal, in_chunks
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.stagekit.perplexity import perplexity
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.stagekit.sample import sample
from rlhf_kit.stagekit.state import stateful
from rlhf_kit.types import Samples, Texts, asked
from rlhf_kit_evaluation.options import BASELINE, EvaluateOptions


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of N samples, of which some may be missing."""

    column: Sequence[float | None]

    @property
    def values(self) -> Tensor:
        """[N] float32, 0 where there is none."""
        return torch.tensor([0.0 if x is None else x for x in self.column])

    @property
    def known(self) -> Tensor:
        """[N] bool."""
        return torch.tensor([x is not None for x in self.column])

    def mean(self) -> float:
        return _mean(self.values[self.known])


@dataclass(frozen=True, eq=False)
class Judged:
    """What is kept of one policy's samples, not the samples; the tensors are [N], prompt-major."""

    texts: list[str]
    gold: Scored
    reward: Scored | None
    kl: Tensor | None  # to the baseline; None: it is the baseline
    length: Tensor
    finished: Tensor
    counts: dict[str, float]  # what the rewards met on the way
    perplexity: float | None = None  # of the held-out text, if there is any

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Judged:
        """Of the rows of a journal, which are as ``Evaluate._row`` has made them."""

        def column(name: str) -> list[Any]:
            return [x for row in rows for x in row[name] or ()]

        gold, reward, kl = column("gold"), column("reward"), column("kl")
        return cls(
            column("texts"),
            Scored(gold),
            Scored(reward) if reward else None,
            torch.tensor(kl) if kl else None,
            torch.tensor(column("length")),
            torch.tensor(column("finished")),
            summed(row["counts"] for row in rows),
            rows[-1]["perplexity"],
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
        run.say(f"sampling {o.samples_per_prompt} x {len(self._prompts)} responses of each policy")
        found = self._judge(run, memory)
        rows = self._side_by_side(found)
        write_json(run.folder / "samples.json", rows)
        for row in rows[:: o.samples_per_prompt][: o.side_by_side]:
            run.say(f"prompt: {row['prompt']}")
            for name, text in row["responses"].items():
                gold = row["gold"][name]
                run.say(f"  {name} ({'no score' if gold is None else f'{gold:+.2f}'}): {text}")
        return self._summary(found, run) | self._left_out.summary()

    def _judge(self, run: StageRun, memory: Memory) -> dict[str, Judged]:
        """Policy by policy, some prompts at a time; what is done is in the checkpoint."""
        o, journal = self._options, Journal()
        refs = {BASELINE: o.baseline, **o.candidates}
        names, each = list(refs), len(self._prompts)
        state = stateful(rows=journal, gold=self._gold, reward=self._reward, sampler=self._sampler)

        def policy_of(name: str) -> Policy:
            return memory.policy(self._context.artifact(refs[name]), trainable=False)

        baseline, name, size = policy_of(BASELINE), BASELINE, o.sampling.batch_size
        policy, endings = baseline, Endings(run, f"of {BASELINE}")
        size = max(1, size // o.samples_per_prompt)
        for chunk in in_chunks(run, len(names) * each, size, state, unit="prompt"):
            for which in range(chunk.start // each, (chunk.stop - 1) // each + 1):
                if names[which] != name:
                    # In memory for no longer than it is judged; only an adapter, which is small,
                    # stays.
                    name = names[which]
                    del policy
                    release_memory()
                    policy, endings = policy_of(name), Endings(run, f"of {name}")
                begin, end = (
                    max(chunk.start - which * each, 0),
                    min(chunk.stop - which * each, each),
                )
                key = run.key("sample", name)  # so that samples of two policies are independent
                prompts = self._prompts.batch(torch.arange(begin, end)).repeat(o.samples_per_prompt)
                drawn = sample(self._sampler, policy, prompts, o.sampling, key, endings=endings)
                rows = [self._row(policy, baseline, samples, name) for samples in drawn]
                if end == each and self._texts is not None:
                    rows[-1]["perplexity"] = perplexity(policy, self._texts)
                journal.add(*rows)
        done = list(journal)
        return {n: Judged.of([row for row in done if row["policy"] == n]) for n in names}

    @torch.no_grad()
    def _row(
        self, policy: Policy, baseline: Reference, samples: Samples, name: str
    ) -> dict[str, Any]:
        """What is kept of ``samples``, as JSON has it: exact, since a float64 holds a float32."""
        reward = None if self._reward is None else score(self._reward, samples)
        gold = score(self._gold, samples, "gold")
        return {
            "policy": name,
            "texts": samples.responses,
            "gold": gold.known_or_none(),
            "reward": None if reward is None else reward.known_or_none(),
            "counts": gold.counted("gold") | ({} if reward is None else reward.counted("reward")),
            "kl": None if policy is baseline else _kl(policy, baseline, samples).tolist(),
            "length": samples.response_mask.sum(1).float().tolist(),
            "finished": samples.finished.float().tolist(),
            "perplexity": None,
        }

    def _side_by_side(self, found: Mapping[str, Judged]) -> list[dict[str, Any]]:
        """A row per sample: the prompt, then what each policy answers and its gold score."""
        times = self._options.samples_per_prompt
        prompts = [asked(row) for row in self._prompts.rows for _ in range(times)]
        gold = {name: judged.gold.column for name, judged in found.items()}
        return [
            {
                "prompt": prompt,
                "responses": {name: judged.texts[i] for name, judged in found.items()},
                "gold": {name: scores[i] for name, scores in gold.items()},
            }
            for i, prompt in enumerate(prompts)
        ]

    def _summary(self, found: Mapping[str, Judged], run: StageRun) -> dict[str, Any]:
        """Each measure by the names of the policies; what compares has no baseline."""
        baseline = found[BASELINE]
        candidates = {name: judged for name, judged in found.items() if name != BASELINE}
        won = {name: wins(j.gold, baseline.gold, self._options) for name, j in candidates.items()}
        summary: dict[str, Any] = {
            "gold_score": {name: judged.gold.mean() for name, judged in found.items()},
            "win_rate": {name: _mean(shares) for name, shares in won.items()},
            "win_rate_ci": {
                name: list(bootstrap_interval(shares, torch.ones_like(shares), run.generator))
                for name, shares in won.items()
            },
            "kl": {name: _mean(j.kl) for name, j in found.items() if j.kl is not None},
            "response_length": {name: _mean(judged.length) for name, judged in found.items()},
            "finished": {name: _mean(judged.finished) for name, judged in found.items()},
        }
        scores = {name: j.reward.mean() for name, j in found.items() if j.reward is not None}
        missing = {name: int((~j.gold.known).sum()) for name, j in found.items()}
        summary |= {"without_gold": missing} if any(missing.values()) else {}
        counts = summed(judged.counts for judged in found.values())
        summary |= {"counts": counts} if counts else {}
        texts = {name: j.perplexity for name, j in found.items() if j.perplexity is not None}
        summary |= {"reward_model_score": scores} if scores else {}
        summary |= {"perplexity": texts} if texts else {}
        return summary


def _kl(policy: Policy, baseline: Reference, samples: Samples) -> Tensor:
    """[B], of whole responses."""
    logprobs = policy.evaluate(samples).logprobs
    reference = baseline.evaluate(samples).logprobs
    return sequence_kl(logprobs, reference, samples.response_mask).cpu()


def _mean(values: Tensor) -> float:
    return values.float().mean().item()


def wins(candidate: Scored, baseline: Scored, options: EvaluateOptions) -> Tensor:
    """Per prompt, the share of sample pairs that ``candidate`` wins; a tie counts half. [prompts]

    Paired: sample i of one against sample i of the other, which answer the same prompt. A pair of
    which one has no score is left out, and so is a prompt that has no other.

    Raises:
        PluginError: there is no pair.
    """
    gap, times = candidate.values - baseline.values, options.samples_per_prompt
    won = (gap > options.tie_margin).float() + 0.5 * (gap.abs() <= options.tie_margin).float()
    known = (candidate.known & baseline.known).view(-1, times)
    pairs = known.sum(1)
    if not bool(pairs.any()):
        raise PluginError("gold: no answer has a score together with the baseline's")
    shares = torch.where(known, won.view(-1, times), 0.0).sum(1) / pairs.clamp(min=1)
    return shares[pairs > 0]
