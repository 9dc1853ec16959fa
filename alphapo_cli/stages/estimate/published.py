"""Published settings, and whether a configuration lies outside them. No range is ours: each names its source.

All that is published of these objectives was trained whole (no adapters) on models of 7 to 9 billion parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alphapo_cli.config.schema import TrainConfig

_SMALLEST, _LARGEST = 6.5e9, 10e9  # parameters of what is called 7B to 9B


@dataclass(frozen=True)
class Range:
    """Lowest and highest published value, and where."""

    low: float
    high: float
    source: str


_ALPHAPO = "AlphaPO (arXiv 2501.03884), table 3, by way of secondary sources"
_SIMPO = "SimPO (arXiv 2405.14734), princeton-nlp/SimPO"
# objective -> setting -> range
PUBLISHED: Mapping[str, Mapping[str, Range]] = {
    "alphapo": {
        "trainer.learning_rate": Range(7e-7, 1.1e-6, _ALPHAPO),
        "objective.beta": Range(2.5, 10, _ALPHAPO),
        "objective.gamma_beta_ratio": Range(0.1, 1.0, _ALPHAPO),
        "objective.shape.alpha": Range(0.1, 0.25, _ALPHAPO),
    },
    "simpo": {
        "trainer.learning_rate": Range(3e-7, 1e-6, _SIMPO),
        "objective.beta": Range(2.0, 10, _SIMPO),
        "objective.gamma_beta_ratio": Range(0.1, 0.8, _SIMPO),
    },
    "dpo": {
        "trainer.learning_rate": Range(
            3e-7, 1e-6, "DPO (arXiv 2305.18290) and its tuning in SimPO (arXiv 2405.14734)"
        ),
        "objective.beta": Range(0.01, 0.1, "DPO (arXiv 2305.18290) and its tuning in SimPO (arXiv 2405.14734)"),
    },
    "alpha_dpo": {
        "trainer.learning_rate": Range(6e-7, 1e-6, "alpha-DPO (arXiv 2410.10148), junkangwu/alpha-DPO"),
        "objective.beta": Range(2.5, 10, "alpha-DPO (arXiv 2410.10148), junkangwu/alpha-DPO"),
        "objective.gamma_beta_ratio": Range(0.15, 0.6, "alpha-DPO (arXiv 2410.10148), junkangwu/alpha-DPO"),
    },
    "gamma_po": {
        "trainer.learning_rate": Range(6e-7, 1e-6, "gamma-PO (arXiv 2506.03690), sunjie279/gammaPO"),
        "objective.beta": Range(2.5, 10, "gamma-PO (arXiv 2506.03690), sunjie279/gammaPO"),
        "objective.gamma_beta_ratio": Range(0.15, 0.5, "gamma-PO (arXiv 2506.03690), sunjie279/gammaPO"),
    },
}  # fmt: skip
_ROUNDING = 1e-9  # relative


def warnings(cfg: TrainConfig, parameters: int) -> list[str]:
    """What of a configuration lies outside the published range.

    Args:
        cfg: the configuration.
        parameters: number of parameters of the model.

    Returns:
        A sentence each; one sentence where nothing is published of models of this size, of adapters or of the objective.
    """
    name = cfg.objective.name
    known = PUBLISHED.get(name)
    if known is None:
        return []
    if cfg.model.lora.r is not None:
        return [f"the published settings of {name} are of whole models, not of adapters: no range is known for LoRA"]
    if not _SMALLEST <= parameters <= _LARGEST:
        source = next(iter(known.values())).source
        return [
            f"the published settings of {name} are of models of 7 to 9 billion parameters ({source}); for this one of "
            f"{_count(parameters)} none are known"
        ]
    said = []
    for key, published in known.items():
        value = _value(cfg, key)
        slack = _ROUNDING * abs(value or 0)
        if value is not None and not published.low - slack <= value <= published.high + slack:
            said.append(
                f"{key}={value:g} lies outside the published {published.low:g} to {published.high:g}: {published.source}"
            )
    return said


def _value(cfg: TrainConfig, key: str) -> float | None:
    objective = cfg.objective
    if key == "objective.gamma_beta_ratio":
        if objective.gamma is not None:
            return objective.gamma / objective.beta
        return objective.gamma_beta_ratio
    if key == "objective.shape.alpha":
        alpha = objective.shape.get("alpha")
        return None if alpha is None else float(alpha)
    return objective.beta if key == "objective.beta" else cfg.trainer.learning_rate


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.1f} million"
