"""Random numbers that are a function of a key and a counter, without a generator's state.

Philox4x32-10 (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3, section 3.3): ten rounds of a keyed
bijection of four 32-bit words. A draw does not depend on what was drawn before it, so it is the same in a resumed run
and however the work is split. torch's own generators count their draws, and one generator per pair would be slow.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and sqrt(3) - 1
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10.

    Args:
        counter: four words of one shape, int64 in [0, 2^32).
        key: two words, in [0, 2^32).

    Returns:
        Four random words of the counter's shape, int64 in [0, 2^32).
    """
    a, b, c, d = counter
    k, l = key  # noqa: E741
    for _ in range(_ROUNDS):
        # int64 wraps modulo 2^64; the shift drags the sign along, which the mask takes off again.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (second >> 32 & _WORD) ^ b ^ k, second & _WORD
        c, d = (first >> 32 & _WORD) ^ d ^ l, first & _WORD
        k, l = k + _KEY_STEPS[0] & _WORD, l + _KEY_STEPS[1] & _WORD  # noqa: E741
    return a, b, c, d


def uniform(key: tuple[int, int], *counter: Tensor | int) -> Tensor:
    """Uniform random numbers of 52 bits.

    Args:
        key: two words, in [0, 2^32).
        counter: up to four words in [0, 2^32), integers that broadcast against each other; at least one is a tensor.

    Returns:
        Numbers in the open interval (0, 1), float64 of the broadcast shape.
    """
    device = next(word.device for word in counter if isinstance(word, Tensor))
    words = [torch.as_tensor(word, device=device).long() for word in (*counter, *[0] * (4 - len(counter)))]
    a, b, c, d = torch.broadcast_tensors(*words)
    high, low, *_ = philox((a, b, c, d), key)
    return ((high << 20 | low >> 12) + 0.5) * 2.0**-52
