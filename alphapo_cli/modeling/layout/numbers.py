"""Whether a tensor holds numbers, or a shape alone: what tries a model on a few tokens must know."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers: it is neither on the meta device nor a stand-in of torch's FakeTensorMode."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)
