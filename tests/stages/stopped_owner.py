"""`python -m tests.stages.stopped_owner POINT MARK ARGUMENT...`: alphapo, which stops itself (SIGSTOP) once at a point.

MARK is a file that it makes just before. Used in a process namespace of its own, where it looks to others like a process
on another host.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def stop_once(mark: Path) -> None:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSTOP)


def around(owner: Any, name: str, when: Callable[..., bool], mark: Path, *, before: bool) -> None:
    """Stop before or after a call for which `when` holds."""
    call = getattr(owner, name)

    def stopping(*arguments: Any, **named: Any) -> Any:
        if before and when(*arguments):
            stop_once(mark)
        found = call(*arguments, **named)
        if not before and when(*arguments):
            stop_once(mark)
        return found

    setattr(owner, name, stopping)


def always(*arguments: Any) -> bool:
    return True


def to(name: str) -> Callable[..., bool]:
    """Whether a rename gives a directory its final name."""
    return lambda source, target, *_: Path(target).name == name and Path(source).name.startswith(f".{name}.")


def full(name: str) -> Callable[..., bool]:
    return lambda folder, *_: Path(folder).name.startswith(f".{name}.")


def file_named(name: str) -> Callable[..., bool]:
    return lambda path, *_: Path(path).name == name


def points(mark: Path) -> dict[str, Callable[[], None]]:
    from alphapo_cli.report import write
    from alphapo_cli.runs.checkpoints import Checkpoints
    from alphapo_cli.runs.directory import RunDirectory
    from alphapo_cli.stages import evaluate, generate
    from alphapo_cli.stages.training.session import TrainingSession
    from alphapo_cli.storage import owned_directory

    return {
        "the model is written": lambda: around(owned_directory, "sync_tree", full("model"), mark, before=False),
        "the model is about to be renamed": lambda: around(os, "rename", to("model"), mark, before=True),
        "the model was renamed": lambda: around(os, "rename", to("model"), mark, before=False),
        "a checkpoint is written": lambda: around(owned_directory, "sync_tree", full("step-2"), mark, before=False),
        "a checkpoint is about to be renamed": lambda: around(os, "rename", to("step-2"), mark, before=True),
        "a checkpoint was saved": lambda: around(Checkpoints, "save", always, mark, before=False),
        "a row was written": lambda: around(TrainingSession, "measure", always, mark, before=False),
        "the summary is written": lambda: around(RunDirectory, "ending", lambda *a: a[1] == "complete", mark, before=True),
        "answers are written": lambda: around(generate, "write_json", file_named("model_outputs.json"), mark, before=True),
        "annotations are written": lambda: around(evaluate, "write_json", file_named("annotations.json"), mark, before=True),
        "a page is written": lambda: around(write, "write_atomic", file_named("report.html"), mark, before=True),
    }  # fmt: skip


if __name__ == "__main__":
    from alphapo_cli.cli.main import main

    points(Path(sys.argv[2]))[sys.argv[1]]()
    sys.argv = ["alphapo", *sys.argv[3:]]
    main()
