"""curves.png of a run."""

from __future__ import annotations

from collections.abc import Callable

from alphapo_cli.errors import in_words
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.title import title
from alphapo_cli.tracking.tracker import Tracker


def draw_curves(
    directory: RunDirectory, tracker: Tracker, step: int, log: Callable[[str], None], *, pairs: int,
    best: int | None = None,
) -> None:  # fmt: skip
    """Draw curves.png from metrics.jsonl and give it to the tracker; nothing where there are no metrics.

    Args:
        directory: of the run.
        tracker: takes the picture.
        step: the step that the picture shows last.
        log: takes a note to the user where drawing failed, which must not fail the run.
        pairs: pairs of the probe.
        best: the step that model/ is of, where that is not the last.

    Raises:
        OSError: the disk refuses the file.
    """
    rows = directory.rows()
    if not rows:
        return
    from alphapo_cli.plots.figures import run_curves

    path = directory.path / "curves.png"
    try:
        run_curves(rows, path, title(directory.settings(), pairs), best)
    except OSError:
        raise
    except Exception as error:
        log(f"note: curves.png was not drawn ({in_words(error)})")
        return
    tracker.picture("curves", path, step)
