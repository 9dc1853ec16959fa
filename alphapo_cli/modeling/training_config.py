"""Settings of a model's configuration that are others in training, and are put back where the model is saved.

Dropout is off by default: objectives compare log-probs across passes, and its noise is larger than what they compare.
The balancing loss of a mixture of experts is not additive over micro-batches, so it is not used, and its logits are not
kept.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

# attention_dropout, resid_pdrop, layerdrop, ...; and the noise on the inputs of a mixture of experts' router.
_NAME = re.compile(r"drop|jitter", re.IGNORECASE)


# A setting: the position of its configuration (a model may have one of its text within another), and its name.
Setting = tuple[int, str]


def set_dropout(lm: Any, probability: float) -> dict[Setting, float]:
    """Set every dropout of a transformers model, before adapters with their own are added.

    A probability is kept in modules, in attributes of layers or in the configuration, which some read in every forward
    pass; so each is set where it is found. Noise of another kind (of routers) is switched off by 0 and else left.

    Args:
        lm: the model; its modules and configuration are changed.
        probability: 0 to 1.

    Returns:
        The configuration's probabilities as they were, for `as_loaded`.
    """
    for module in lm.modules():
        if isinstance(module, _DropoutNd):
            module.p = probability
        for name in _probabilities(vars(module)):
            setattr(module, name, _new(name, probability, getattr(module, name)))
    before: dict[Setting, float] = {}
    for n, config in enumerate(_configs(lm)):
        for name, value in _probabilities(config.to_dict()).items():
            before[n, name] = value
            setattr(config, name, _new(name, probability, value))
    return before


def drop_router_loss(lm: Any) -> dict[Setting, bool]:
    """Let a mixture of experts keep no router logits, from which its forward would make a balancing loss.

    Returns:
        The configuration's switch as it was, for `as_loaded`; empty where it was off.
    """
    found = {n: config for n, config in enumerate(_configs(lm)) if getattr(config, "output_router_logits", False)}
    for config in found.values():
        config.output_router_logits = False
    return {(n, "output_router_logits"): True for n in found}


@contextlib.contextmanager
def as_loaded(lm: Any, before: Mapping[Setting, Any]) -> Iterator[None]:
    """Put the configuration's settings `before` back for as long as the model is being saved."""
    configs = _configs(lm)
    now = [(configs[n], name, getattr(configs[n], name)) for n, name in before]
    try:
        for (n, name), value in before.items():
            setattr(configs[n], name, value)
        yield
    finally:
        for config, name, value in now:
            setattr(config, name, value)


def _new(name: str, probability: float, now: float) -> float:
    return probability if "drop" in name.lower() or probability == 0 else now


def _configs(lm: nn.Module) -> list[Any]:
    config: Any = lm.config
    return list({id(c): c for c in (config, config.get_text_config())}.values())


def _probabilities(found: Mapping[str, Any]) -> dict[str, float]:
    """Those entries that are numbers and called like a probability of dropout."""
    return {
        name: value
        for name, value in found.items()
        if _NAME.search(name) and isinstance(value, int | float) and not isinstance(value, bool)
    }
