"""A directory whose name and content are decided by what went in: the same line finds it again.

manifest.json holds the identity: hashes and settings on which the result depends. A directory with the same identity is
continued or complete; one with another identity is never written to.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alphapo_cli.errors import UsageError
from alphapo_cli.runs.directory import digest
from alphapo_cli.storage.atomic import UNBEGUN, check_folder, usable
from alphapo_cli.storage.jsonl import check_free

FIX = "choose another --out"


def keyed_name(command: str, generator: str, identity: dict[str, Any]) -> str:
    """<command>-<generator>-<hash8 of the identity>, safe as a file name."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", generator).strip("-.")[:60] or "model"
    return f"{command}-{safe}-{digest(identity)[:8]}"


def place_inside(run: Path, command: str, identity: dict[str, Any]) -> Path:
    """Where a run directory keeps what `command` made of it: <command>/, or <command>-<hash8> beside one of another identity."""
    first = run / command
    stored = (read_object(first / "manifest.json") or {}).get("identity")
    if not isinstance(stored, dict) or not differing(stored, identity):
        return first
    return run / f"{command}-{digest(identity)[:8]}"


@dataclass(frozen=True)
class KeyedDirectory:
    """Paths and state of one kind of directory.

    COMMAND: who makes it; WHAT: its name, with and without article; OWN: a key that its identity always has, by which
    another command's directory is told from it; LOG: the file that grows while work is done.
    """

    path: Path

    COMMAND: ClassVar[str]
    WHAT: ClassVar[tuple[str, str]]
    OWN: ClassVar[str]
    LOG: ClassVar[str]

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def log(self) -> Path:
        return self.path / self.LOG

    def check_writable(self) -> None:
        """Find out before any work whether results can be written here.

        Raises:
            UsageError: they cannot.
        """
        check_folder(self.path, FIX)

    def begun(self, identity: dict[str, Any], *, replace: bool) -> bool:
        """Whether this very thing was begun here, and is not to be replaced. Creates and removes nothing.

        Raises:
            UsageError: the directory holds another identity, something else, or another process is writing in it.
        """
        with usable(self.path, FIX):
            if not self.path.is_dir() or all(p.name.startswith(UNBEGUN) for p in self.path.iterdir()):
                return False
        stored = (read_object(self.manifest) or {}).get("identity")
        if not isinstance(stored, dict) or self.OWN not in stored:
            raise UsageError(f"{self.path} exists and is not {self.WHAT[0]}; choose another --out or move it away")
        check_free(self.log, f"alphapo {self.COMMAND}")
        if replace:
            return False
        keys = differing(stored, identity)
        if keys:
            raise UsageError(
                f"{self.path} holds another {self.WHAT[1]} (differs in: {', '.join(keys)}); "
                "choose another --out, or start over with --replace"
            )
        return True


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None where there is none."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return loaded if isinstance(loaded, dict) else None


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted keys with different values."""
    flat_old, flat_new = _flat(old), _flat(new)
    return sorted(k for k in flat_old.keys() | flat_new.keys() if flat_old.get(k) != flat_new.get(k))


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return found
