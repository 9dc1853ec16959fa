"""The bytes of the tensors that are alive while code runs, and their highest sum: torch's memory without the machine's.

Under torch's FakeTensorMode tensors have shapes and no numbers, so that a pass of a model of any size is followed
operation by operation in seconds, by the very code that trains, and no memory is taken.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations within the context make, each once, until it is freed."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """Start at 0.

        Args:
            known: tensors that are there already; they and their views are not counted.

        Attributes:
            live: bytes that are alive now.
            course: the same after each storage that was made.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.course: list[int] = []
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._sizes: dict[int, int] = {}

    @property
    def peak(self) -> int:
        """The most bytes that were alive at a time."""
        return max(self.course, default=0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it has made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return made

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._known:
            return
        self._sizes[key] = storage.nbytes()
        self.live += self._sizes[key]
        self.course.append(self.live)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)
