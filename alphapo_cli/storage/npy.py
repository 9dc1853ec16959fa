"""Arrays as .npy files that end in the SHA-256 of their content, which numpy does not read."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

_SIZE = hashlib.sha256().digest_size


def read_npy(file: Path) -> np.ndarray | None:
    """The array in `file`; None where the file is missing or damaged."""
    try:
        content = file.read_bytes()
        if hashlib.sha256(content[:-_SIZE]).digest() != content[-_SIZE:]:
            return None
        array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array


def npy_bytes(array: np.ndarray) -> bytes:
    """The content of an .npy file of `array`, and its digest."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()
