"""A pass of a deep model, followed on two shallow ones: its decoder layers are alike, so that each one more takes as much.

The pass runs with three and with four units of layers (of a model whose kinds of layers alternate a unit is one round of
them). What is alive after each storage that is made then grows by the same number of bytes with each further unit, and
the course of the whole model is known to the byte. A model of other layers is followed whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from alphapo_cli.stages.estimate.live_bytes import LiveBytes

_FEW = 3  # units: a first one, which may differ, one that is repeated, and the last one, which computes fewer rows
_ROUND = 8  # layers of a unit, at most
_PLACE = ("layer_idx", "layer_index", "layer_id")  # attributes that say where a layer is, not what it is


@dataclass
class Course:
    """Bytes alive over a pass.

    Attributes:
        live: after each storage that was made.
        kept: after the forward pass.
        began: places in `live` where the forward pass of each unit begins.
        ended: places where the backward pass of each unit has ended, by unit; none without gradients.
    """

    live: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    kept: int = 0
    began: list[int] = field(default_factory=list)
    ended: dict[int, int] = field(default_factory=dict)


# Runs a pass; `Course.live` and `.kept` are what it gives.
Run = Callable[[Callable[[LiveBytes], None]], tuple[list[int], int]]


def follow(model: Any, run: Run) -> tuple[int, int]:
    """Follow a pass.

    Args:
        model: the bare model of transformers, without numbers.
        run: runs the pass on the layers that the model then has. It calls its argument with what counts the bytes, before
            the first of them, and returns (bytes alive after each storage that was made, after the forward pass).

    Returns:
        (bytes kept after the forward pass, most bytes at a time).
    """
    layers: Any = getattr(model.base_model, "layers", None)
    unit = _unit(model, layers) if isinstance(layers, nn.ModuleList) else None
    if unit is not None:
        few, more = (_on(model, unit, units, run) for units in (_FEW, _FEW + 1))
        found = _extended(few, more, len(layers) // unit - _FEW)
        if found is not None:
            return found
    live, kept = run(lambda counter: None)
    return kept, max(live, default=0)


def _unit(model: Any, layers: nn.ModuleList) -> int | None:
    """The number of layers after which they repeat; None where they do not, or where too few units would be left out."""
    types = getattr(model.config.get_text_config(), "layer_types", None) or []
    kinds = [(_kind(layer), types[i] if i < len(types) else None) for i, layer in enumerate(layers)]
    for unit in range(1, _ROUND + 1):
        if len(kinds) // unit <= 2 * _FEW + 1:
            return None
        if all(a == b for a, b in zip(kinds, kinds[unit:], strict=False)):
            return unit
    return None


def _kind(layer: nn.Module) -> list[Any]:
    """All of a layer that decides what it takes: its modules with their settings, and its parameters' shapes."""
    plain = (bool, int, float, str, type(None))
    modules = [
        (
            name,
            type(module),
            sorted((k, v) for k, v in vars(module).items() if isinstance(v, plain) and k not in _PLACE),
        )
        for name, module in layer.named_modules()
    ]
    return [modules, [(name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters()]]


def _on(model: Any, unit: int, units: int, run: Run) -> Course:
    """The course of a pass on the first and the last of a model's layers, `units` of them and what a round leaves over."""
    layers = list(model.base_model.layers)
    first = len(layers) % unit + (units - 1) * unit
    course = Course()
    kept = [*layers[:first], *layers[-unit:]]
    begins = [kept[0], *kept[first - (units - 2) * unit :: unit]]
    with _only(model, kept), contextlib.ExitStack() as hooks:

        def watch(counter: LiveBytes) -> None:
            for layer in begins:
                handle = layer.register_forward_pre_hook(_marking(course, counter, units), with_kwargs=True)
                hooks.callback(handle.remove)

        live, course.kept = run(watch)
    course.live = np.asarray(live, dtype=np.int64)
    return course


@contextlib.contextmanager
def _only(model: Any, layers: list[nn.Module]) -> Iterator[None]:
    """Let a model have some of its layers."""
    inner = model.base_model
    every = inner.layers
    inner.set_submodule("layers", nn.ModuleList(layers))
    try:
        yield
    finally:
        inner.set_submodule("layers", every)


def _marking(course: Course, counter: LiveBytes, units: int) -> Callable[..., None]:
    """What a unit's first layer calls with its input: marks the place, and that of the input's gradient later."""

    def begin(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(course.began) == units:  # computed again, in the backward pass
            return
        number = len(course.began)
        course.began.append(len(counter.course))
        states = args[0] if args else kwargs.get("hidden_states")
        if isinstance(states, Tensor) and states.requires_grad:
            states.register_hook(lambda grad: course.ended.update({number: len(counter.course)}))

    return begin


def _extended(few: Course, more: Course, units: int) -> tuple[int, int] | None:
    """The bytes of a pass with `units` more units than `few`; `more` has one more.

    The second unit of `more` is the one that is repeated: without it both courses have the same storages.

    Returns:
        (bytes kept, most bytes); None where the courses differ in more than a unit.
    """
    if len(few.began) != _FEW or len(more.began) != _FEW + 1:
        return None
    a, b = few.live, more.live
    start, after, later = more.began[1:4]
    ends = [more.ended.get(n, len(b)) for n in (1, 2, 3)]  # of the second, third and last unit, in this order backwards
    ended = few.ended.get(1, len(a))
    left = np.concatenate([b[:start], b[after : ends[1]], b[ends[0] :]])
    if len(left) != len(a) or ended != ends[1] - (after - start) or not np.array_equal(b[:start], a[:start]):
        return None
    forward = b[start:after]
    backward, repeated = b[ends[2] : ends[1]], b[ends[1] : ends[0]]
    if len(forward) != later - after or len(backward) != len(repeated):
        return None
    whole = a + units * (left - a)
    candidates = [
        whole,
        forward,
    ]  # the first of the units that are repeated takes in the forward pass what it does here
    if len(
        repeated
    ):  # and the last of them in the backward pass as much more than the first as there are units between
        at = ends[2] - (after - start)
        candidates.append(whole[at : at + len(backward)] + units * (repeated - backward))
    return few.kept + units * (more.kept - few.kept), int(max(part.max() for part in candidates if len(part)))
