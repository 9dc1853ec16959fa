"""Version numbers of a run: of the format of its files, and of the results that the same settings give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError

# Number of the format of a run's files; raised when one of them is read differently. 1: no number in manifest.json;
# 2: manifest.json has `format` and `numerics`.
RUN_FORMAT = 2
OLDEST_FORMAT = 1  # the oldest that this version reads

# Versions of a run's results, in manifest.json; a line is added when the same configuration gives other results (more
# than round-off), be it by a default, by what a file of conf/ chooses, or by the code. Each says what changed.
NUMERICS = {
    1: "the first version; no number in manifest.json",
    2: "a margin within rounding counts as a tie, in every metric and in every branch of a loss",
    3: (
        "beta_dpo and sampo draw by the run's seed; defaults of rpo_sft, cal_dpo, bmc and bce are their authors'; "
        "label_smoothing acts on label_column, and on kto_pair's answers against the half that they are not in; "
        "the model's own dropout is off in training (model.dropout); tools, tool calls, reasoning, system text and Alpaca's "
        "input of a row reach the chat template; of a folder with splits one is read; data=glassbox sets trainer and probe "
        "for its own model only; the experiments alphapo_* name their data and lengths"
    ),
    4: (
        "sampled answers end at every stop id that a file of the model names, and with weights of 16 bits are drawn one by "
        "one (probe.exact); seeds of generated answers to conversations of several messages are made of these; `alphapo run` "
        "on data of one's own answers its held-out prompts"
    ),
}


def check_format(
    path: Path, manifest: Mapping[str, Any], *, replace: bool = False, fix: str = "choose another run.name"
) -> None:
    """Refuse a run directory whose files this version does not understand.

    Args:
        path: the run directory, for the message.
        manifest: its manifest.json.
        replace: whether the run is to be trained from step 0. That removes files of an older format, but not of a newer
            one, whose files this version does not know.
        fix: what else the user can do, for the message.

    Raises:
        UsageError: the format is newer than `RUN_FORMAT`, or older than `OLDEST_FORMAT` without `replace`.
    """
    number = manifest.get("format", 1)
    reads = f"reads {OLDEST_FORMAT} to {RUN_FORMAT}" if OLDEST_FORMAT < RUN_FORMAT else f"reads {RUN_FORMAT}"
    if not isinstance(number, int) or number > RUN_FORMAT:
        raise UsageError(
            f"{path} was made by a newer alphapo (run format {number}, this one {reads}): update alphapo, or {fix}"
        )
    if number < OLDEST_FORMAT and not replace:
        made = (manifest.get("versions") or {}).get("alphapo")
        raise UsageError(
            f"{path} was made by an older alphapo (run format {number}, this one {reads}): read it with version "
            f"{made or 'that made it'}, train it anew with --replace, or {fix}"
        )


def numerics_of(manifest: Mapping[str, Any]) -> int:
    """The `NUMERICS` version of a run; 1 if its manifest has none."""
    number = manifest.get("numerics", 1)
    return number if isinstance(number, int) else 1


def numerics_changes(number: int) -> str | None:
    """Say that results differ between numerics `number` and this version; None if they do not."""
    now = max(NUMERICS)
    if number > now:
        return f"numerics {number} (by a newer alphapo: this one has {now})"
    return (
        f"numerics {number} (now {now}: the same settings give other results; `alphapo env` lists what changed)"
        if number < now
        else None
    )
