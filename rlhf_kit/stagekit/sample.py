"""From prompts to samples, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_kit.interfaces import Policy, Sampler
from rlhf_kit.stage_options import SamplingOptions
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.types import Prompts, Samples, Sampling


def sampling_of(options: SamplingOptions, key: int) -> Sampling:
    """How a stage samples under ``key`` (see StageRun.key)."""
    return Sampling(options.max_new_tokens, options.temperature, key)


def sample(
    sampler: Sampler,
    policy: Policy,
    prompts: Prompts,
    options: SamplingOptions,
    key: int,
    *,
    endings: Endings | None = None,
) -> Iterator[Samples]:
    """One response per row of ``prompts``, in chunks of at most ``options.batch_size`` rows.

    Args:
        sampler: draws them.
        policy: drawn from; an earlier chunk is to be done with before it changes.
        prompts: in their order; only a group larger than a chunk is cut.
        options: of the stage.
        key: of ``StageRun.key``. Together with a row's stream it decides what is drawn, whatever
            the chunks.
        endings: is shown every chunk.
    """
    sampling = sampling_of(options, key)
    for chunk in prompts.split(options.batch_size):
        samples = sampler(policy, chunk, sampling)
        if endings is not None:
            endings.see(samples)
        yield samples
