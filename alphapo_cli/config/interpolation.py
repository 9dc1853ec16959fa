"""Interpolations (`${oc.env:SCRATCH}`) on the user's line and in the user's YAML: in paths, and nowhere else.

A cluster's paths stand in variables of the environment, and so do secrets. Every other setting ends in manifests, in
prompts, at a tracker or at a judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alphapo_cli.errors import ConfigError

_PATHS = re.compile(r"(^|[._])(path|dir|file)$")
_ALSO = ("model.reference", "model.guide")
_RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")  # what computes, or reads the environment; a mere reference has no colon
_REFERENCE = re.compile(r"\$\{\s*([\w.]+)\s*\}")


def check_interpolations(values: Mapping[str, Any]) -> None:
    """Refuse interpolations outside of paths.

    Args:
        values: settings by dotted key, not resolved.

    Raises:
        ConfigError: a setting that is no path reads the environment, or refers to a path, which may.
    """
    for key, value in values.items():
        text = str(value)
        if "${" not in text or is_path(key):
            continue
        if _RESOLVER.search(text) or any(is_path(name) for name in _REFERENCE.findall(text)):
            raise ConfigError(
                f"{key}: an interpolation (${{...}}) stands in paths only (data.path, model.path, run.dir, ...), so that no "
                "secret of the environment gets into a run; type the value"
            )


def is_path(key: str) -> bool:
    """Whether a setting names a file or a directory."""
    return key in _ALSO or _PATHS.search(key) is not None
