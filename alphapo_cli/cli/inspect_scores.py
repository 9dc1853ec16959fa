"""The scores of pairs of `alphapo inspect --scores` on the terminal, in words, and the line that selects by them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from alphapo_cli.cli.common import print_list, shortened
from alphapo_cli.config.schema import SelectConfig, TrainConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.runtime.wording import counted, rate

if TYPE_CHECKING:
    from alphapo_cli.stages.inspect_scores import PairScores

LEFT_OUT = 5  # per cent of the training pairs that the next line leaves out
_TEXT = 26  # characters of an answer


def check_start_model(cfg: TrainConfig) -> None:
    """Check that training starts from weights that mean something.

    Raises:
        UsageError: it starts from random ones.
    """
    if cfg.model.path is None and cfg.model.source == "from_scratch":
        raise UsageError(
            "--scores: model=from_scratch has random weights, which tell nothing of a pair; give model.path=MODEL"
        )


def show(found: PairScores) -> None:
    """Print percentiles, what each score is, and the pairs with the highest CHES."""
    from alphapo_cli.stages.inspect_scores import LIKENESS, figure, row_words

    numbers = ("10 %", "median", "90 %", "n")
    print_list(
        ["score of a pair", *numbers],
        [[one.name, *map(figure, one.percentiles), f"{one.pairs:,}"] for one in found.spreads],
        right=numbers,
    )
    print()
    print_list(["score", "what it is"], [[one.name, one.meaning] for one in found.spreads])
    print()
    rows = [
        [row_words(one), figure(one.value), *(shortened(text, _TEXT) for text in (one.chosen, one.rejected))]
        for one in found.highest
    ]
    print_list(["row", LIKENESS, "chosen begins", "rejected begins"], rows, right=(LIKENESS,))
    print()


def sentences(found: PairScores) -> list[str]:
    """What the scores say, in words."""
    from alphapo_cli.stages.inspect_scores import row_words

    if found.pairs < found.of:
        which = f"{found.pairs:,} of {found.of:,} training pairs, drawn by seed {found.seed} (alphapo measure --pairs train scores all),"
    else:
        which = f"all {counted(found.pairs, 'training pair')}"
    single = f"; {counted(found.single, 'row')} with one answer have none" if found.single else ""
    named = ", ".join(row_words(one) for one in found.highest)
    return [
        f"scores of {which} under {found.start}, before any training{single}",
        f"under {found.start} the chosen answer is the likelier one in {rate(found.prefers, found.pairs)} pairs",
        f"rows {named} have the highest CHES (ches_normalised): their chosen answers are predicted to fall most; "
        "probe.scores=true follows in training whether such pairs do",
    ]


def selecting(select: SelectConfig) -> list[str]:
    """The overrides that leave out the pairs with the highest CHES.

    Args:
        select: the selection of the line that was looked at.

    Returns:
        The overrides, beside a selection by something else as a further condition; none where the line selects by CHES, or
        has further conditions.
    """
    from alphapo_cli.stages.inspect_scores import LIKENESS

    kept = f"{1 - LEFT_OUT / 100:g}"
    if select.by is None:
        return [f"data.select.by={LIKENESS}", "data.select.keep=lowest", f"data.select.share={kept}"]
    if select.then or select.by in ("ches", LIKENESS):
        return []
    return [f"data.select.then=[{{by: {LIKENESS}, keep: lowest, share: {kept}}}]"]


def result(found: PairScores) -> dict[str, Any]:
    """The scores as a part of the result object of `--json`."""
    return {
        "start": found.start, "pairs": found.pairs, "of": found.of, "single": found.single, "seed": found.seed,
        "percentiles": {
            one.name: dict(zip(("p10", "p50", "p90"), one.percentiles, strict=True)) for one in found.spreads
        },
        "start_prefers_chosen": found.prefers,
        "highest": [asdict(one) for one in found.highest],
        "rows": list(found.rows),
    }  # fmt: skip
