"""Arrays as .npy files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np


def read_npy(file: Path) -> np.ndarray | None:
    """The array in `file`; None where the file is missing or damaged."""
    try:
        array: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array


def npy_bytes(array: np.ndarray) -> bytes:
    """The content of an .npy file of `array`."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
