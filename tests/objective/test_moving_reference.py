"""TR-DPO: a reference that follows the policy."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from alphapo_cli.errors import ConfigError, UsageError
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.training.moving_reference import MovingReference
from tests import tiny as small
from tests.conftest import Ran, strict_rows

LINE = ("objective=tr_dpo", "trainer.learning_rate=1e-3", "trainer.lr_scheduler_type=constant")


def losses(ran: Ran) -> list[float]:
    assert ran.code == 0, ran.err
    return [row["train/loss"] for row in strict_rows(ran.path / "metrics.jsonl") if "train/loss" in row]


def end(ran: Ran) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ran.path / "summary.json").read_text())["metrics"]
    return found


@pytest.mark.slow
def test_a_reference_that_is_always_the_policy_leaves_log_two(
    alphapo: Callable[..., Ran], tiny: tuple[str, ...]
) -> None:
    ran = alphapo("train", *tiny, *LINE, "objective.reference_every=1", "objective.reference_mix=1")
    # D = 0 at every step; two forward passes of one model, in train and in evaluation mode
    assert losses(ran) == pytest.approx([math.log(2)] * 4, abs=1e-6)
    assert end(ran)["rewards/margins"] == pytest.approx(0, abs=1e-6)  # the probe's rewards, too, against it


@pytest.mark.slow
def test_a_reference_that_moves_by_nothing_is_dpo(alphapo: Callable[..., Ran], tiny: tuple[str, ...]) -> None:
    moving = alphapo("train", *tiny, *LINE, "objective.reference_every=1", "objective.reference_mix=0")
    fixed = alphapo("train", *tiny, "objective=dpo", "objective.beta=0.05", *LINE[1:])
    assert losses(moving) == pytest.approx(losses(fixed), abs=1e-6)
    assert len(set(losses(moving))) == 4  # it does train
    for key, value in end(fixed).items():
        if value is not None and not key.startswith(("glassbox", "samples")):
            assert end(moving)[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key


@pytest.mark.slow
def test_settings_that_do_nothing_are_named(alphapo: Callable[..., Ran], tiny: tuple[str, ...]) -> None:
    late = alphapo("train", *tiny, *LINE, "objective.reference_every=5", "trainer.max_steps=4")
    assert "note: objective.reference_every=5: the reference never moves in a run of 4 steps" in late.err
    link = alphapo("train", *tiny, "objective=simpo", "objective/link=nca", f"model.reference={late.path}")
    assert "note: not read: gamma=0.25: the link 'nca' reads no margin" in link.err
    assert f"note: not read: model.reference={late.path}: objective 'simpo' compares with no reference" in link.err
    plain = alphapo("train", *tiny, *LINE, "objective.reference_every=4", "trainer.max_steps=4")
    assert "note:" not in plain.err


def test_the_soft_move_is_a_mean_of_weights() -> None:
    start, now = PolicyModel(small.model(seed=1)), PolicyModel(small.model(seed=2))
    moving = MovingReference(start, every=3, mix=0.25)
    before = copy.deepcopy(dict(moving.policy.named_parameters()))
    for step in (1, 2):
        moving.after_step(step, now)
    assert all(torch.equal(p, before[n]) for n, p in moving.policy.named_parameters())
    moving.after_step(3, now)
    theirs = dict(now.named_parameters())
    for name, weight in moving.policy.named_parameters():
        assert torch.allclose(weight, 0.75 * before[name] + 0.25 * theirs[name], atol=1e-6)
    other = MovingReference(start, every=3, mix=0.25)
    other.load(moving.state())
    assert all(torch.equal(a, b) for a, b in zip(other.policy.parameters(), moving.policy.parameters(), strict=True))


def test_what_cannot_move_is_refused() -> None:
    with pytest.raises(ConfigError, match="objective 'simpo' has no reference"):
        small.objective("objective=simpo", "objective.reference_every=4")
    with pytest.raises(UsageError, match="a model of the policy's shape"):
        MovingReference(PolicyModel(small.model()), 1, 1.0).check(PolicyModel(small.model(vocab=50)))
