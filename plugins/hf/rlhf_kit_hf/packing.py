"""Whether the completions of a prompt can, and should, share one forward pass.

Packed rows need a mask that says which token sees which. Not every model and attention
implementation takes one, and some ignore it in silence, so a trial decides.
"""

from __future__ import annotations

from typing import Any

import torch

from rlhf_kit.types import PackedTexts
from rlhf_kit_hf.role import Role

# Largest difference between packed and separate states, relative to the states. SmolLM2-135M
# differs by 1e-6 in float32 and 7e-3 in bfloat16, and by 0.2 where the mask is ignored.
_EXACT, _LOW_PRECISION = 1e-3, 2e-2


@torch.no_grad()
def can_pack(role: Role, device: torch.device) -> bool:
    """Whether packed completions get the states that they would get alone."""
    texts = _probe_texts(role.config.vocab_size).to(device)
    rows, _ = texts.unpacked()
    alone = role.hidden(rows.tokens, rows.mask)[rows.mask]  # [tokens, H]
    try:
        states = role.hidden(texts.tokens, texts.visible(), None, texts.positions)
    except Exception:  # an attention that refuses such a mask may raise anything
        return False
    packed = texts.per_text(states)
    bound = _LOW_PRECISION if alone.dtype in (torch.bfloat16, torch.float16) else _EXACT
    gap = packed[rows.mask].float() - alone.float()
    return bool(gap.norm() <= bound * alone.float().norm())


def _probe_texts(vocabulary: int) -> PackedTexts:
    """Two prompts with three and two completions, of tokens from all over the vocabulary.

    A vocabulary begins with special tokens, on which bfloat16 errs by a tenth.
    """
    lengths = ((5, (3, 2, 4)), (3, (4, 3)))
    ids = iter([i * vocabulary // 25 for i in range(1, 25)])

    def tokens(count: int) -> list[int]:
        return [next(ids) for _ in range(count)]

    rows = [(tokens(prompt), [tokens(n) for n in own]) for prompt, own in lengths]
    return PackedTexts.of([prompt for prompt, _ in rows], [own for _, own in rows], pad=0)


def should_pack(texts: PackedTexts, config: Any) -> bool:
    """Whether one row per prompt is less work than one row per completion, and the same work.

    Packing spares the repeated prompt but makes attention quadratic in all completions together:
    with long completions of short prompts it would cost time and memory. Per token, a decoder
    layer takes about 24 H^2 floating-point operations, and 4 H per token that its row is wide.

    Args:
        texts: a micro-batch.
        config: the text configuration of the model.
    """
    prompts, width = texts.tokens.shape
    reach = _reach(config)
    if reach is not None and width > reach:
        return False  # such a layer counts along the packed row
    lengths = texts.lengths()  # [G, K]
    longest = texts.mask.sum(1) - lengths.sum(1) + lengths.amax(1)
    apart = int((lengths > 0).sum()), int(longest.max())

    def work(rows: int, width: int) -> int:
        return rows * width * (24 * config.hidden_size + 4 * width)

    return work(prompts, width) < work(*apart)


def _reach(config: Any) -> int | None:
    """How far back the shortest-sighted layer looks, in tokens; None where all see everything."""
    names = ["attention_chunk_size", "window_size"]
    if getattr(config, "use_sliding_window", True):
        names.append("sliding_window")
    sizes = [getattr(config, name, None) for name in names]
    return min((size for size in sizes if isinstance(size, int)), default=None)
