"""Stage `sft`: supervised fine-tuning on the response tokens of demonstrations."""

from __future__ import annotations

import math
from typing import Any

import torch

from rlhf_kit.engine.held_out import held_out_loss
from rlhf_kit.engine.minibatch import Cycle
from rlhf_kit.engine.scoring import load_models, score, summed, try_out
from rlhf_kit.errors import PluginError
from rlhf_kit.interfaces import (
    Context,
    ParameterGroup,
    Policy,
    RewardFn,
    Sampler,
    StageRun,
    Term,
)
from rlhf_kit.stagekit.batches import answered, held_out_blocks, text_blocks
from rlhf_kit.stagekit.best import Best
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.stagekit.left_out import LeftOut
from rlhf_kit.stagekit.perplexity import perplexity
from rlhf_kit.stagekit.prompts import PromptSet
from rlhf_kit.stagekit.sample import sample
from rlhf_kit.stagekit.state import stateful
from rlhf_kit.stagekit.streams import TextStream
from rlhf_kit.types import NllInputs, TextBatch, Texts
from rlhf_kit_instructgpt.options import SFTOptions


class SFT:
    """arXiv:2203.02155, section 3.5, app. C.1 and C.3: the best epoch's checkpoint is kept."""

    def __init__(self, options: SFTOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._left_out = LeftOut()
        self._train, _ = self._demonstrations("train")
        self._validation, prompts = self._demonstrations("validation")
        self._term = Term(context.build(options.loss), lambda texts: texts.targets)
        self._sampler: Sampler = context.build(options.sampling.sampler)
        self._reward: RewardFn | None = None
        if options.select_by is not None:
            self._prompts = PromptSet.chosen(
                prompts.rows,
                context.tokenizer,
                "validation, answered for select_by",
                self._left_out,
                longest=None,
                most=options.select_prompts,
                option="select_prompts",
                room=options.sampling.max_new_tokens,
            )
            self._reward = context.build(options.select_by)
            try_out(self._reward, self._prompts.rows, "select_by")
        self._blocks, self._held_out = self._texts()
        # A batch holds so many demonstrations; the rest of it is running text.
        self._size, self._mixed = options.batch_size, 0
        if self._blocks is not None:
            self._mixed = round(options.batch_size * options.pretraining_fraction)
            self._size = options.batch_size - self._mixed

    def _demonstrations(self, split: str) -> tuple[Texts, PromptSet]:
        o, tokenizer = self._options, self._context.tokenizer
        rows = self._context.build(o.demonstrations).split(split)
        prompts = PromptSet.chosen(
            rows, tokenizer, split, self._left_out, longest=o.max_prompt_tokens
        )
        return answered(prompts, ((r["response"], True) for r in prompts.rows), tokenizer), prompts

    def _texts(self) -> tuple[Texts | None, Texts | None]:
        o = self._options
        if o.pretraining is None:
            return None, None
        source, tokenizer = self._context.build(o.pretraining), self._context.tokenizer
        train, held_out = (
            text_blocks(source.split(name), tokenizer, o.pretraining_length, self._left_out, name)
            for name in ("train", "validation")
        )
        return train, held_out_blocks(held_out, self._left_out)

    def run(self, run: StageRun) -> dict[str, Any]:
        o, engine = self._options, self._context.engine
        self._left_out.tell(run)
        memory = self._context.memory()
        if self._reward is not None:
            load_models(self._reward, memory)
        policy = memory.policy(self._context.artifact(o.start), residual_dropout=o.residual_dropout)
        per_epoch = math.ceil(len(self._train) / self._size)
        total = per_epoch * o.epochs
        group = ParameterGroup(list(policy.parameters()), o.optimizer.learning_rate)
        optimizer = engine.optimizer([group], o.optimizer, total)
        cycle = Cycle(len(self._train), self._size, run.generator, span_passes=False)
        best, endings = Best(policy), Endings(run)
        if not run.resumed:
            cost = self._cost(self.judge(policy, run, endings))
            # Scores are of a few samples: by luck the untrained model could be the best.
            best.offer(cost) if self._reward is None else best.start(cost)
        stream = None
        if self._blocks is not None:
            share = self._mixed / self._size
            stream = TextStream(self._blocks, share, o.micro_batch, run.generator)
        state = stateful(
            policy=policy,
            optimizer=optimizer,
            cycle=cycle,
            best=best,
            loss=self._term.loss,
            pretraining=stream,
            sampler=self._sampler,
            reward=self._reward,
        )
        for step in run.steps(total, state):
            batch = self._train.select(cycle.next())
            rows = list(batch.split(o.micro_batch))
            if stream is not None:
                rows += stream.next(len(batch))
            with engine.step(optimizer) as update:
                update.add(
                    {"sft": self._term},
                    lambda micro: {"sft": self._inputs(policy, micro)},
                    rows,
                )
            metrics, line = dict(update.stats), f"step {step + 1}/{total}"
            line += f"  loss {metrics['sft/loss']:.3f}"
            if (step + 1) % per_epoch == 0:
                found = self.judge(policy, run, endings)
                best.offer(self._cost(found))
                metrics |= {f"validation/{key}": value for key, value in found.items()}
                shown = {key: value for key, value in found.items() if "/" not in key}
                line += "".join(f"  validation {key} {value:.3f}" for key, value in shown.items())
            run.end_step(step, metrics, line)
        best.restore()
        policy.save(run.folder)
        sign = -1.0 if self._reward is not None else 1.0
        name = "validation_score" if self._reward is not None else "validation_loss"
        found = {"start": sign * best.first, "best": sign * best.value}
        return {name: found, **self._left_out.summary()}

    def _cost(self, found: dict[str, float]) -> float:
        """What the kept checkpoint has least of."""
        return found["loss"] if self._reward is None else -found["score"]

    @staticmethod
    def _inputs(policy: Policy, texts: TextBatch) -> NllInputs:
        logprobs = policy.next_token_logprobs(texts)
        return NllInputs(logprobs, texts.predicted.to(logprobs.device))

    @torch.no_grad()
    def judge(self, policy: Policy, run: StageRun, endings: Endings) -> dict[str, float]:
        """``loss`` on the validation split, divided once, as in training; with `select_by` the

        mean ``score`` of samples, and what the reward counts; with a mix the ``perplexity`` on
        held-out running text.
        """
        batches = list(self._validation.split(self._options.micro_batch))
        judged = held_out_loss(self._term, batches, lambda micro: self._inputs(policy, micro))
        found = {"loss": judged["loss"]}
        if self._reward is not None:
            # The same draws for every epoch, so that they differ by their weights alone.
            answers = sample(
                self._sampler,
                policy,
                self._prompts.all(),
                self._options.sampling,
                run.key("select_by"),
                endings=endings,
            )
            scores = [score(self._reward, each, "select_by") for each in answers]
            known = sum(int(each.known.sum()) for each in scores)
            if not known:
                raise PluginError("select_by: no sample has a score")
            found["score"] = sum(each.total.sum().item() for each in scores) / known
            found |= summed(each.counted("select_by") for each in scores)
        if self._held_out is not None:
            found["perplexity"] = perplexity(policy, self._held_out)
        return found
