"""A results directory that is named by a hash of its inputs, so that the same command line finds it again.

manifest.json holds the identity: hashes and settings on which the result depends. A directory with the same identity is
complete or resumed; one with another identity is never written to. The hash in the name leaves out settings at their
defaults, so that a later version may add some; a directory named by an earlier version's hash is found by its identity.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

from alphapo_cli.config.keys import differing_keys, leaves
from alphapo_cli.config.schema import RunConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.runs.identity import names_in
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import UNBEGUN, check_folder, usable
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.jsonl import check_free
from alphapo_cli.storage.strict_json import read_object

FIX = "choose another --out"


@dataclass(frozen=True)
class KeyedDirectory:
    """Paths and state of one kind of directory.

    Attributes:
        path: the directory.
        COMMAND: the command that writes it.
        WHAT: what messages call it, with and without article.
        OWN: a key of every identity of this kind, which tells it from another command's directory.
        LOG: name of the JSONL file to which finished work is appended.
        DEFAULTS: defaults of settings in the identity, by dotted key.
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
        """Find the directory for `identity`, which need not exist.

        Args:
            out: the option --out; takes precedence over `run`.
            inside: a run directory in which the results are kept; takes precedence over `out`.
            run: run.dir and run.name.
            generator: name of the model that generated the answers, for the directory's name.
            identity: hashes and settings on which the result depends.

        Returns:
            An existing directory that holds `identity`, or the one to create.
        """
        if inside is not None:
            return cls._inside(inside, identity)
        if out is None and not run.name:
            return cls._beside(Path(run.dir).expanduser(), generator, identity)
        return cls((out or Path(run.dir, str(run.name))).expanduser())

    @classmethod
    def _beside(cls, folder: Path, generator: str, identity: dict[str, Any]) -> Self:
        """The directory in run.dir: <command>-<generator>-<hash8>, safe as a file name."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", generator).strip("-.")[:60] or "model"
        stem = f"{cls.COMMAND}-{safe}"
        return cls._find([folder / f"{stem}-{cls._hash(identity)}"], stem, identity)

    @classmethod
    def _inside(cls, run: Path, identity: dict[str, Any]) -> Self:
        """The directory inside a run: <command>/, or <command>-<hash8> if that has another identity."""
        first, other = run / cls.COMMAND, run / f"{cls.COMMAND}-{cls._hash(identity)}"
        return cls._find([first, other] if cls(first).stored() is None else [other, first], cls.COMMAND, identity)

    @classmethod
    def _find(cls, places: Sequence[Path], stem: str, identity: dict[str, Any]) -> Self:
        """The first of `places`, or of their siblings of the same stem, that holds `identity`; else the first place."""
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
        """The identity in manifest.json; None if there is none."""
        found = (checksums.intact(read_object(self.manifest)) or {}).get("identity")
        return found if isinstance(found, dict) else None

    def holds(self, identity: dict[str, Any]) -> bool:
        """Whether manifest.json has that identity."""
        stored = self.stored()
        return stored is not None and not differing(stored, identity, self.DEFAULTS)

    @property
    def manifest(self) -> Path:
        """The file of the identity."""
        return self.path / "manifest.json"

    @property
    def log(self) -> Path:
        """The JSONL file to which finished work is appended."""
        return self.path / self.LOG

    def check_writable(self) -> None:
        """Check before any work that results can be written.

        Raises:
            UsageError: the directory cannot be made or written.
        """
        check_folder(self.path, FIX)

    def begun(self, identity: dict[str, Any], *, replace: bool) -> bool:
        """Check whether the directory holds earlier work to resume; creates and removes nothing.

        Args:
            identity: hashes and settings on which the result depends.
            replace: whether earlier work is to be discarded.

        Returns:
            True if work on this identity was started and `replace` is not set.

        Raises:
            UsageError: the directory holds another identity or something else, or another process is writing to it.
        """
        with usable(self.path, FIX):
            if not self.path.is_dir() or all(p.name.startswith(UNBEGUN) for p in self.path.iterdir()):
                return False
        stored = self.stored()
        if stored is None and self.manifest.is_file() and not replace:
            raise UsageError(
                f"{self.manifest} is damaged, so nobody knows what {self.WHAT[0]} it was; put it back from a copy, or choose "
                "another --out"
            )
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
    """Dotted keys with different values; a missing key is at its default."""
    return differing_keys({**defaults, **leaves(old)}, {**defaults, **leaves(new)})
