"""Stage `collect`: sample K completions per prompt and have a labeler rank them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rlhf_kit.engine.checkpoint import write_atomically
from rlhf_kit.engine.scoring import load_models, probe_labeler
from rlhf_kit.interfaces import Context, Labeler, StageRun, Stateful
from rlhf_kit.types import Samples
from rlhf_kit.types.samples import Row
from rlhf_kit_instructgpt.batches import check_prompts, prompt_batch, sampling_of, short_prompts
from rlhf_kit_instructgpt.endings import Endings
from rlhf_kit_instructgpt.options import CollectOptions


class Rows:
    """The comparisons written so far, as part of a checkpoint."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.lines}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lines = list(state["lines"])


class Collect:
    """Writes ``comparisons.jsonl``: prompt, completions, ranks, scores, split."""

    def __init__(self, options: CollectOptions, context: Context) -> None:
        self._options, self._context = options, context
        source = context.build(options.prompts)
        wanted = {"train": options.train_prompts, "validation": options.validation_prompts}
        longest, tokenizer = options.max_prompt_tokens, context.tokenizer
        self._rows = [
            (row, split)
            for split, most in wanted.items()
            for row in short_prompts(source.split(split), tokenizer, longest)[:most]
        ]
        room = options.sampling.max_new_tokens
        check_prompts((row for row, _ in self._rows), context.tokenizer, room)
        self._labeler: Labeler = context.build(options.labeler)
        probe_labeler(self._labeler, [row for row, _ in self._rows])

    def run(self, run: StageRun) -> dict[str, Any]:
        o = self._options
        memory = self._context.memory()
        load_models(self._labeler, memory)
        policy = memory.policy(self._context.artifact(o.start), trainable=False)
        sampling = sampling_of(o.sampling, run.generator)
        size = max(1, o.sampling.batch_size // o.completions)
        chunks = [self._rows[i : i + size] for i in range(0, len(self._rows), size)]
        done, endings = Rows(), Endings(run)
        state: dict[str, Stateful] = {"rows": done}
        if isinstance(self._labeler, Stateful):
            state["labeler"] = self._labeler
        for step in run.steps(len(chunks), state, unit="batch"):
            rows = [row for row, _ in chunks[step]]
            prompts = prompt_batch(rows, self._context.tokenizer).repeat(o.completions)
            samples = policy.generate(prompts, sampling)
            endings.see(samples)
            ranks, scores = self._labeler(samples)
            found = comparisons(samples, ranks, scores, [split for _, split in chunks[step]])
            done.lines += [json.dumps(row, ensure_ascii=False) for row in found]
            length = samples.response_mask.sum(1).float().mean().item()
            metrics = {
                "response_length": length,
                "finished": samples.finished.float().mean().item(),
            }
            line = f"batch {step + 1}/{len(chunks)}  {len(done.lines)} prompts  length {length:.1f}"
            run.end_step(step, metrics, line)
        text = "\n".join(done.lines) + "\n"
        write_atomically(run.folder / "comparisons.jsonl", lambda file: file.write(text.encode()))
        return {"prompts": len(done.lines), "completions": o.completions}


def comparisons(
    samples: Samples,
    ranks: Sequence[int],
    scores: Sequence[float] | None,
    splits: Sequence[str],
) -> list[Row]:
    """One row per prompt. Empty completions are left out, and prompts with fewer than two left."""
    found: list[Row] = []
    members: dict[int, list[int]] = {}
    for i, group in enumerate(samples.group.tolist()):
        if samples.responses[i]:
            members.setdefault(group, []).append(i)
    for group, rows in members.items():
        if len(rows) < 2:
            continue
        row = {k: v for k, v in samples.rows[rows[0]].items() if k != "split"}
        row |= {
            "split": splits[group],
            "completions": [samples.responses[i] for i in rows],
            "ranks": [ranks[i] for i in rows],
            "finished": [bool(samples.finished[i]) for i in rows],
        }
        if scores is not None:
            row["scores"] = [round(float(scores[i]), 6) for i in rows]
        found.append(row)
    return found
