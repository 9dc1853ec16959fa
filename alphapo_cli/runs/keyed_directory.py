"""A directory whose name and content are decided by what went in: the same line finds it again.

manifest.json holds the identity: hashes and settings on which the result depends. A directory with the same identity is
continued or complete; one with another identity is never written to. The hash in its name leaves out settings at their
defaults, so that a later version may add some; one with a name by an earlier version's hash is found by its identity.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from alphapo_cli.config.compose import differing_keys, leaves
from alphapo_cli.config.schema import RunConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.runs.identity import names_in
from alphapo_cli.storage.atomic import UNBEGUN, check_folder, usable
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.jsonl import check_free
from alphapo_cli.storage.strict_json import read_object

FIX = "choose another --out"


@dataclass(frozen=True)
class KeyedDirectory:
    """Paths and state of one kind of directory.

    COMMAND: who makes it; WHAT: its name, with and without article; OWN: a key that its identity always has, by which
    another command's directory is told from it; LOG: the file that grows while work is done; DEFAULTS: of settings in the
    identity, by dotted key.
    """

    path: Path

    COMMAND: ClassVar[str]
    WHAT: ClassVar[tuple[str, str]]
    OWN: ClassVar[str]
    LOG: ClassVar[str]
    DEFAULTS: ClassVar[Mapping[str, Any]]

    @classmethod
    def place(
        cls, out: Path | None, inside: Path | None, run: RunConfig, generator: str, identity: dict[str, Any]
    ) -> Self:
        """The directory of `identity`.

        Args:
            out: where the line says; it wins over `run`.
            inside: a run directory that keeps it; it wins over `out`.
            run: run.dir and run.name.
            generator: whose answers, for the name.
            identity: hashes and settings on which the result depends.
        """
        if inside is not None:
            return cls._inside(inside, identity)
        if out is None and not run.name:
            return cls._beside(Path(run.dir).expanduser(), generator, identity)
        return cls((out or Path(run.dir, str(run.name))).expanduser())

    @classmethod
    def _beside(cls, folder: Path, generator: str, identity: dict[str, Any]) -> Self:
        """Its place among others: <command>-<generator>-<hash8>, safe as a file name."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", generator).strip("-.")[:60] or "model"
        stem = f"{cls.COMMAND}-{safe}"
        return cls._found([folder / f"{stem}-{cls._hash(identity)}"], stem, identity)

    @classmethod
    def _inside(cls, run: Path, identity: dict[str, Any]) -> Self:
        """Where a run directory keeps it: <command>/, or <command>-<hash8> beside one of another identity."""
        first, other = run / cls.COMMAND, run / f"{cls.COMMAND}-{cls._hash(identity)}"
        return cls._found([first, other] if cls(first).stored() is None else [other, first], cls.COMMAND, identity)

    @classmethod
    def _found(cls, places: Sequence[Path], stem: str, identity: dict[str, Any]) -> Self:
        """The one of `places`, or of those beside that an earlier version named, that holds `identity`; else the first."""
        folder, shape = places[0].parent, re.compile(re.escape(stem) + "-[0-9a-f]{8}")
        named = (folder / name for name in names_in(folder) if shape.fullmatch(name))
        return next(
            (d for place in itertools.chain(places, named) if (d := cls(place)).holds(identity)), cls(places[0])
        )

    @classmethod
    def _hash(cls, identity: dict[str, Any]) -> str:
        flat = leaves(identity)
        return digest({k: v for k, v in flat.items() if k not in cls.DEFAULTS or cls.DEFAULTS[k] != v})[:8]

    def stored(self) -> dict[str, Any] | None:
        """The identity of what is here; None where there is none."""
        found = (read_object(self.manifest) or {}).get("identity")
        return found if isinstance(found, dict) else None

    def holds(self, identity: dict[str, Any]) -> bool:
        """Whether what is here has that identity."""
        stored = self.stored()
        return stored is not None and not differing(stored, identity, self.DEFAULTS)

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
        stored = self.stored()
        if stored is None or self.OWN not in stored:
            raise UsageError(f"{self.path} exists and is not {self.WHAT[0]}; choose another --out or move it away")
        check_free(self.log, f"alphapo {self.COMMAND}")
        if replace:
            return False
        keys = differing(stored, identity, self.DEFAULTS)
        if keys:
            raise UsageError(
                f"{self.path} holds another {self.WHAT[1]} (differs in: {', '.join(keys)}); "
                "choose another --out, or start over with --replace"
            )
        return True


def differing(
    old: dict[str, Any], new: dict[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> list[str]:
    """Dotted keys with different values; one that is missing stands at its default."""
    return differing_keys({**defaults, **leaves(old)}, {**defaults, **leaves(new)})
