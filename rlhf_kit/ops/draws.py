"""Random numbers that are looked up rather than drawn in turn: the same wherever they are needed.

A generator with a state gives numbers by who asks first, so that text would change with the batch
size, the order of rows and the number of processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 2**32 - 1
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

    Args:
        counter: four tensors of one shape, int64, of 32-bit words.
        key: two 32-bit words.

    Returns:
        Four tensors of that shape, int64, of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _product(_MULTIPLIERS[0], c0)
        high1, low1 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _product(factor: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product of 32-bit words."""
    # It wraps modulo 2^64, which keeps every bit; the mask drops the sign that the shift copies.
    product = factor * words
    return (product >> 32) & _WORD, product & _WORD


def uniforms(key: int, rows: Tensor, count: int) -> Tensor:
    """Uniform draws in [0, 1), the place p of row i a function of ``key``, ``rows[i]`` and p only.

    Args:
        key: 64 bits that name the purpose.
        rows: [B] int64, that name the streams.
        count: draws of each stream; more of them begin with the same ones.

    Returns:
        [B, count] float32, multiples of 2^-24, on the device of ``rows``.
    """
    blocks = torch.arange(-(-count // 4), device=rows.device)  # one gives four draws
    names = rows[:, None].expand(-1, len(blocks))
    block = blocks[None].expand(len(rows), -1)
    counter = (block & _WORD, block >> 32, names & _WORD, (names >> 32) & _WORD)
    words = torch.stack(philox(counter, (key & _WORD, (key >> 32) & _WORD)), -1)  # [B, blocks, 4]
    return (words.flatten(1)[:, :count] >> 8).float() * 2.0**-24
