"""Draws that are functions of a key, a row and a place."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_kit.ops.draws import philox, uniforms

# Random123, kat_vectors, philox 4x32 10: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def plain(counter: list[int], key: list[int]) -> list[int]:
    """The published loop, on python's integers."""
    for r in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        k = [(key[0] + r * 0x9E3779B9) % 2**32, (key[1] + r * 0xBB67AE85) % 2**32]
        counter = [
            (b >> 32) ^ counter[1] ^ k[0],
            b % 2**32,
            (a >> 32) ^ counter[3] ^ k[1],
            a % 2**32,
        ]
    return counter


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_published_answers(counter: str, key: str, result: str) -> None:
    assert plain(words(counter), words(key)) == words(result)
    c0, c1, c2, c3 = (torch.tensor([word]) for word in words(counter))
    k0, k1 = words(key)
    assert [int(word) for word in philox((c0, c1, c2, c3), (k0, k1))] == words(result)


def test_against_the_plain_loop() -> None:
    """Rows and keys of more than 32 bits; a number of draws that fills no block."""
    key, rows = 0x7ABC_DEF0_1234_5678, [0, 1, 2**32 + 5, 2**62 + 77]
    found = uniforms(key, torch.tensor(rows), 11)
    assert found.shape == (4, 11)
    assert found.dtype == torch.float32
    for draws, row in zip(found.tolist(), rows, strict=True):
        wanted = []
        for block in range(3):
            counter = [block, 0, row % 2**32, row >> 32]
            wanted += [(w >> 8) / 2**24 for w in plain(counter, [key % 2**32, key >> 32])]
        assert draws == wanted[:11]


def test_a_draw_does_not_depend_on_the_others() -> None:
    rows = torch.tensor([5, 9, 0, 7])
    whole = uniforms(3, rows, 40)
    assert torch.equal(uniforms(3, rows[[2]], 40)[0], whole[2])
    assert torch.equal(uniforms(3, rows.flip(0), 7), whole.flip(0)[:, :7])
    assert not torch.equal(uniforms(4, rows, 40), whole)
    assert uniforms(3, rows, 0).shape == (4, 0)
    assert uniforms(3, rows[:0], 3).shape == (0, 3)


def chi_square(counts: torch.Tensor) -> float:
    """Standard deviations off the mean of Pearson's statistic over equally likely cells."""
    expected = counts.sum() / counts.numel()
    freedom = counts.numel() - 1
    statistic = ((counts - expected).square() / expected).sum().item()
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("key", [0, 1, 2**62 + 1])
def test_uniform_and_independent_of_neighbours(key: int) -> None:
    draws = uniforms(key, torch.arange(1024), 1024)
    assert 0 <= draws.min() < 1e-5
    assert 1 - 1e-5 < draws.max() < 1
    cells = (draws * 32).long()
    assert abs(chi_square(torch.bincount(cells.flatten()).double())) < 4
    others = {
        "place": (cells[:, :-1], cells[:, 1:]),
        "block": (cells[:, :-4], cells[:, 4:]),
        "row": (cells[:-1], cells[1:]),
        "key": (cells, (uniforms(key + 1, torch.arange(1024), 1024) * 32).long()),
    }
    for name, (a, b) in others.items():
        pairs = torch.bincount((a * 32 + b).flatten(), minlength=1024)
        assert abs(chi_square(pairs.double())) < 4, name
    # The test can tell: pairs of a draw with itself fall into 32 of the 1024 cells.
    assert chi_square(torch.bincount((cells * 33).flatten(), minlength=1024).double()) > 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_any_device() -> None:
    rows = torch.arange(100) * 2**33
    assert torch.equal(uniforms(2**61 + 5, rows.cuda(), 50).cpu(), uniforms(2**61 + 5, rows, 50))
