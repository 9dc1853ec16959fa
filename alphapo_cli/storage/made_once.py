"""A file that is made by one process alone, with its content, on local and on network file systems."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from alphapo_cli.storage.atomic import sync


def made_once(path: Path, text: str) -> bool:
    """Make a file with its content in one step.

    Args:
        path: the file.
        text: its content.

    Returns:
        Whether it was made; False where another process was faster.

    Raises:
        OSError: the file system refuses it.
    """
    temporary = path.with_name(f".{os.getpid()}.{secrets.token_hex(6)}.tmp")
    try:
        temporary.write_text(text)
        sync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # A network file system may make the link, lose the reply and refuse the retry: then the link is ours.
            return temporary.stat().st_nlink > 1
        except OSError:  # no hard links: the name is still made once, its content a moment later
            return _made_new(path, text)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return True


def _made_new(path: Path, text: str) -> bool:
    """Make the file at `path`; whether it was made."""
    try:
        with open(path, "x") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError:  # a full disk: a lock file without content would block every process
        path.unlink(missing_ok=True)
        raise
    return True
