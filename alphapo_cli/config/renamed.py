"""Choices of configuration groups that have another name now, and keys that other libraries call otherwise."""

from __future__ import annotations

from collections.abc import Iterable

from alphapo_cli.errors import nearest

# (group, former name) -> what to type instead, and why the name went.
RENAMED = {
    ("objective", "mpo"): (
        "the weighted contrast of lists is objective=swepo (SWEPO, arXiv 2412.04628); what trainers know as MPO, the sum "
        "of sigmoid, BCO and SFT losses of arXiv 2411.10442, is not built"
    ),
    ("objective/link", "mpo"): "it is objective/link=swepo (SWEPO, arXiv 2412.04628)",
}
# The last name of a key elsewhere -> what it is here.
ELSEWHERE = {
    "load_in_4bit": "model.quantization=nf4",
    "load_in_8bit": "model.quantization=int8",
    "bnb_4bit_quant_type": "model.quantization=nf4",
    "bnb_4bit_use_double_quant": "part of model.quantization=nf4",
    "bnb_4bit_compute_dtype": "model.dtype",
}


def suggestion(group: str, name: str, choices: Iterable[str]) -> str:
    """Say what to type for a choice that a group does not have.

    Args:
        group: the group.
        name: the choice that it does not have.
        choices: those that it has.

    Returns:
        "; " and the sentence of a renamed choice, else `errors.nearest`.
    """
    known = RENAMED.get((group, name))
    return f"; {known}" if known else nearest(name, choices)
