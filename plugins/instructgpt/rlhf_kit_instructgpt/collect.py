"""Stage `collect`: sample K completions per prompt and have a labeler rank them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_kit.engine.checkpoint import write_atomically
from rlhf_kit.engine.scoring import load_models, ranked, try_out_labeler
from rlhf_kit.errors import DataError, PluginError
from rlhf_kit.interfaces import Context, Labeler, Sampler, StageRun, Tokenizer
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.stagekit.journal import Journal, in_chunks
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.stagekit.sample import sample
from rlhf_kit.stagekit.state import stateful
from rlhf_kit.types import Row, Samples
from rlhf_kit_instructgpt.options import CollectOptions


class Collect:
    """Writes ``comparisons.jsonl``: prompt, completions, ranks, scores, split."""

    def __init__(self, options: CollectOptions, context: Context) -> None:
        self._options, self._context = options, context
        source = context.build(options.prompts)
        self._left_out = LeftOut()
        wanted = {"train": options.train_prompts, "validation": options.validation_prompts}
        chosen = {
            split: PromptSet.to_answer(
                source,
                split,
                options,
                context.tokenizer,
                self._left_out,
                most=most,
                option=f"{split}_prompts",
            )
            for split, most in wanted.items()
        }
        self._prompts = PromptSet.join(list(chosen.values()))
        self._splits = [split for split, prompts in chosen.items() for _ in prompts.rows]
        self._sampler: Sampler = context.build(options.sampling.sampler)
        self._labeler: Labeler = context.build(options.labeler)
        try_out_labeler(self._labeler, self._prompts.rows)

    def run(self, run: StageRun) -> dict[str, Any]:
        o = self._options
        self._left_out.tell(run)
        memory = self._context.memory()
        load_models(self._labeler, memory)
        policy = memory.policy(self._context.artifact(o.start), trainable=False)
        size = max(1, o.sampling.batch_size // o.completions)
        done, endings, key = Journal(), Endings(run), run.key("sample")
        state = stateful(rows=done, labeler=self._labeler, sampler=self._sampler)
        for chunk in in_chunks(run, len(self._prompts), size, state, unit="prompt"):
            prompts = self._prompts.batch(torch.tensor(chunk)).repeat(o.completions)
            found = sample(self._sampler, policy, prompts, o.sampling, key, endings=endings)
            samples = Samples.join(list(found))
            ranks, scores, counts = ranked(self._labeler, samples)
            splits = [self._splits[i] for i in chunk]
            usable = [
                rank is not None and _reads_back(self._context.tokenizer, text, bool(finished))
                for rank, text, finished in zip(
                    ranks, samples.responses, samples.finished, strict=True
                )
            ]
            done.add(*comparisons(samples, ranks, scores, splits, usable))
            length = samples.response_mask.sum(1).float().mean().item()
            metrics = {
                "response_length": length,
                "finished": samples.finished.float().mean().item(),
                **{f"labeler/{name}": float(count) for name, count in counts.items()},
            }
            line = (
                f"prompt {chunk.stop}/{len(self._prompts)}  {len(done)} kept  length {length:.1f}"
            )
            run.end_step(chunk.stop - 1, metrics, line)
        if not done.lines:
            raise DataError(
                f"none of {len(self._prompts)} prompts got two completions that say something and "
                "can be read again: there is nothing to compare; look at sampling, and at the "
                "policy that samples"
            )
        text = "\n".join(done.lines) + "\n"
        write_atomically(run.folder / "comparisons.jsonl", lambda file: file.write(text.encode()))
        used = LeftOut()
        asked, kept = len(self._prompts), sum(len(row["completions"]) for row in done)
        why = "fewer than two completions that say something"
        used.note(asked - len(done), asked, "prompts", why)
        total = asked * o.completions
        why = "empty, ending too early when read again, not judged, or of a prompt that is left out"
        used.note(total - kept, total, "completions", why)
        used.tell(run)
        left_out = self._left_out | used
        return {"prompts": len(done), "completions": o.completions, **left_out.summary()}


def _reads_back(tokenizer: Tokenizer, text: str, finished: bool) -> bool:
    """Whether a text that was sampled can be a response: cut again, its pieces may be others."""
    try:
        tokenizer.response(text, finished=finished)
    except DataError:
        return False
    return bool(text)


def comparisons(
    samples: Samples,
    ranks: Sequence[int | None],
    scores: Sequence[float | None] | None,
    splits: Sequence[str],
    usable: Sequence[bool],
) -> list[Row]:
    """One row per prompt, with its ``usable`` completions; prompts with one or none have no row."""
    found: list[Row] = []
    members: dict[int, list[int]] = {}
    for i, group in enumerate(samples.group.tolist()):
        if usable[i]:
            members.setdefault(group, []).append(i)
    for group, rows in members.items():
        if len(rows) < 2:
            continue
        # What a prompt's row calls so too would be read as the comparison's own.
        own = ("split", "completions", "ranks", "finished", "scores")
        row = {k: v for k, v in samples.rows[rows[0]].items() if k not in own}
        row |= {
            "split": splits[group],
            "completions": [samples.responses[i] for i in rows],
            "ranks": [ranks[i] for i in rows],
            "finished": [bool(samples.finished[i]) for i in rows],
        }
        if scores is not None:
            judged = [score for i in rows if (score := scores[i]) is not None]
            if len(judged) < len(rows):
                raise PluginError("labeler: a rank without a score; give both, or None for both")
            row["scores"] = [round(float(score), 6) for score in judged]
        found.append(row)
    return found
