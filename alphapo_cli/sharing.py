"""What is the same in several runs of one process is made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Keep = Callable[
    [str, Callable[[], Any]], Any
]  # (key, make): what was made under the key before, else what `make` makes


def alone(key: str, make: Callable[[], Any]) -> Any:
    """A `Keep` that keeps nothing: there is no other run."""
    return make()
