"""From prompts to samples, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlhf_kit.engine.foreign import first_call, foreign, in_words, shape_of, untouched
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
    _refuse_unlike(found, who)
    asked, given = prompts.stream.tolist(), found.prompts.stream.tolist()
    if asked != given or len(found) != len(asked):
        raise PluginError(
            f"{who} was given prompts of streams {asked[:8]} and returned responses to "
            f"{given[:8]}; it should answer all of them, in their order"
        )
    if not bool(found.response_mask.any(1).all()):
        raise PluginError(f"{who}: a response has no token; each has one, if only its end")
    return found


def _refuse_unlike(found: Samples, who: Whose) -> None:
    """Refuse samples whose tensors are not of one shape, or hold something else than they should.

    Raises:
        PluginError: see above.
    """
    tokens, rows = found.response_tokens, len(found.prompts)
    if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise PluginError(f"{who}: response_tokens {shape_of(tokens)}; should be [B, R] of int64")
    parts: list[tuple[str, Any, Any, list[int]]] = [
        ("response_mask", found.response_mask, torch.bool, list(tokens.shape)),
        ("finished", found.finished, torch.bool, [rows]),
    ]
    drawn_with = found.sampled_logprobs
    if drawn_with is not None:
        kind = drawn_with.dtype if isinstance(drawn_with, Tensor) else torch.float32
        kind = kind if kind.is_floating_point else torch.float32
        parts.append(("sampled_logprobs", drawn_with, kind, list(tokens.shape)))
    for what, x, dtype, shape in parts:
        if not isinstance(x, Tensor) or x.dtype != dtype or list(x.shape) != shape:
            has = f" of {x.dtype}" if isinstance(x, Tensor) else ""
            raise PluginError(
                f"{who}: {what} is {shape_of(x)}{has}; it should be {shape} of {dtype}"
            )
    if not isinstance(found.temperature, int | float) or not found.temperature > 0:
        what = in_words(found.temperature)
        raise PluginError(f"{who}: temperature is {what}; it should be the one it was given")


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
