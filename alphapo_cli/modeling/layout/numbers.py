"""Whether a tensor holds numbers, or a shape alone: what tries a model on a few tokens must know."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


class StandIns(FakeTensorMode):
    """A context in which tensors have shapes and no numbers; they lie on the CPU and stand for those of a device."""

    def __init__(self, device: str = "cpu") -> None:
        """Stand for tensors of a type of device, "cpu" or "cuda"."""
        super().__init__(allow_non_fake_inputs=True)
        self.device = device


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers: it is neither on the meta device nor a stand-in of torch's FakeTensorMode."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def device_type(tensor: Tensor) -> str:
    """The type of a tensor's device; of a stand-in that of the device which it stands for."""
    mode = getattr(tensor, "fake_mode", None)
    return mode.device if isinstance(mode, StandIns) else tensor.device.type
