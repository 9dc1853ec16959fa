"""curves.png and reward_shape.png of a run."""

from __future__ import annotations

from collections.abc import Callable

from alphapo_cli.errors import in_words
from alphapo_cli.plots import shape_data
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.title import title
from alphapo_cli.stages import reward_shape
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


def record_shape(
    directory: RunDirectory, tracker: Tracker, step: int, log: Callable[[str], None], *, picture: bool
) -> None:
    """Write reward_shape.json, draw reward_shape.png and give it to the tracker; nothing where there is no probe.

    Args:
        directory: of the run.
        tracker: takes the picture.
        step: the step that the picture shows last.
        log: takes a note to the user where either could not be made, which must not fail the run.
        picture: whether to draw.

    Raises:
        OSError: the disk refuses a file.
    """
    if not (directory.path / "probe.jsonl").is_file():
        return
    found = reward_shape.record(directory, log)
    if not picture or found is None or isinstance(found, str):
        return
    try:
        reward_shape.draw(directory, found)
    except OSError:
        raise
    except Exception as error:
        log(f"note: {shape_data.PICTURE} was not drawn ({in_words(error)})")
        return
    tracker.picture("reward_shape", directory.path / shape_data.PICTURE, step)
