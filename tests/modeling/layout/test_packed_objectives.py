"""Under every objective, a step and a run of training in the packed layout are those in the padded one.

Through the trainer itself and in float64 (`tiny.Wide`), on rows of every kind that an objective reads; see
`tests.every_objective`. Every objective meets one architecture by default, and another among the slow tests; that all
that they read is the same on every architecture is in test_packed_outputs.py. Each with each is for the night.
"""

from __future__ import annotations

import copy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from alphapo_cli.data.token_pairs import TokenPair
from tests import tiny
from tests.every_objective import CASES, NAMES, data_of, guided, objective_of, step, trainer_of
from tests.pair_shapes import ARCHITECTURES, CORNERS, MODELS, drawn_pairs, model, pair_lists


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer")


def assert_same_step(lm: Any, name: str, kind: str, pairs: list[TokenPair], folder: Path) -> None:
    """Loss of each row, gradient of each parameter, what is logged and what the objective remembers, to 1e-10."""
    objective = objective_of(name)
    data = guided(lm, objective, data_of(objective, kind, pairs))
    packed, padded = (step(lm, layout, objective, data, folder) for layout in ("packed", "padded"))
    torch.testing.assert_close(packed.losses, padded.losses, rtol=1e-10, atol=1e-10)
    assert packed.gradients.keys() == padded.gradients.keys() == dict(lm.named_parameters()).keys()
    for parameter, expected in padded.gradients.items():
        assert expected.abs().max() > 0, parameter
        assert tiny.relative_error(packed.gradients[parameter], expected) <= 1e-10, parameter
    for found, known in ((packed.logged, padded.logged), (packed.memory, padded.memory)):
        assert found.keys() == known.keys()
        for key, value in known.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-10, atol=1e-10, err_msg=key)


def test_every_objective_is_here() -> None:
    assert {name for name, _ in CASES} == set(NAMES)
    assert {"alphapo", "dpo", "kto", "tdpo", "infonca", "triple_po", "tgdpo", "dmpo", "wpo"} < set(NAMES)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_objective_has_the_same_loss_and_gradients(name: str, kind: str, folder: Path) -> None:
    """The shapes that go wrong first, and four that are drawn for this objective."""
    assert_same_step(MODELS["llama"], name, kind, [*CORNERS, *drawn_pairs(f"{name} {kind}")], folder)


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "kind"), CASES)
@settings(max_examples=5)
@given(pairs=pair_lists)
def test_every_objective_has_them_whatever_the_pairs(
    name: str, kind: str, pairs: list[TokenPair], folder: Path
) -> None:
    assert_same_step(MODELS["llama"], name, kind, [*CORNERS, *pairs], folder)


OTHERS = [name for name in ARCHITECTURES if name != "llama"]
PRODUCT = [(*case, architecture) for case in CASES for architecture in OTHERS]


def chosen(seed: int) -> set[tuple[str, str, str]]:
    """Of `PRODUCT`, always the same: each case is in it, and each kind of rows with each architecture."""
    rng, found = Random(seed), set()
    for kind in sorted({kind for _, kind in CASES}):
        names = [name for name, k in CASES if k == kind]
        rng.shuffle(names)
        order = rng.sample(OTHERS, len(OTHERS))
        for i in range(max(len(names), len(order))):
            found.add((names[i % len(names)], kind, order[i % len(order)]))
    return found


PAIRWISE = chosen(seed=1)


def test_every_case_and_every_kind_on_every_architecture_are_among_the_chosen() -> None:
    assert set(PRODUCT) > PAIRWISE
    assert {(name, kind) for name, kind, _ in PAIRWISE} == set(CASES)
    assert {(kind, other) for _, kind, other in PAIRWISE} == {(k, other) for _, k in CASES for other in OTHERS}


@pytest.mark.parametrize(
    ("name", "kind", "architecture"),
    [pytest.param(*case, marks=pytest.mark.slow if case in PAIRWISE else pytest.mark.nightly) for case in PRODUCT],
)
def test_every_objective_has_them_on_other_architectures(name: str, kind: str, architecture: str, folder: Path) -> None:
    pairs = [*CORNERS, *drawn_pairs(f"{architecture} {name} {kind}")]
    assert_same_step(MODELS[architecture], name, kind, pairs, folder)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_float32_agrees_to_round_off_under_every_objective(name: str, kind: str, folder: Path) -> None:
    lm, objective = model("llama", spread=0.1), objective_of(name)
    data = guided(lm, objective, data_of(objective, kind, [*CORNERS, *tiny.token_pairs(8, seed=3, scale=0.1)]))
    packed, padded = (step(lm, layout, objective, data, folder) for layout in ("packed", "padded"))
    assert tiny.relative_error(packed.losses, padded.losses) <= 2e-5
    whole = (torch.cat([made.gradients[n].flatten() for n, _ in lm.named_parameters()]) for made in (packed, padded))
    assert 0 < tiny.relative_error(*whole) <= 2e-5


AT_START = [
    (name, kind) for name, kind in CASES if objective_of(name).needs_reference and name not in ("mrpo", "tgdpo")
]


# One in three here, the others with the slow tests.
@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(*case, marks=[pytest.mark.slow] if i % 3 else []) for i, case in enumerate(AT_START)],
)
def test_rounding_decides_nothing_where_the_policy_is_its_reference(name: str, kind: str, folder: Path) -> None:
    """In float32: every pair is a tie, and no branch of a loss goes by the sign of a log-ratio that is round-off."""
    lm, objective = model("llama", spread=0.1), objective_of(name)
    data = data_of(objective, kind, [*CORNERS, *tiny.token_pairs(8, seed=3, scale=0.1)])
    packed, padded = (step(lm, layout, objective, data, folder, at_start=True) for layout in ("packed", "padded"))
    if (
        objective.score.name in ("ratio_sum", "ratio_mean") and kind != "unpaired"
    ):  # rewards are log-ratios, nothing else
        assert packed.logged["train/rewards/accuracies"] == padded.logged["train/rewards/accuracies"] == 0.5
    assert tiny.relative_error(packed.losses, padded.losses) <= 2e-5
    whole = (torch.cat([made.gradients[n].flatten() for n, _ in lm.named_parameters()]) for made in (packed, padded))
    assert 0 < tiny.relative_error(*whole) <= 2e-5


# Everything that reaches an objective in its own way: a fixed and a moving reference, odds and an NLL, lists, unpaired
# rows with answers to other prompts, turns, a KL, a guide, statistics, and memories that steps leave behind.
CURVES = {
    "dpo": "pairs", "tr_dpo": "pairs", "orpo": "pairs", "infonca": "lists", "kto": "unpaired", "dmpo": "turns",
    "tdpo": "pairs", "tgdpo": "pairs", "wpo": "pairs", "beta_dpo": "pairs", "alpha_dpo": "pairs", "gamma_po": "pairs",
    "dpo_shift_linear": "pairs",
}  # fmt: skip


EVERY_DAY = ("dpo", "infonca", "kto", "dmpo", "tgdpo", "beta_dpo")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in EVERY_DAY else [pytest.mark.nightly]) for name in CURVES]
)
def test_fifty_logged_steps_draw_the_same_curves(name: str, folder: Path) -> None:
    """Everything that is logged at each step of a run: loss, log-probs, rewards, the gradient's norm, memories."""
    more = ("objective.reference_every=7",) if name == "tr_dpo" else ()
    objective = tiny.objective(f"objective={name}", *more)
    lm = model("llama", spread=0.1).double()
    pairs = [*CORNERS, *tiny.token_pairs(17, seed=6, scale=0.1)]
    data = guided(lm, objective, data_of(objective, CURVES[name], pairs))
    curves = []
    for layout in ("packed", "padded"):
        with tiny.Wide():
            trainer, logged = trainer_of(
                copy.deepcopy(lm), layout, objective, data, folder, per_device_train_batch_size=3,
                gradient_accumulation_steps=2, max_steps=50, learning_rate=1e-3,
            )  # fmt: skip
            trainer.train()
        curves.append([row for _, row in logged.rows])
        assert len(curves[-1]) == 50
    assert len({row["train/loss"] for row in curves[1]}) == 50
    for here, there in zip(*curves, strict=True):
        assert here.keys() == there.keys()
        for key, value in there.items():
            np.testing.assert_allclose(here[key], value, rtol=1e-8, atol=1e-8, err_msg=key)
