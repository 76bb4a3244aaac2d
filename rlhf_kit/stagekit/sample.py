"""From prompts to samples, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_kit.engine.foreign import first_call, foreign, untouched
from rlhf_kit.errors import PluginError
from rlhf_kit.interfaces import Policy, Sampler
from rlhf_kit.origins import Whose
from rlhf_kit.stage_options import SamplingOptions
from rlhf_kit.stagekit.endings import Endings
from rlhf_kit.types import Prompts, Samples, Sampling


def sampling_of(options: SamplingOptions, key: int) -> Sampling:
    """How a stage samples under ``key`` (see StageRun.key)."""
    return Sampling(options.max_new_tokens, options.temperature, key)


def drawn(sampler: Sampler, policy: Policy, prompts: Prompts, sampling: Sampling) -> Samples:
    """A response to each of ``prompts``, in their order.

    Raises:
        PluginError: the sampler gives something else.
    """
    who = Whose(sampler, f"sampler {type(sampler).__name__}")
    with foreign(who), untouched(prompts, "prompts", who, first_call(sampler)):
        found = sampler(policy, prompts, sampling)
    if not isinstance(found, Samples):
        raise PluginError(f"{who} returned {type(found).__name__}; it should return Samples")
    asked, given = prompts.stream.tolist(), found.prompts.stream.tolist()
    if asked != given or len(found) != len(asked):
        raise PluginError(
            f"{who} was given prompts of streams {asked[:8]} and returned responses to "
            f"{given[:8]}; it should answer all of them, in their order"
        )
    shape = found.response_tokens.shape
    for what, x in (("mask", found.response_mask), ("sampled_logprobs", found.sampled_logprobs)):
        if x is not None and x.shape != shape:
            raise PluginError(f"{who}: {what} is of shape {list(x.shape)}, tokens {list(shape)}")
    if not bool(found.response_mask.any(1).all()):
        raise PluginError(f"{who}: a response has no token; each has one, if only its end")
    return found


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
        samples = drawn(sampler, policy, chunk, sampling)
        if endings is not None:
            endings.see(samples)
        yield samples
