"""Weights that stay in their files: read when something needs their numbers, and let go of again.

A process that is going to keep a part of a model need not hold all of it. transformers' own `from_pretrained` loads such
a model: it is given tensors that know their shapes alone, and what it does with them (renaming, casting, joining of
experts, tying) is kept with the tensor and done whenever that is read. So the weights are those of a model loaded
whole, by construction. A forward pass over it reads each weight where it is used.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from alphapo_cli.errors import UsageError, first_line

_aten = torch.ops.aten
# What is done when a tensor is read. Of anything else the numbers are read at once.
_LATER = {
    _aten.detach, _aten.alias, _aten._to_copy, _aten.clone, _aten.view, _aten._unsafe_view, _aten._reshape_alias,
    _aten.t, _aten.transpose, _aten.permute, _aten.unsqueeze, _aten.squeeze, _aten.select, _aten.slice, _aten.split,
    _aten.split_with_sizes, _aten.unbind, _aten.stack, _aten.cat,
}  # fmt: skip
_SAME = {_aten.detach, _aten.alias}
# Weights that are kept once read, outside of `fill`: the experts of a layer are picked from its tensors one by one.
_RECENT = 2


_Recent = OrderedDict[int, tuple[Tensor, Tensor]]


class CannotDefer(Exception):
    """Something was done to a weight that stays in its file that only a weight in memory can have done to it."""


class Deferred(Tensor):
    """A tensor on the CPU without numbers of its own, and how they are had."""

    _make: Callable[[], Tensor]
    _unrounded: Callable[[], Tensor] | None  # the same before it was cast to its dtype
    _recent: _Recent | None  # of weights: those read last

    @staticmethod
    def __new__(
        cls, like: Tensor, make: Callable[[], Tensor], unrounded: Callable[[], Tensor] | None = None
    ) -> Deferred:
        """Make a tensor of the shape and dtype of `like`, whose numbers `make` returns."""
        cpu = torch.device("cpu")
        made: Deferred = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=cpu
        )
        made._make, made._unrounded, made._recent = make, unrounded, None
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        """Its type, shape and dtype."""
        return f"Deferred({list(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Another tensor of the same numbers; they are not copied, because they are in a file."""
        made: Any = Deferred(_shape(self), self._make, self._unrounded)
        if isinstance(self, nn.Parameter):
            made = nn.Parameter(made, requires_grad=self.requires_grad)
        made._recent = self._recent
        memo[id(self)] = made
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute with the numbers, or keep in mind what is to be computed."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is _aten.copy_.default and isinstance(args[0], Deferred):
            return args[0]._overwrite(args[1])
        if func._schema.is_mutable and isinstance(args[0], Deferred):
            raise CannotDefer(f"{func} changes a weight in place")
        device = kwargs.get("device")
        here = device is None or torch.device(device).type == "cpu"
        later = func.overloadpacket in _LATER and func is not _aten.view.dtype
        if later and here and all(isinstance(t, Deferred) for t in tensors):
            return _later(func, args, kwargs)
        return func(*tree_map(numbers, args), **tree_map(numbers, kwargs))

    def _overwrite(self, given: Tensor) -> Deferred:
        """Hold numbers from now on: those of an adapter, in place of the layer that it was a copy of."""
        if not isinstance(self, nn.Parameter):  # an alias: what it is an alias of would not change
            raise CannotDefer("a view of a weight is overwritten")
        held = numbers(given).to(self.dtype).expand(self.shape).clone()
        self._make, self._unrounded = lambda: held, None
        return self


def _later(func: Any, args: Any, kwargs: Any) -> Any:
    """The result or results of `func` on deferred tensors, deferred."""
    elsewhere = {**kwargs, "device": torch.device("meta")} if "device" in kwargs else kwargs
    shapes = func(*tree_map(_shape, args), **elsewhere)

    def compute() -> Any:
        return func(*tree_map(numbers, args), **kwargs)

    if not isinstance(shapes, Tensor):
        return [Deferred(shape, functools.partial(_one_of, compute, n)) for n, shape in enumerate(shapes)]
    packet, source = func.overloadpacket, args[0]
    if packet in _SAME:
        return Deferred(shapes, functools.partial(numbers, source), source._unrounded)
    narrower = packet is _aten._to_copy and source.is_floating_point() and shapes.is_floating_point()
    return Deferred(shapes, compute, functools.partial(numbers, source) if narrower else None)


def _one_of(compute: Callable[[], Sequence[Tensor]], n: int) -> Tensor:
    return compute()[n]


def _shape(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def numbers(value: Any) -> Any:
    """The numbers of a deferred tensor; anything else as it is."""
    if not isinstance(value, Deferred):
        return value
    kept = value._recent
    made = value._make() if kept is None or id(value) not in kept else kept[id(value)][1]
    if made.shape != value.shape or made.dtype != value.dtype:  # its `data` was set, which nothing tells
        raise CannotDefer(f"a weight {list(made.shape)} was made one {list(value.shape)} of {value.dtype}")
    if kept is not None:
        kept[id(value)] = value, made  # the first, so that no other one gets its id
        while len(kept) > _RECENT:
            kept.popitem(last=False)
    return made


def read_once(tensor: Tensor) -> Tensor:
    """The numbers of a weight, of which nothing is kept; in the dtype of its file, where that is a floating one."""
    if not isinstance(tensor, Deferred):
        return tensor.detach()
    if tensor._recent is not None:
        tensor._recent.clear()
    made: Tensor = numbers(tensor) if tensor._unrounded is None else tensor._unrounded()
    if tensor._recent is not None:
        tensor._recent.clear()
    return made


def is_deferred(module: nn.Module) -> bool:
    """Whether weights of a module are in files."""
    return any(isinstance(p, Deferred) for p in module.parameters())


def held_whole(module: nn.Module) -> list[str]:
    """The names of a module's parameters that are in memory."""
    return [name for name, p in module.named_parameters() if not isinstance(p, Deferred)]


@contextlib.contextmanager
def weights_left_in_files() -> Iterator[None]:
    """Within it, `from_pretrained` leaves the weights in their files, unless it quantises them.

    Where transformers looks for the tensors of its files it takes a mapping of names to tensors, too. Its argument
    state_dict does the same, but then it is told no directory, and so finds neither code of the model nor its settings
    of generation; hence the private method.
    """
    from transformers import PreTrainedModel

    own = getattr(PreTrainedModel, "_load_pretrained_model", None)
    if own is None:  # another version of transformers: all weights are read
        yield
        return

    def load(model: Any, state: Any, files: Sequence[str] | None, config: Any, *more: Any, **keys: Any) -> Any:
        if state is None and files and config.hf_quantizer is None:
            state = {name: tensor for file in files for name, tensor in _stored(Path(file)).items()}
        return own(model, state, files, config, *more, **keys)

    PreTrainedModel._load_pretrained_model = staticmethod(load)
    try:
        yield
    finally:
        PreTrainedModel._load_pretrained_model = staticmethod(own)


def settle(model: nn.Module) -> None:
    """Read the buffers of a model that was loaded so, and keep few of its weights at a time from now on."""
    recent: _Recent = OrderedDict()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if isinstance(buffer, Deferred):
                module._buffers[name] = numbers(buffer).clone()
    for parameter in model.parameters():
        if isinstance(parameter, Deferred):
            parameter._recent = recent


def _stored(file: Path) -> dict[str, Deferred]:
    """The tensors of a file, by their names in it."""
    from transformers.modeling_utils import load_state_dict

    shapes = load_state_dict(file, map_location="meta")
    return {name: Deferred(shape, functools.partial(_read, file, name)) for name, shape in shapes.items()}


def _read(file: Path, name: str) -> Tensor:
    """A tensor of a file, mapped into memory: it takes room where it is looked at, and the system may take that back."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as stored:
                tensor: Tensor = stored.get_tensor(name)
                return tensor
        whole: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return whole[name]
    except (SafetensorError, OSError, ValueError, RuntimeError, LookupError, UnpicklingError) as error:
        raise UsageError(
            f"{file}: the weight {name} cannot be read ({first_line(error)}); copy the model's directory whole"
        ) from error


def merge_later(layer: Any) -> None:
    """Let peft merge the adapters of one layer whenever its weights are read; what it makes of them is not kept."""
    base, own = layer.get_base_layer(), copy.deepcopy(layer)
    inner = own.get_base_layer()

    def merged(name: str) -> Tensor:
        deferred = dict(inner._parameters)
        try:
            for key, p in deferred.items():
                if p is not None:
                    inner._parameters[key] = nn.Parameter(numbers(p).clone(), requires_grad=False)
            own.merge()
            made: Tensor = inner._parameters[name].detach()
            return made
        finally:
            inner._parameters.update(deferred)
            own.merged_adapters.clear()

    for name, p in list(base._parameters.items()):
        if p is not None:
            made = Deferred(_shape(p), functools.partial(merged, name))
            base._parameters[name] = nn.Parameter(made, requires_grad=p.requires_grad)
    layer.merged_adapters.extend(layer.active_adapters)
