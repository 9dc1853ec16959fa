"""The figures of runs and sweeps.

Every figure has a function that builds a matplotlib Figure from plain rows and one that saves it as PNG. Only the
object-oriented API is used: no pyplot, no global state, no display. Importing this module imports matplotlib, so the
stages import it when they draw.
"""

from alphapo_cli.plots import style
from alphapo_cli.plots.run import run_curves, run_figure
from alphapo_cli.plots.sweep_curves import SweepCurve, displacement_figure, sweep_displacement
from alphapo_cli.plots.sweep_outcome import outcome_figure, sweep_outcome

__all__ = [
    "SweepCurve",
    "displacement_figure",
    "outcome_figure",
    "run_curves",
    "run_figure",
    "style",
    "sweep_displacement",
    "sweep_outcome",
]
