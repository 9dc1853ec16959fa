"""Warnings and progress bars of transformers, tokenizers and datasets kept off the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys


def quiet_libraries(*, importing: bool = False) -> None:
    """Silence the libraries by their environment variables, before they are imported.

    Args:
        importing: whether the command will import transformers in this process.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # advice at its import, which is about passes not used here
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if os.environ.get("WANDB_MODE", "").strip().lower() == "offline" and importing:
        # transformers prints a note about it on stdout, which is for results.
        with contextlib.redirect_stdout(io.StringIO()):
            import transformers.integrations.integration_utils  # noqa: F401
