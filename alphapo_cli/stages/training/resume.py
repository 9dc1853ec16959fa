"""Checks that a run can be resumed: data, initial weights and processes are those of its earlier training session."""

from __future__ import annotations

import sys
from typing import Any

from alphapo_cli.data.prepare import tokenizer_hash
from alphapo_cli.errors import UsageError, say
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.provenance import manifest, version_changes
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.stages.training.inputs import ModelAndData
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.run_lock import LockStatus


class Busy(UsageError):
    """Another process works on the run."""

    @classmethod
    def of(cls, directory: RunDirectory, claim: LockStatus) -> Busy:
        """The error for a run whose lock another process holds."""
        who = claim.owner.description if claim.owner else "another process"
        return cls(f"{directory.path}: {who} is working on this run; wait for it, or choose another run.name")


def facts_of(materials: ModelAndData, processes: int, steps: int) -> dict[str, Any]:
    """The content of manifest.json for a training session from this model and data."""
    data, tokenizer = materials.data, materials.tokenizer
    return manifest(
        data={"key": data.key, **data.report},
        tokenizer=tokenizer_hash(tokenizer),
        template=digest(tokenizer.chat_template) if tokenizer.chat_template else None,
        start=materials.start,
        weights=dict(materials.weights),
        processes=processes,
        steps=steps,
    )


def begun_processes(directory: RunDirectory, processes: Processes) -> int:
    """Read with how many processes a sharded run was begun; any number can go on, over the same steps. Collective.

    Returns:
        Their number; that of `processes` for a run that is yet to begin.
    """
    was = processes.first(lambda: directory.read_manifest().get("processes"))
    return was if isinstance(was, int) and was > 0 else processes.world


def check_continuable(directory: RunDirectory, facts: dict[str, Any]) -> None:
    """Compare the manifest in `directory` with that of this session, `facts`; other versions only give a note.

    Raises:
        UsageError: data, initial weights or the number of processes differ.
    """
    old = directory.read_manifest()
    if directory.manifest_section("data").get("key") != facts["data"]["key"]:
        raise UsageError(
            f"{directory.path} was begun on other data (the files or their tokenisation changed); "
            "start over with --replace, or choose another run.name"
        )
    was = directory.manifest_section("weights")
    moved = [setting for setting, now in facts["weights"].items() if was.get(setting, now) != now]
    if moved:
        raise UsageError(
            f"{directory.path} was begun from other weights ({' and '.join(moved)} changed since); "
            "start over with --replace, or choose another run.name"
        )
    if old.get("processes") != facts["processes"]:
        raise UsageError(
            f"{directory.path} was begun with {old.get('processes')} process(es), not {facts['processes']}; "
            "use as many to continue, or start over with --replace"
        )
    changes = version_changes(directory.manifest_section("versions"), facts["versions"])
    if changes:
        say(f"note: continued under other versions ({changes}): results may differ in round-off", file=sys.stderr)
