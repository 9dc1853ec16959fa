"""Loss and every parameter's gradient against TRL's trainers on the same token ids, in float32.

TRL computes from its own collation, forward pass and log-probs; it is given token ids because its tokenisation (a BOS
where the tokenizer has one, an EOS where the text has none) is not what is compared. Batches are full: on ragged ones
TRL weighs pairs differently.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alphapo_cli.config.schema import TrainerConfig
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.modeling.layout.registry import LAYOUTS
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.objective.catalog import methods
from alphapo_cli.probe.scoring import score_pairs
from alphapo_cli.runtime.distributed import Processes
from tests import tiny

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
trl = pytest.importorskip("trl")

PAIRS = 8
TOLERANCE = 2e-5  # relative L2: two float32 forward and backward passes that add in different orders
SOURCES = [
    "generated",
    pytest.param("hh-rlhf", marks=pytest.mark.skipif(not tiny.HH.is_file(), reason="needs shared/data/hh-rlhf")),
]
# our overrides, TRL's trainer and its settings; gamma is absolute in TRL
METHODS = {
    "alphapo": (
        ("objective=alphapo",),
        "cpo", {"loss_type": "alphapo", "alpha": 0.25, "beta": 2.5, "simpo_gamma": 0.25, "cpo_alpha": 0.0},
    ),
    "alphapo, negative alpha": (
        ("objective=alphapo", "objective.shape.alpha=-1", "objective.beta=10", "objective.gamma_beta_ratio=0.3"),
        "cpo", {"loss_type": "alphapo", "alpha": -1.0, "beta": 10.0, "simpo_gamma": 3.0, "cpo_alpha": 0.0},
    ),
    "simpo": (
        ("objective=simpo",),
        "cpo", {"loss_type": "simpo", "alpha": 0.0, "beta": 2.5, "simpo_gamma": 0.25, "cpo_alpha": 0.0},
    ),
    "cpo": (
        ("objective=cpo", "objective.nll=0"),
        "cpo", {"loss_type": "sigmoid", "alpha": 0.0, "beta": 0.1, "cpo_alpha": 0.0},
    ),
    "dpo": (("objective=dpo",), "dpo", {"loss_type": "sigmoid", "beta": 0.1}),
    "dpo, hinge": (("objective=dpo", "objective/link=hinge"), "dpo", {"loss_type": "hinge", "beta": 0.1}),
    "ipo": (("objective=ipo",), "dpo", {"loss_type": "ipo", "beta": 0.1}),
    # A small exponent: it multiplies the round-off of the log-probs that TRL sums over a whole answer in float32.
    "alphapo_ratio": (
        ("objective=alphapo_ratio", "objective.shape.alpha=-0.1"),
        "dpo", {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": "alpha_divergence",
                "f_alpha_divergence_coef": 0.9},
    ),
}  # fmt: skip

# The library's methods, on real pairs where they are at hand. Where TRL departs from a paper or from us:
# its `sft` and CPO's NLL average over the tokens of the batch, so nll_scope=tokens here; its ORPO adds an NLL over
# prompt and completion, which is left out on both sides; its alpha divergence clamps at 80 where ours goes on
# straight from 30, which no pair reaches; its WPO has no limit of 1, which the authors' has; its SPPO sums both squares as ours does, the authors halve them.
LIBRARY = {
    "robust_dpo": ((), "dpo", {"loss_type": "robust", "beta": 0.1, "label_smoothing": 0.1}),
    "hinge": ((), "dpo", {"loss_type": "hinge", "beta": 0.05}),
    "ln_dpo": ((), "dpo", {"loss_type": "sigmoid_norm", "beta": 5.0}),
    "exo": ((), "dpo", {"loss_type": "exo_pair", "beta": 0.1, "label_smoothing": 1e-3}),
    "nca_pair": ((), "dpo", {"loss_type": "nca_pair", "beta": 0.01}),
    "bce": ((), "dpo", {"loss_type": "bco_pair", "beta": 0.01}),
    "sppo_hard": ((), "dpo", {"loss_type": "sppo_hard", "beta": 0.001}),
    "apo_zero": ((), "dpo", {"loss_type": "apo_zero", "beta": 0.1}),
    "apo_down": ((), "dpo", {"loss_type": "apo_down", "beta": 0.1}),
    "discopop": ((), "dpo", {"loss_type": "discopop", "beta": 0.05, "discopop_tau": 0.05}),
    "f_dpo_js": ((), "dpo", {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": "js_divergence"}),
    "f_dpo_forward_kl": ((), "dpo", {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": "forward_kl"}),
    "f_dpo_alpha": (
        (), "dpo", {"loss_type": "sigmoid", "beta": 0.1, "f_divergence_type": "alpha_divergence",
                    "f_alpha_divergence_coef": 0.5},
    ),
    "irpo": (
        ("objective.nll_scope=tokens",), "dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0], "beta": 0.1},
    ),
    "sft": (("objective.nll_scope=tokens",), "dpo", {"loss_type": "sft", "beta": 0.1}),
    "cpo": (
        ("objective.nll_scope=tokens",),
        "cpo", {"loss_type": "sigmoid", "alpha": 0.0, "beta": 0.1, "cpo_alpha": 1.0},
    ),
    "cpo_simpo": (
        ("objective.nll_scope=tokens",),
        "cpo", {"loss_type": "simpo", "alpha": 0.0, "beta": 2.5, "simpo_gamma": 0.25, "cpo_alpha": 0.05},
    ),
    "slic": (
        ("objective.nll=0", "objective.beta=0.1"), "cpo", {"loss_type": "hinge", "alpha": 0.0, "beta": 0.1, "cpo_alpha": 0.0},
    ),
    "orpo": (("objective.nll=0",), "orpo", {"beta": 0.1}),
    "ld_dpo": ((), "dpo", {"loss_type": "sigmoid", "beta": 0.1, "ld_alpha": 0.5}),
    "wpo": (
        ("objective.weight.clamp=false",), "dpo", {"loss_type": "sigmoid", "beta": 0.01, "use_weighting": True},
    ),
}  # fmt: skip
# Their weights multiply the error of a summed log-ratio. TRL sums log-probs in float32: near -1,000 nats, as on the first
# eight HH pairs, each sum is off by up to half a last digit, 3e-5, and so are these losses' gradients. There they are
# compared with float64 (below), with TRL on the shortest pairs, to what is lost there.
# The formulas are written from the papers, of the log-ratios of chosen and rejected.
STEEP: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # DiscoPOP (Lu et al. 2024, eq. 5), beta = tau = 0.05
    "discopop": lambda chosen, rejected: (
        -torch.sigmoid(rejected - chosen) * F.logsigmoid(0.05 * (chosen - rejected))
        + torch.sigmoid(chosen - rejected) * torch.exp(0.05 * (rejected - chosen))
    ),
    # f-DPO (Wang et al. 2024, table 1), beta = 0.1: f'(t) = -1/t and (1 - t^-0.5) / 0.5, up to constants
    "f_dpo_forward_kl": lambda chosen, rejected: -F.logsigmoid(0.1 * (torch.exp(-rejected) - torch.exp(-chosen))),
    "f_dpo_alpha": lambda chosen, rejected: -F.logsigmoid(0.2 * (torch.exp(-rejected / 2) - torch.exp(-chosen / 2))),
}


class Material:
    """A source's tokenizer, its first pairs as ids, a policy and a reference that differs from it."""

    def __init__(self, source: str, shortest: bool = False) -> None:
        texts = tiny.hh_dialogues()[:64] if source == "hh-rlhf" else tiny.dialogues(64, seed=1)
        self.tokenizer, every = tiny.encoded(texts, vocab=512, max_length=192)
        sizes = every.chosen.lengths + every.rejected.lengths
        self.pairs = every.select(np.argsort(sizes, kind="stable")[:PAIRS] if shortest else np.arange(PAIRS))
        # Weights of the size that training leaves: scores of a few nats a token, no saturated loss.
        self.policy = tiny.model(vocab=len(self.tokenizer), hidden_size=64, intermediate_size=96, spread=0.08)
        self.reference = tiny.perturbed(self.policy, seed=7, size=0.01)

    def scores(self, lm: Any) -> np.ndarray:
        """Summed log-probs of the chosen and the rejected answers (2, pairs), in nats."""
        pad = self.tokenizer.pad_token_id
        return score_pairs(PolicyModel(lm), self.pairs, batch_size=8, pad_id=pad, processes=Processes())

    def lost(self) -> float:
        """Half a last digit of the largest float32 sum, for the policy and for the reference."""
        return float(np.spacing(np.float32(np.abs(self.scores(self.policy)).max())))


@pytest.fixture(scope="module", params=SOURCES)
def material(request: pytest.FixtureRequest) -> Material:
    return Material(request.param)


def ours(material: Material, overrides: tuple[str, ...], folder: Path, layout: str) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradients) of one optimizer step of all pairs in four micro-batches, through the trainer itself."""
    objective = tiny.objective(*overrides)
    lm = copy.deepcopy(material.policy)
    reference = None
    if objective.needs_reference:
        scorer = PolicyModel(copy.deepcopy(material.reference), layout=layout)
        pad = material.tokenizer.pad_token_id
        reference = score_pairs(
            scorer, material.pairs, batch_size=3, pad_id=pad, processes=Processes(), objective=objective
        )
    cfg = TrainerConfig(per_device_train_batch_size=2, gradient_accumulation_steps=4, use_cpu=True)
    trainer = tiny.trainer(
        PolicyModel(lm, layout=layout), objective, material.pairs, cfg, folder, reference=reference,
        pad_id=material.tokenizer.pad_token_id,
    )  # fmt: skip
    loss = trainer.training_step(trainer.model, trainer.steps[0])
    return loss.item(), {n: p.grad for n, p in lm.named_parameters() if p.grad is not None}


def theirs(material: Material, kind: str, settings: dict[str, Any], folder: Path) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradients) of TRL's trainer on one batch of the same pairs."""
    from datasets import Dataset

    common: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [],
        "per_device_train_batch_size": PAIRS, "max_length": 4096,
    }  # fmt: skip
    lm = copy.deepcopy(material.policy)
    # A trainer wants a data set of its own; it is not what is compared.
    stand_in = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2)
    more = {"train_dataset": stand_in, "processing_class": material.tokenizer}
    if kind == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        trainer = ORPOTrainer(model=lm, args=ORPOConfig(**common, **settings), **more)
        batch = trainer.data_collator([cpo_row(material.pairs, i) for i in range(PAIRS)])
        lm.train()
        chosen, rejected, *_ = trainer.concatenated_forward(lm, batch)
        loss = -trainer.odds_ratio_loss(chosen, rejected)[0].mean()
        loss.backward()
        return loss.item(), {n: p.grad for n, p in lm.named_parameters() if p.grad is not None}
    if kind == "cpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        trainer = CPOTrainer(model=lm, args=CPOConfig(**common, **settings), **more)
        batch = trainer.data_collator([cpo_row(material.pairs, i) for i in range(PAIRS)])
    else:
        reference = copy.deepcopy(material.reference)
        trainer = trl.DPOTrainer(model=lm, ref_model=reference, args=trl.DPOConfig(**common, **settings), **more)
        batch = trainer.data_collator([dpo_row(material.pairs, i) for i in range(PAIRS)])
    lm.train()
    loss = trainer.compute_loss(lm, batch)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in lm.named_parameters() if p.grad is not None}


def dpo_row(pairs: TokenPairs, i: int) -> dict[str, list[int]]:
    pair = pairs[i]
    return {f"{name}_ids": getattr(pair, name).tolist() for name in ("prompt", "chosen", "rejected")}


def cpo_row(pairs: TokenPairs, i: int) -> dict[str, list[int]]:
    pair = pairs[i]
    prompt = pair.prompt.tolist()
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for name in ("chosen", "rejected"):
        answer = getattr(pair, name).tolist()
        row[f"{name}_input_ids"] = prompt + answer
        row[f"{name}_attention_mask"] = [1] * len(prompt + answer)
        row[f"{name}_labels"] = [-100] * len(prompt) + answer
    return row


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_every_gradient_equal_trl(method: str, material: Material, tmp_path: Path) -> None:
    overrides, kind, settings = METHODS[method]
    their_loss, their_gradients = theirs(material, kind, settings, tmp_path)
    for layout in LAYOUTS:
        our_loss, our_gradients = ours(material, overrides, tmp_path, layout)
        assert our_loss == pytest.approx(their_loss, rel=1e-5)
        assert our_gradients.keys() == their_gradients.keys()
        assert len(our_gradients) == len(list(material.policy.parameters()))
        for name, gradient in their_gradients.items():
            assert gradient.abs().max() > 0, name
            assert tiny.relative_error(our_gradients[name], gradient) <= TOLERANCE, (layout, name)


@pytest.fixture(scope="module")
def real() -> dict[bool, Material]:
    """Long pairs (the first), and the shortest."""
    source = "hh-rlhf" if tiny.HH.is_file() else "generated"
    return {shortest: Material(source, shortest) for shortest in (False, True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_the_librarys_methods_equal_trls(name: str, real: dict[bool, Material], tmp_path: Path) -> None:
    overrides, kind, settings = LIBRARY[name]
    material = real[name in STEEP]
    tolerance = TOLERANCE + (material.lost() if name in STEEP else 0.0)
    their_loss, their_gradients = theirs(material, kind, settings, tmp_path)
    our_loss, our_gradients = ours(material, (f"objective={name}", *overrides), tmp_path, "packed")
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for parameter, gradient in their_gradients.items():
        assert gradient.abs().max() > 0, parameter
        assert tiny.relative_error(our_gradients[parameter], gradient) <= tolerance, parameter


def exact(material: Material, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, dict[str, Tensor]]:
    """(mean loss, gradients) in float64, one plain forward pass an answer."""
    lm, reference = (copy.deepcopy(m).double() for m in (material.policy, material.reference))

    def log_ratio(prompt: list[int], answer: list[int]) -> Tensor:
        def summed(model: Any) -> Tensor:
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            assert logits.dtype == torch.float64
            return logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum()

        with torch.no_grad():
            start = summed(reference)
        return summed(lm) - start

    rows = [dpo_row(material.pairs, i) for i in range(PAIRS)]
    mean = torch.stack(
        [loss(*(log_ratio(r["prompt_ids"], r[f"{side}_ids"]) for side in ("chosen", "rejected"))) for r in rows]
    ).mean()
    mean.backward()
    return mean.item(), {n: p.grad for n, p in lm.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("name", STEEP)
def test_steep_losses_keep_to_float64_on_long_pairs(name: str, real: dict[bool, Material], tmp_path: Path) -> None:
    true_loss, truth = exact(real[False], STEEP[name])
    off = {}
    for who, (loss, gradients) in {
        "ours": ours(real[False], (f"objective={name}",), tmp_path, "packed"),
        "TRL's": theirs(real[False], *LIBRARY[name][1:], tmp_path),
    }.items():
        assert loss == pytest.approx(true_loss, rel=1e-5)
        assert gradients.keys() == truth.keys()
        off[who] = max(tiny.relative_error(g, truth[n]) for n, g in gradients.items())
    assert off["ours"] <= TOLERANCE
    assert off["TRL's"] <= real[False].lost()


def test_what_is_called_equal_to_trl_is_compared_here_at_the_settings_that_it_names() -> None:
    shown = {(name, overrides) for name, (overrides, *_) in LIBRARY.items()}
    shown |= {(overrides[0].removeprefix("objective="), overrides[1:]) for overrides, *_ in METHODS.values()}
    shown |= {("kto", ())}  # on unpaired rows: tests/objective/test_unpaired.py
    assert {(m.name, m.checked["TRL"]) for m in methods() if "TRL" in m.checked} <= shown


def test_the_pairs_are_what_they_are_meant_to_be(material: Material) -> None:
    # Equality with TRL would mean little on pairs of one length or on a policy that is its own reference.
    lengths = np.stack([material.pairs.prompt.lengths, material.pairs.chosen.lengths, material.pairs.rejected.lengths])
    assert len(material.pairs) == PAIRS
    assert (lengths.std(axis=1) > 5).all()
    mine, other = (material.scores(lm) for lm in (material.policy, material.reference))
    assert np.abs(mine - other).max() > 0.5
