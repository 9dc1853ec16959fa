"""A lean MLP leaves less behind for the backward pass, and nothing else changes, to the bit."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alphapo_cli.data.token_pairs import TokenPair
from alphapo_cli.modeling.layout import packed
from alphapo_cli.modeling.layout.batch import PairBatch
from alphapo_cli.modeling.layout.mlp_recompute import lean, restore
from alphapo_cli.modeling.policy import PolicyModel
from tests import tiny

INNER = 48
FAMILIES = ["llama", "qwen2", "qwen3", "mistral, window 8", "gemma2, soft-capped", "gemma3"]


class Storages(TorchDispatchMode):
    """Every storage that is made within."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.made.append(weakref.ref(tensor.untyped_storage()))
        return out

    def alive(self, nbytes: int) -> int:
        """How many of this size are there still."""
        return len({s.data_ptr() for ref in self.made if (s := ref()) is not None and s.nbytes() == nbytes})


def batch() -> PairBatch:
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> Any:
        return torch.randint(tiny.FIRST, 90, (n,), generator=generator).numpy()

    # 31 positions, of which the last layer reads 19: their sizes are no others' of the model
    return packed.collate([TokenPair(ids(13), ids(9), ids(11), columns={}, index=0)], pad_id=tiny.PAD)


def step(policy: PolicyModel) -> tuple[list[torch.Tensor], list[int]]:
    """(gradients, how many tensors of the inner width waited for the backward pass in the first and the last layer)."""
    with Storages() as storages:
        out = policy(batch()).logps
    assert isinstance(out, torch.Tensor)
    left = [storages.alive(4 * INNER * n) for n in (31, 19)]
    out.square().sum().backward()
    return [p.grad for p in policy.parameters() if p.grad is not None], left


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bf16", [False, True])
def test_the_same_gradients_from_half_as_many_tensors(family: str, bf16: bool) -> None:
    grads, left = [], []
    for leaner in (True, False):
        policy = PolicyModel(tiny.model(family), layout="packed", bf16=bf16).train()
        for layer in policy.lm.base_model.layers:
            if not leaner:
                restore(layer.mlp)
        made, waiting = step(policy)
        grads.append(made)
        left.append(waiting)
    assert len(grads[0]) == len(grads[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    if not bf16:
        assert left == [[2, 2], [4, 4]]


def test_adapters_keep_less_too() -> None:
    from peft import LoraConfig, get_peft_model

    def adapted() -> PolicyModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
            return PolicyModel(get_peft_model(tiny.model(), config), layout="packed").train()

    lean, full = adapted(), adapted()
    for layer in full.lm.get_base_model().base_model.layers:
        restore(layer.mlp)
    (grads, some), (expected, everything) = step(lean), step(full)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
    assert sum(some) < sum(everything)


@pytest.mark.parametrize("names", [("down_proj",), ("gate_proj", "up_proj", "down_proj")], ids=len)
def test_transposed_tensors_are_kept_as_they_are(names: tuple[str, ...]) -> None:
    """A projection that saves its input transposed gets its own numbers back, not others of the same shape."""

    class Transposing(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.weight @ x.flatten(0, 1).t()).t().view(*x.shape[:-1], -1)

    grads = []
    for leaner in (True, False):
        policy = PolicyModel(tiny.model(), layout="packed").train()
        for layer in policy.lm.base_model.layers:
            for name in names:
                plain = getattr(layer.mlp, name)
                setattr(layer.mlp, name, Transposing(plain.in_features, plain.out_features, bias=False))
                getattr(layer.mlp, name).weight = plain.weight
            if not leaner:
                restore(layer.mlp)
        grads.append(step(policy)[0])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_what_autocast_widens_is_wide_when_made_again() -> None:
    """On CUDA autocast takes powers, as in gelu_new, in float32; on the CPU products, which make a SiLU here."""

    class SiLU(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x, x.sigmoid()]).prod(0)

    grads = []
    for leaner in (True, False):
        policy = PolicyModel(tiny.model(), layout="packed", bf16=True).train()
        for layer in policy.lm.base_model.layers:
            layer.mlp.act_fn = SiLU()
            if not leaner:
                restore(layer.mlp)
        grads.append(step(policy)[0])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("what", ["weight", "output"])
def test_what_was_modified_in_place_is_an_error_as_without(what: str) -> None:
    """Not gradients of other numbers than the forward pass saw."""
    mlp = tiny.model().base_model.layers[0].mlp
    x = torch.ones(1, 5, 32, requires_grad=True)
    for leaner in (False, True):
        if leaner:
            lean(mlp)
        outputs: list[torch.Tensor] = []
        hook = mlp.up_proj.register_forward_hook(lambda module, args, out, seen=outputs: seen.append(out))
        made = mlp(x).sum()
        hook.remove()
        with torch.no_grad():
            (mlp.down_proj.weight if what == "weight" else outputs[0]).mul_(2)
        with pytest.raises(RuntimeError, match="modified"):
            made.backward()


def test_under_gradient_checkpointing_nothing_is_kept() -> None:
    policy = PolicyModel(tiny.model(), layout="packed").train()
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert step(policy)[1] == [0, 0]
