"""Text of others on its way to a terminal: what would command it is shown, not sent.

Names of columns and files, values of data, and what a server answers may hold escape sequences, which move the cursor,
set the title or hide a line, and marks that turn the direction of writing around.
"""

from __future__ import annotations

import re
from typing import TextIO

# C0 and C1 controls, DEL, line separators, marks of direction (Unicode TR9), and halves of surrogate pairs.
_ACTIVE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: object) -> str:
    r"""Escape what a terminal would obey, as Python writes it: ESC becomes `\x1b`, a newline `\n`."""
    return _ACTIVE.sub(lambda found: ascii(found[0])[1:-1], str(text))


def is_plain(text: str) -> bool:
    """Whether `visible` leaves the text as it is."""
    return _ACTIVE.search(text) is None


def say(text: object, file: TextIO | None = None, *, flush: bool = False) -> None:
    """Print one line: `visible(text)`."""
    print(visible(text), file=file, flush=flush)
