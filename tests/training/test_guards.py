"""Numbers that are not finite are called what they are."""

from __future__ import annotations

import math
import re

import pytest
import torch

from alphapo_cli.errors import AlphapoError
from alphapo_cli.training.guards import check_weights


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([math.nan, 1.0], "nan"),
        ([math.inf, 1.0], "inf"),
        ([1.0, -math.inf], "-inf"),
        ([math.inf, math.nan, -math.inf], "nan and inf and -inf"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_not_finite(values: list[float], said: str, dtype: torch.dtype) -> None:
    model = torch.nn.Module()
    model.sound = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    model.broken = torch.nn.Parameter(torch.tensor(values, dtype=dtype))
    with pytest.raises(AlphapoError, match=f"^weight broken is {re.escape(said)} at step 7: lower"):
        check_weights(model, 7)


def test_large_weights_are_finite() -> None:
    model = torch.nn.Module()
    model.large = torch.nn.Parameter(torch.full((2,), 3e38))
    check_weights(model, 7)
