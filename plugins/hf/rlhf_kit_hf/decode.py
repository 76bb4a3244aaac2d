"""Autoregressive sampling with a key-value cache, capturing the trunk on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import DynamicCache

from rlhf_kit.interfaces import Tokenizer
from rlhf_kit.ops.draws import uniforms
from rlhf_kit.ops.logprobs import sample_tokens
from rlhf_kit.ops.sequence import is_any, position_ids, response_mask
from rlhf_kit.types import Activations, Prompts, Samples, Sampling
from rlhf_kit_hf.role import Role


@torch.no_grad()
def decode(role: Role, prompts: Prompts, sampling: Sampling, tokenizer: Tokenizer) -> Samples:
    """Sample one response per prompt from softmax(logits / temperature), nothing cut off.

    A response is over with the first of the tokenizer's end tokens in it. Once half of the rows
    are over, the others go on without them.
    """
    batch, width = prompts.tokens.shape
    total, ends, pad = width + sampling.max_new_tokens, tokenizer.end_ids, tokenizer.pad_id
    if total > tokenizer.max_length:
        raise ValueError(
            f"prompt of {width} tokens and {sampling.max_new_tokens} new ones exceed the context "
            f"of {tokenizer.max_length}"
        )
    device = prompts.tokens.device
    mask = torch.ones((batch, total), dtype=torch.bool, device=device)
    mask[:, :width] = prompts.mask
    positions = position_ids(mask)
    tokens = torch.full((batch, total), pad, dtype=torch.long, device=device)
    tokens[:, :width] = prompts.tokens
    draws = uniforms(sampling.key, prompts.stream, sampling.max_new_tokens)  # [B, R]
    logprobs = torch.zeros_like(draws)
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    rows = torch.arange(batch, device=device)  # those that are still fed, [b]
    with role.decoding() as model, _captured(role.boundary) as trunk:
        cache, fed = DynamicCache(config=model.config), []
        begin, end = 0, width  # the columns fed next
        while end < total and not bool(done.all()):
            states = _step(model, tokens, mask, positions, rows, begin, end, cache)
            fed.append(rows)
            over = done[rows]
            chosen, chances = sample_tokens(
                role.head(states), sampling.temperature, draws[rows, end - width]
            )
            logprobs[rows, end - width] = chances
            tokens[rows, end] = torch.where(over, pad, chosen)
            done[rows] = over | is_any(chosen, ends)
            rows = _remaining(rows, over, cache)
            begin, end = end, end + 1
        if role.boundary is not None:
            # The last token chose nothing, but a reward model reads the state it leads to.
            _step(model, tokens, mask, positions, rows, begin, end, cache)
            fed.append(rows)
    responses = tokens[:, width:end]
    valid = response_mask(responses, ends)
    kept = None
    if role.origin is not None:
        everything = torch.cat([prompts.mask, valid], 1)
        kept = Activations.of_columns(trunk, everything, fed, role.origin)
    return Samples(
        prompts,
        torch.where(valid, responses, pad),
        valid,
        finished=(is_any(responses, ends) & valid).any(1),
        temperature=sampling.temperature,
        decode=tokenizer.decode,
        trunk=kept,
        sampled_logprobs=logprobs[:, : end - width],
    )


def _step(
    model: Any,
    tokens: Tensor,
    mask: Tensor,
    positions: Tensor,
    rows: Tensor,
    begin: int,
    end: int,
    cache: Any,
) -> Tensor:
    """Feed columns begin..end of ``rows``; return their last hidden states [b, H]."""
    output = model.base_model(
        input_ids=tokens[rows, begin:end],
        attention_mask=mask[rows, :end].long(),
        position_ids=positions[rows, begin:end],
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state[:, -1]


def _remaining(rows: Tensor, over: Tensor, cache: Any) -> Tensor:
    """Those of ``rows`` [b] that go on, in the cache too.

    Args:
        rows: fed together.
        over: [b] bool, ended before this step: their end has been fed too, for the trunk's sake.
        cache: loses the others, once they are half of it. To select costs a copy of what is left.
    """
    if 2 * int(over.sum()) < len(rows):
        return rows
    going = (~over).nonzero().flatten()
    cache.reorder_cache(going)  # batch_select_indices would leave out recurrent states
    return rows[going]


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
