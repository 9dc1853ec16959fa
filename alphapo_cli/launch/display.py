"""Progress of a sweep on stderr: live bars on a terminal, and a line for each cell that has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from alphapo_cli.errors import visible
from alphapo_cli.launch.launchers.launcher import Ended
from alphapo_cli.runs.state import last_row
from alphapo_cli.sweep.directory import SweepDirectory
from alphapo_cli.sweep.grid import Cell

REFRESH = 0.5  # seconds


class Display:
    """Progress of the cells, read from their run directories.

    Args:
        directory: the sweep's directory.
        cells: the cells that this invocation runs.
    """

    def __init__(self, directory: SweepDirectory, cells: Sequence[Cell]) -> None:
        self.directory, self.cells = directory, cells
        self.over = 0
        self.noted: set[str] = set()
        self.shown = 0.0
        self.console = Console(stderr=True)
        self.tasks: dict[str, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"), console=self.console, disable=not self.console.is_terminal,
            refresh_per_second=4, transient=True,
        )  # fmt: skip
        self.total = self.progress.add_task("cells", total=len(cells), facts="")

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.progress.stop()

    def tell(self, ended: Ended) -> None:
        """Print a line for a cell that has ended."""
        self.over += 1
        self.progress.update(self.total, completed=self.over)
        self._remove(ended.job.id)
        reason = f": {ended.reason}" if ended.reason else ""
        line = f"[{self.over}/{len(self.cells)}] {ended.job.title}: {ended.state}{reason}"
        self._print(line)
        if ended.job.plan is not None:
            outcome = self.directory.cell(ended.job.id).outcome()
            for note in outcome.get("notes", []):
                if note not in self.noted:  # cells have most of them in common
                    self.noted.add(note)
                    self._print(f"note: {note}")

    def _print(self, text: str) -> None:
        self.progress.console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    def tick(self) -> None:
        """Update the bars of running cells, at most every REFRESH seconds."""
        now = time.monotonic()
        if self.progress.disable or now - self.shown < REFRESH:
            return
        self.shown = now
        for cell in self.cells:
            run = self.directory.cell(cell.id)
            if run.state != "running":
                self._remove(cell.id)
                continue
            if cell.id not in self.tasks:
                steps = run.read_manifest().get("steps")
                self.tasks[cell.id] = self.progress.add_task(" ".join(cell.overrides), total=steps, facts="")
            row = last_row(run.metrics)
            chosen = row.get("displacement/chosen")
            facts = "" if chosen is None else f"chosen {chosen:+.3f}"
            self.progress.update(self.tasks[cell.id], completed=int(row.get("step", 0)), facts=facts)

    def _remove(self, cell_id: str) -> None:
        task = self.tasks.pop(cell_id, None)
        if task is not None:
            self.progress.remove_task(task)
