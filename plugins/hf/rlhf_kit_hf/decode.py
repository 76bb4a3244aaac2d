"""Autoregressive sampling with a key-value cache, capturing the trunk on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import DynamicCache

from rlhf_kit.ops.logprobs import sample_tokens
from rlhf_kit.ops.sequence import is_any, position_ids, response_mask
from rlhf_kit.types import Activations, Prompts, Samples, Sampling
from rlhf_kit_hf.role import Role


@torch.no_grad()
def decode(
    role: Role,
    prompts: Prompts,
    sampling: Sampling,
    *,
    ends: Sequence[int],
    pad: int,
    to_text: Callable[[list[int]], str],
    max_length: int,
) -> Samples:
    """Sample one response per prompt from softmax(logits / temperature), nothing cut off.

    A response is over with the first of ``ends`` in it.
    """
    batch, width = prompts.tokens.shape
    total = width + sampling.max_new_tokens
    if total > max_length:
        raise ValueError(
            f"prompt of {width} tokens and {sampling.max_new_tokens} new ones exceed the context "
            f"of {max_length}"
        )
    device = prompts.tokens.device
    mask = torch.ones((batch, total), dtype=torch.bool, device=device)
    mask[:, :width] = prompts.mask
    positions = position_ids(mask)
    tokens = torch.full((batch, total), pad, dtype=torch.long, device=device)
    tokens[:, :width] = prompts.tokens
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    with role.decoding() as model, _captured(role.boundary) as trunk:
        cache, logprobs = DynamicCache(config=model.config), []
        begin, end = 0, width  # the columns fed next
        while end < total and not bool(done.all()):
            states = _step(model, tokens, mask, positions, begin, end, cache)
            chosen, chances = sample_tokens(
                role.head(states), sampling.temperature, sampling.generator
            )
            logprobs.append(chances)
            tokens[:, end] = torch.where(done, pad, chosen)
            done |= is_any(chosen, ends)
            begin, end = end, end + 1
        if role.boundary is not None:
            # The last token chose nothing, but a reward model reads the state it leads to.
            _step(model, tokens, mask, positions, begin, end, cache)
    responses = tokens[:, width:end]
    valid = response_mask(responses, ends)
    kept = None
    if role.origin is not None:
        kept = Activations.of_columns(trunk, torch.cat([prompts.mask, valid], 1), role.origin)
    return Samples(
        prompts,
        torch.where(valid, responses, pad),
        valid,
        finished=(is_any(responses, ends) & valid).any(1),
        temperature=sampling.temperature,
        decode=to_text,
        trunk=kept,
        sampled_logprobs=torch.stack(logprobs, 1) if logprobs else None,
    )


def _step(
    model: Any, tokens: Tensor, mask: Tensor, positions: Tensor, begin: int, end: int, cache: Any
) -> Tensor:
    """Feed columns begin..end; return the last hidden state [B, H]."""
    output = model.base_model(
        input_ids=tokens[:, begin:end],
        attention_mask=mask[:, :end].long(),
        position_ids=positions[:, begin:end],
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state[:, -1]


@contextmanager
def _captured(boundary: Module | None) -> Iterator[list[Tensor]]:
    """Collect what flows into ``boundary``, call after call."""
    seen: list[Tensor] = []
    if boundary is None:
        yield seen
        return

    def hook(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = boundary.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
