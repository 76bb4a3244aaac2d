"""Training in whole passes over the data: what offline stages have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from rlhf_kit.engine.minibatch import Cycle
from rlhf_kit.interfaces import Engine, ParameterGroup, StageRun, Term, Trainable
from rlhf_kit.ops.sequence import by_length
from rlhf_kit.stage_options import FitOptions
from rlhf_kit.stagekit.state import stateful


def fit(
    run: StageRun,
    engine: Engine,
    model: Trainable,
    options: FitOptions,
    lengths: Tensor,
    terms: Mapping[str, Term],
    inputs: Callable[[Tensor], Mapping[str, Any]],
    judge: Callable[[], Mapping[str, float]],
    headline: str,
) -> dict[str, float]:
    """Passes over the rows in batches, each row once in a pass; held-out figures after each pass.

    Args:
        run: counts the steps and saves the place.
        engine: takes the steps.
        model: what is trained and saved in checkpoints.
        options: passes, batches and optimizer.
        lengths: [N] int64 of all rows, in tokens: neighbours in length share a forward pass.
        terms: the losses by name; what they count is told by the rows [B] of a micro-batch.
        inputs: the rows of a micro-batch -> the inputs of each term.
        judge: the held-out figures.
        headline: which of them is shown.

    Returns:
        The held-out figures at the end.
    """
    each = math.ceil(len(lengths) / options.batch_size)
    total = each * options.epochs
    group = ParameterGroup(list(model.parameters()), options.optimizer.learning_rate)
    optimizer = engine.optimizer([group], options.optimizer, total)
    cycle = Cycle(len(lengths), options.batch_size, run.generator, span_passes=False)
    held_out: dict[str, float] = {}
    losses = stateful(**{f"loss {name}": term.loss for name, term in terms.items()})
    state = {"model": model, "optimizer": optimizer, "cycle": cycle, **losses}
    for step in run.steps(total, state):
        batch = cycle.next()
        chunks = [batch[rows] for rows in by_length(lengths[batch], options.micro_batch)]
        with engine.step(optimizer) as update:
            update.add(terms, inputs, chunks)
        metrics, line = dict(update.stats), f"step {step + 1}/{total}"
        line += "".join(f"  {name} loss {metrics[f'{name}/loss']:.3f}" for name in terms)
        if (step + 1) % each == 0:
            held_out = dict(judge())
            metrics |= {f"validation/{name}": value for name, value in held_out.items()}
            line += f"  held-out {headline} {held_out[headline]:.3f}"
        run.end_step(step, metrics, line)
    # Of a run that went on after its last step they are not known yet.
    return held_out or dict(judge())
