"""Quantised bases: what their weights are, by an independent dequantiser; what they compute; and what trains over them.

Errors of a chain of products: each tensor is rounded once, by u = eps / 2 of its dtype relative to its size, and R such
errors add up as independent ones, to u sqrt(R). R counts twelve tensors a layer (seven products, two norms, activation,
attention, residual) in either direction, and four of embedding and head; condition numbers are allowed for by a factor
of 4. In float32 every product of K terms also rounds its sums, by sqrt(K) u.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alphapo_cli.config.schema import LoraConfig, ModelConfig, TrainConfig, TrainerConfig
from alphapo_cli.modeling.adapters import add_lora
from alphapo_cli.modeling.loading import load_model
from alphapo_cli.modeling.locations import locate
from alphapo_cli.modeling.policy import PolicyModel, bare, inference, policy_of
from alphapo_cli.modeling.quantisation import dequantised, dequantised_model, quantisation_of, quantised_layers
from alphapo_cli.modeling.weight_hashes import state_hash
from tests import tiny

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra quant)"
)
# QLoRA (arXiv:2305.14314), appendix E: the values of NF4.
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
KINDS = ("nf4", "int8")
LAYERS, WIDTH = 2, 96  # the largest inner width of the model


def rounding(dtype: torch.dtype) -> float:
    """See the module."""
    unit = torch.finfo(dtype).eps / 2
    chain = math.sqrt(2 * 12 * LAYERS + 4)
    return 4 * unit * chain * (math.sqrt(WIDTH) if dtype == torch.float32 else 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny.model(hidden_size=64, intermediate_size=WIDTH, spread=0.15).save_pretrained(made)
    return made


def settings(kind: str, dtype: str = "float32") -> ModelConfig:
    return ModelConfig(quantization=kind, dtype=dtype, lora=LoraConfig(r=4))


def adapted(lm: Any, cfg: ModelConfig) -> Any:
    """Adapters that are neither zero nor small beside the weights."""
    made = add_lora(lm, cfg, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return made


def policy(lm: Any, *, bf16: bool = False, layout: str = "packed") -> PolicyModel:
    made = policy_of(lm, TrainConfig(trainer=TrainerConfig(bf16=bf16), layout=layout))
    return made.train()


def batch(model: PolicyModel, n: int = 3) -> Any:
    pairs = tiny.token_pairs(3, seed=4)
    return model.layout.collate([pairs[i] for i in range(n)], pad_id=tiny.PAD)


def gradients(model: PolicyModel) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.answers(batch(model)).sums.float().sub(1.0).square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def plain_weights(layer: Any) -> np.ndarray:
    """The weights of a quantised layer from its stored bytes, by the papers' formulas, in float64."""
    stored = {name: t.numpy() for name, t in layer.state_dict().items()}
    if "SCB" in stored:
        return stored["weight"].astype(np.float64) * stored["SCB"][:, None].astype(np.float64) / 127
    (packed,) = (t for name, t in stored.items() if "quant_state" in name)
    facts = json.loads(packed.tobytes())
    codes = stored["weight"].reshape(-1)
    values = NF4[np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)]
    scales = stored["weight.nested_quant_map"].astype(np.float64)[stored["weight.absmax"]]
    outer = stored["weight.nested_absmax"].astype(np.float64)
    scales = scales * np.repeat(outer, facts["nested_blocksize"])[: len(scales)] + facts["nested_offset"]
    return (values.reshape(-1, facts["blocksize"]) * scales[:, None]).reshape(facts["shape"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_the_papers(kind: str, folder: Path) -> None:
    lm = load_model(locate(str(folder)), settings(kind))
    before = dict(load_model(locate(str(folder)), ModelConfig()).named_modules())
    layers = quantised_layers(lm)
    assert len(layers) == 7 * LAYERS  # all linear layers, and not the output layer
    assert quantisation_of(lm) == kind
    for name, layer in layers.items():
        ours, plain = dequantised(layer, torch.float32), plain_weights(layer)
        assert np.abs(ours.numpy() - plain).max() <= 4 * 2**-24 * np.abs(plain).max(), name  # a few products in float32
        original = before[name].weight.detach().numpy()
        # Half the widest gap between two values (NF4: from -1 to the next, of a block's largest weight, whose scale is
        # itself rounded to 8 bits; int8: of 127 steps of a row's largest, of which float16 has sixteenths, and twice): rows
        # and columns are not mixed up.
        largest = np.abs(original).max(axis=1, keepdims=True) if kind == "int8" else np.abs(original).max()
        assert (
            np.abs(plain - original) <= largest * ((0.5 + 2 / 16) / 127 if kind == "int8" else 0.152 + 0.02)
        ).all(), name
        assert torch.equal(dequantised(layer, torch.bfloat16), ours.bfloat16())


@pytest.mark.parametrize(
    ("kind", "dtype", "bf16"),
    [("nf4", "float32", False), ("int8", "float32", False), ("nf4", "float32", True), ("int8", "bfloat16", False)],
)
def test_gradients_of_adapters_are_those_over_the_dequantised_model(
    kind: str, dtype: str, bf16: bool, folder: Path
) -> None:
    if bf16 or dtype == "bfloat16":
        tiny.needs_bf16()
    base = load_model(locate(str(folder)), settings(kind, dtype))
    whole = dequantised_model(base, torch.float32).float()
    original = load_model(locate(str(folder)), ModelConfig())
    model = policy(adapted(base, settings(kind, dtype)), bf16=bf16)
    ours = gradients(model)
    assert len(ours) == 2 * 7 * LAYERS
    theirs = gradients(policy(adapted(whole, settings("none"))))
    compute = torch.bfloat16 if bf16 or dtype == "bfloat16" else torch.float32
    worst = max(tiny.relative_error(g, theirs[name]) for name, g in ours.items())
    assert worst <= rounding(compute)
    # The base is in none of them, the tolerance can tell another base, and an evaluation in between changes nothing.
    apart = gradients(policy(adapted(original, settings("none"))))
    if compute == torch.float32:
        assert min(tiny.relative_error(g, apart[name]) for name, g in ours.items()) > 10 * rounding(compute)
    with inference(model):
        model.answers(batch(model))
    again = gradients(model)
    assert all(torch.equal(g, again[name]) for name, g in ours.items())


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_computes_what_training_does(kind: str, folder: Path) -> None:
    """So that a policy before its first step is its own reference, whatever else is in the batch."""
    model = policy(adapted(load_model(locate(str(folder)), settings(kind)), settings(kind)))
    before = state_hash(model.lm)
    training = model.answers(batch(model)).sums.detach()
    with inference(model):
        assert torch.equal(model.answers(batch(model)).sums, training)
        alone = model.answers(batch(model, 1)).sums
    assert (alone - training[:, :1]).abs().max() <= 4 * rounding(torch.float32) * training.abs().max()
    assert state_hash(model.lm) == before
    assert before != state_hash(load_model(locate(str(folder)), ModelConfig()))


@pytest.mark.parametrize(("kind", "dtype"), [("nf4", "float32"), ("int8", "float32"), ("nf4", "bfloat16")])
def test_a_merged_model_gives_the_log_probs_that_were_trained(kind: str, dtype: str, folder: Path) -> None:
    if dtype == "bfloat16":
        tiny.needs_bf16()
    lm = adapted(load_model(locate(str(folder)), settings(kind, dtype)), settings(kind, dtype)).eval()
    ids = torch.arange(3, 60).reshape(3, 19)
    with torch.no_grad():
        trained = lm(ids).logits.float().log_softmax(-1)
        merged = dequantised_model(lm)
        assert quantisation_of(merged) == "none"
        assert {p.dtype for p in merged.parameters()} == {getattr(torch, dtype)}
        assert not hasattr(merged.config, "quantization_config")
        found = merged(ids).logits.float().log_softmax(-1)
        assert torch.equal(lm(ids).logits.float().log_softmax(-1), trained)  # the trained model is as it was
        base = load_model(locate(str(folder)), ModelConfig(dtype=dtype))(ids).logits.float().log_softmax(-1)
    # Log-probs are differences of logits, each a sum of terms of the size of the largest logit.
    bound = rounding(getattr(torch, dtype)) * trained.abs().max().item()
    assert (found - trained).abs().max() <= bound
    assert (base - trained).abs().max() > bound


def test_a_copy_shares_the_base_and_nothing_that_trains(folder: Path) -> None:
    """The reference of a KL, or one that moves, beside a policy takes the adapters' memory and no second base."""
    model = policy(adapted(load_model(locate(str(folder)), settings("nf4")), settings("nf4")))
    other = model.copy()
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert (one.data_ptr() == two.data_ptr()) == (not one.requires_grad), name
    before = model.answers(batch(model)).sums.detach()
    with torch.no_grad():
        for p in other.parameters():
            if p.requires_grad:
                p.add_(1.0)
    assert torch.equal(model.answers(batch(model)).sums, before)
    assert not torch.equal(other.answers(batch(other)).sums, before)
    whole = copy.deepcopy(bare(model.lm))
    assert all(
        a.data_ptr() != b.data_ptr() for a, b in zip(whole.parameters(), bare(model.lm).parameters(), strict=True)
    )
