"""Random numbers by counter, against the values that Philox's authors publish with their code (Random123, kat_vectors)."""

from __future__ import annotations

import math

import pytest
import torch

from alphapo_cli.objective.counter_rng import philox, uniform

ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN, ids=["zeros", "ones", "digits of pi"])
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    a, b, c, d = (torch.tensor([word, word]) for word in counter)
    assert [word.tolist() for word in philox((a, b, c, d), key)] == [[word, word] for word in expected]


def test_numbers_are_uniform_and_independent_along_every_word() -> None:
    n = 1 << 16
    words = torch.arange(n)
    base = uniform((7, 0), words)
    others = [uniform((8, 0), words), uniform((7, 1), words), uniform((7, 0), words, 1), uniform((7, 0), words + 1),
              uniform((7, 0), 0, words), uniform((7, 0), 0, 0, words), uniform((7, 0), 0, 0, 0, words)]  # fmt: skip
    for numbers in (base, *others):
        assert numbers.min() > 0
        assert numbers.max() < 1
        # Kolmogorov's statistic is above 1.95/sqrt(n) once in a thousand; the numbers are always the same ones.
        ranks = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        assert (numbers.sort().values - ranks).abs().max() < 1.95 / math.sqrt(n)
    for numbers in others:
        correlation = torch.corrcoef(torch.stack([base, numbers]))[0, 1]
        assert correlation.abs() < 4 / math.sqrt(n)  # four standard errors


def test_a_number_does_not_depend_on_what_is_drawn_beside_it() -> None:
    index, step = torch.tensor([9, 2, 2**32 - 1, 5]), 4
    together = uniform((2**32 - 1, 0), index, step)
    alone = [uniform((2**32 - 1, 0), index[i : i + 1], step).item() for i in range(4)]
    assert together.tolist() == alone
    assert len(set(alone)) == 4
