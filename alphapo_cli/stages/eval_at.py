"""`eval.at`: the fractions of training after which `alphapo run` and `sweep` evaluate the model, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import UsageError

SECTION = "eval"
KEY = f"{SECTION}.at"
SAVED = "trainer.save_models_at"


def take(texts: Sequence[str]) -> tuple[list[str], tuple[float, ...]]:
    """Take `eval.at=[...]` out of the overrides of a command line.

    Args:
        texts: the overrides, as typed.

    Returns:
        (the others, the fractions in ascending order; none where it was not typed).

    Raises:
        UsageError: its value is no list of fractions, it is typed twice, or it is another key of that name.
    """
    mine = [text for text in texts if text.partition("=")[0].partition(".")[0] == SECTION]
    for text in mine:
        if text.partition("=")[0] != KEY:
            raise UsageError(
                f"{text}: no such key; {KEY}=[0,0.5,1] evaluates the models of these fractions of training"
            )
    if len(mine) > 1:
        raise UsageError(f"{KEY} is typed {len(mine)} times; give one list")
    found: tuple[float, ...] = ()
    if mine:
        text = mine[0].partition("=")[2]
        try:
            found = checked(yaml.safe_load(text), text)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
            raise UsageError(_needed(text)) from error
    return [text for text in texts if text not in mine], found


def checked(value: Any, shown: object) -> tuple[float, ...]:
    """Check a value of the key.

    Args:
        value: the value.
        shown: as it was typed, for the message.

    Returns:
        Its fractions, ascending and each once.

    Raises:
        UsageError: it is no list of numbers from 0 to 1.
    """
    numbers = [_number(one) for one in (value if isinstance(value, list) else [value])]
    if not numbers or not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n <= 1 for n in numbers):
        raise UsageError(_needed(shown))
    return tuple(sorted({float(number) for number in numbers}))


def inner(fractions: Sequence[float]) -> list[float]:
    """The fractions whose models training has to keep: all but its start and its end."""
    return [fraction for fraction in fractions if 0 < fraction < 1]


def saving(texts: Sequence[str], fractions: Sequence[float]) -> list[str]:
    """The override of training that keeps the models that `eval.at` evaluates; none where there are none.

    Args:
        texts: the overrides of training, as typed.
        fractions: of `eval.at`.

    Returns:
        The override, in a list.

    Raises:
        UsageError: the line sets the same itself.
    """
    kept = inner(fractions)
    if not kept:
        return []
    if any(text.lstrip("+").partition("=")[0] == SAVED for text in texts):
        raise UsageError(f"{KEY} sets {SAVED} by itself; leave one of the two out")
    return [f"{SAVED}=[{','.join(map(repr, kept))}]"]


def check(fractions: Sequence[float], cfg: TrainConfig) -> None:
    """Check that there will be a model of every fraction.

    Args:
        fractions: of `eval.at`.
        cfg: the configuration of training.

    Raises:
        UsageError: there will not.
    """
    missing = [fraction for fraction in inner(fractions) if fraction not in cfg.trainer.save_models_at]
    if missing:
        raise UsageError(
            f"{KEY}: training does not keep the models of {', '.join(f'{f:g}' for f in missing)}; set {SAVED} to "
            f"{[*sorted({*cfg.trainer.save_models_at, *missing})]}"
        )
    if 0 in fractions and cfg.model.path is None and cfg.model.source == "from_scratch":
        raise UsageError(f"{KEY}: a model from random weights has no answers before training; leave 0 out")


def _number(value: Any) -> Any:
    """`value`, as a number where it is one in words: YAML takes 1e-05 for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _needed(shown: object) -> str:
    return f"{KEY}={shown}: needs a list of fractions of training from 0 to 1, such as [0,0.25,0.5,1]"
