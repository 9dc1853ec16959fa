"""Objectives that remember: the same step however it is cut up, with the statistics that numpy gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from alphapo_cli.config.schema import TrainerConfig
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.scoring import score_pairs
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.training.trainer import PreferenceTrainer
from tests import tiny
from tests.conftest import Ran, strict_rows

PAIRS = 12
STATEFUL = ["kto_pair", "bco", "alpha_dpo", "gamma_po", "beta_dpo"]


def trained(objective: Objective, folder: Path, size: int, steps: int) -> tuple[list[float], PreferenceTrainer]:
    """Losses of `steps` steps of all pairs in micro-batches of `size`, plain gradient descent, and the trainer."""
    lm = tiny.model(spread=0.15)
    pairs = tiny.token_pairs(PAIRS, seed=4)
    other = PolicyModel(tiny.perturbed(copy.deepcopy(lm), seed=5, size=0.05))
    reference = score_pairs(other, pairs, batch_size=4, pad_id=tiny.PAD, processes=Processes())
    cfg = TrainerConfig(
        per_device_train_batch_size=size, gradient_accumulation_steps=PAIRS // size, use_cpu=True, max_steps=steps
    )
    trainer = tiny.trainer(PolicyModel(lm), objective, pairs, cfg, folder, reference=reference)
    losses = []
    for step in range(steps):
        lm.zero_grad()
        losses.append(trainer.training_step(trainer.model, trainer.steps[step]).item())
        with torch.no_grad():
            for p in lm.parameters():
                p -= 0.02 * p.grad if p.grad is not None else 0.0
    return losses, trainer


@pytest.mark.parametrize("name", STATEFUL)
def test_how_a_step_is_cut_up_changes_nothing(name: str, tmp_path: Path) -> None:
    objective = tiny.objective(f"objective={name}")
    runs = [trained(objective, tmp_path, size, 3) for size in (12, 6, 3)]
    losses, one = runs[0]
    assert len({round(x, 6) for x in losses}) == 3  # it does learn
    for other_losses, other in runs[1:]:
        # Two float32 passes that add in different orders, three steps long.
        assert other_losses == pytest.approx(losses, rel=2e-5, abs=1e-6)
        for kind, memory in one.part_states.items():
            for key, value in memory.items():
                assert torch.allclose(other.part_states[kind][key], value, rtol=1e-4, atol=1e-5), (kind, key)
        for a, b in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
            assert tiny.relative_error(b.detach(), a.detach()) < 1e-5


def test_a_schedule_moves_what_a_memory_is_made_with(tmp_path: Path) -> None:
    """Half of beta-DPO's pairs are dropped by a step at the end of a schedule from 0 to 0.5, none at its beginning."""
    moving = tiny.objective(
        "objective=beta_dpo", "objective.weight.drop=0", "objective/schedule=linear",
        "objective.schedule.of=weight.drop", "objective.schedule.end=0.5",
    )  # fmt: skip
    _, trainer = trained(moving, tmp_path, 12, 1)
    assert trainer.part_states["weight"]["kept"] == 1
    trainer.state.global_step = trainer.order.total_steps
    trainer.training_step(trainer.model, trainer.steps[0])
    assert trainer.part_states["weight"]["kept"] == 0.5


def answers(objective: Objective, seed: int) -> tuple[AnswerLogProbs, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 20, (2, 30), generator=generator).double()
    sums = -lengths * torch.rand(2, 30, generator=generator, dtype=torch.float64) * 2
    reference = sums + torch.randn(2, 30, generator=generator, dtype=torch.float64) * 2
    given = AnswerLogProbs(sums, lengths, reference, index=torch.arange(30))
    return given, sums - reference, lengths


def after(objective: Objective, seeds: list[int]) -> StepContext:
    context = objective.start
    for seed in seeds:
        given, _, _ = answers(objective, seed)
        context = StepContext(0.0, objective.update(context.states, objective.observe(given, context)))
    return context


def test_kto_measures_each_half_against_the_other() -> None:
    objective = tiny.objective("objective=kto_pair")
    given, ratio, _ = answers(objective, 3)
    z_w, z_l = np.maximum(ratio.numpy().mean(1), 0)
    r = 0.1 * ratio.numpy()
    expected = 1 / (1 + np.exp(r[0] - 0.1 * z_l)) + 1 / (1 + np.exp(0.1 * z_w - r[1]))
    assert objective(given, after(objective, [3])).loss.numpy() == pytest.approx(expected, rel=1e-12)


def test_bco_shifts_by_the_mean_of_everything_so_far() -> None:
    objective = tiny.objective("objective=bco", "objective.beta=0.3")
    given, ratio, _ = answers(objective, 2)
    rewards = [0.3 * answers(objective, seed)[1].numpy() for seed in (1, 2)]
    d = np.concatenate([r.ravel() for r in rewards]).mean()
    expected = np.log1p(np.exp(d - rewards[1][0])) + np.log1p(np.exp(rewards[1][1] - d))
    assert objective(given, after(objective, [1, 2])).loss.numpy() == pytest.approx(expected, rel=1e-12)
    assert ratio.shape == (2, 30)


def test_alpha_dpo_keeps_exponential_means() -> None:
    objective = tiny.objective("objective=alpha_dpo", "objective.margin.alpha=0.3")
    mean, spread = 0.0, 1.0
    for seed in (1, 2, 3):
        given, ratio, lengths = answers(objective, seed)
        per = (ratio / lengths).numpy()
        g = per[0] - per[1]
        mean, spread = 0.9 * mean + 0.1 * g.mean(), 0.9 * spread + 0.1 * g.std(ddof=1)
    a = (given.sums / lengths).numpy()
    m = 2.5 * (a[0] - a[1] - 0.15 - 0.3 * (g - mean) / spread)
    assert objective(given, after(objective, [1, 2, 3])).loss.numpy() == pytest.approx(np.log1p(np.exp(-m)), rel=1e-10)


def test_gamma_po_finds_the_shares_that_minimise_its_objective() -> None:
    """Many steps: the result is the minimum, where p's slope is the same for every pair."""
    objective = tiny.objective("objective=gamma_po", "objective.margin.steps=400", "objective.margin.tau=3")
    given, _, lengths = answers(objective, 5)
    context = after(objective, [5])
    c = objective.compare(objective.score_function(given), given, context)
    gaps = 2.5 * ((given.sums / lengths)[0] - (given.sums / lengths)[1]).numpy()
    margins = c.offset.numpy()  # gamma n p
    p = margins / (0.375 * 30)
    assert p.sum() == pytest.approx(1, rel=1e-9)
    slope = 3 * (1 + np.log(30 * p)) + 0.375 / (1 + np.exp(gaps - margins))
    assert slope == pytest.approx(np.full(30, slope[0]), rel=1e-6)
    assert (np.argsort(margins) == np.argsort(gaps)).all()  # larger gaps get larger margins
    # A queue of earlier gaps joins in.
    assert float(after(objective, [5, 6]).states["margin"]["population"]) == 60


def test_gamma_po_with_a_large_gamma_is_finite_in_float32() -> None:
    """One step takes a share to e^-160, below float32's 1e-45; the next ones bring it back."""
    line = ("objective=gamma_po", "objective.beta=100", "objective.gamma_beta_ratio=1.6", "objective.margin.tau=0.5")
    objective = tiny.objective(*line)
    given, _, _ = answers(objective, 5)
    context = after(objective, [5])
    narrow = replace(given, sums=given.sums.float(), lengths=given.lengths.float())
    # Margins of some hundred, whose last float32 digit is 3e-5.
    assert objective(narrow, context).loss.numpy() == pytest.approx(objective(given, context).loss.numpy(), abs=1e-2)


def test_beta_dpo_keeps_its_share_and_moves_beta() -> None:
    objective = tiny.objective("objective=beta_dpo", "objective.beta=0.1")
    given, ratio, _ = answers(objective, 7)
    context = after(objective, [7])
    result = objective(given, context).loss
    keeps = result != 0
    assert keeps.sum() == 24  # of 30
    gaps = (ratio[0] - ratio[1]).numpy()
    mean = 0.1 * gaps.mean()
    beta = max(1e-3, 0.1 * (1 + 0.6 * (gaps[keeps.numpy()].mean() - mean)))
    expected = np.where(keeps.numpy(), np.log1p(np.exp(-beta * gaps)) / 0.8, 0)
    assert result.numpy() == pytest.approx(expected, rel=1e-10)


def kept_pairs(objective: Objective, given: AnswerLogProbs, steps: int = 4) -> list[tuple[int, ...]]:
    """Which pairs have a loss, at each of the first steps if all have the same pairs."""
    context, found = objective.start, []
    for _ in range(steps):
        context = StepContext(0.0, objective.update(context.states, objective.observe(given, context)))
        found.append(tuple(torch.nonzero(objective(given, context).loss).flatten().tolist()))
    return found


def test_beta_dpo_draws_by_the_runs_seed_the_step_and_the_pair() -> None:
    """By nothing else, such as the place of a pair in its batch."""
    seeds = [tiny.objective("objective=beta_dpo", seed=seed) for seed in (0, 1, 2**32 - 1)]
    given, _, _ = answers(seeds[0], 7)
    draws = [kept_pairs(objective, given) for objective in seeds]
    assert len({tuple(draw) for draw in draws}) == 3
    assert all(len(set(draw)) > 1 for draw in draws)
    assert kept_pairs(tiny.objective("objective=beta_dpo", seed=1), given) == draws[1]
    # Once the threshold of a step is known, a pair is kept or not by itself: alone in a batch as among the others.
    objective = seeds[1]
    context = StepContext(0.0, objective.update(objective.start.states, objective.observe(given, objective.start)))
    whole = objective(given, context).loss
    for order in ([29, 3, 17], [5]):
        assert given.index is not None
        assert given.reference is not None
        part = replace(
            given, sums=given.sums[:, order], lengths=given.lengths[:, order], reference=given.reference[:, order],
            index=given.index[order],
        )  # fmt: skip
        assert torch.equal(objective(part, context).loss, whole[order])


@pytest.mark.slow
def test_kept_pairs_are_a_sample_by_weight() -> None:
    """A sample of one of three pairs, with weights exp(-z^2/2): each is kept as often as its share of the weights."""
    objective = tiny.objective("objective=beta_dpo", "objective.weight.drop=0.5", "objective.weight.momentum=0")
    ratio = torch.tensor([[0.5, 2.0, -1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    ones, counts, draws = torch.ones(2, 3, dtype=torch.float64), np.zeros(3), 3000
    gaps = ratio[0].numpy()
    z = (gaps - gaps.mean()) / gaps.std(ddof=1)
    shares = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    for i in range(draws):
        given = AnswerLogProbs(ratio - 1, ones, -ones, index=torch.arange(3) + 3 * i)
        context = StepContext(0.0, objective.update(objective.start.states, objective.observe(given, objective.start)))
        kept = objective(given, context).loss != 0
        assert kept.sum() == 1
        counts += kept.numpy()
    # Four standard errors of a share of 3,000 draws; the draws are the same in every run.
    assert np.abs(counts / draws - shares).max() < 4 * np.sqrt(0.25 / draws)


@pytest.mark.slow
def test_two_seeds_draw_differently_in_a_run(alphapo: Callable[..., Ran], tiny: tuple[str, ...]) -> None:
    """All pairs in every step, so that two seeds of a run differ in nothing but what is drawn."""
    line = ("train", *tiny, "trainer.learning_rate=1e-3", "trainer.per_device_train_batch_size=64")
    for name, draws in (("dpo", False), ("beta_dpo", True), ("sampo", True)):
        runs = [alphapo(*line, f"objective={name}", f"seed={seed}") for seed in (0, 1)]
        assert [ran.code for ran in runs] == [0, 0], runs[0].err
        one, other = (
            [row["train/loss"] for row in strict_rows(ran.path / "metrics.jsonl") if "train/loss" in row]
            for ran in runs
        )
        # Adding 64 pairs in another order: a few last digits of float32, through four steps.
        assert (one != pytest.approx(other, rel=1e-4)) == draws, name


def test_outlying_pairs_are_mostly_left_out() -> None:
    objective = tiny.objective("objective=beta_dpo")
    context = objective.start
    given, ratio, _ = answers(objective, 9)
    far = ((ratio[0] - ratio[1]) - (ratio[0] - ratio[1]).mean()).abs() > 4
    assert 3 <= far.sum() <= 15
    left_out = torch.zeros(30)
    for _ in range(40):
        context = StepContext(0.0, objective.update(context.states, objective.observe(given, context)))
        left_out += objective(given, context).loss == 0
    assert left_out.sum() == 40 * 6
    assert left_out[far].mean() > 2 * left_out[~far].mean()


def test_the_controller_moves_towards_its_target_and_stops_at_its_ends() -> None:
    objective = tiny.objective("objective=alphapo_adaptive", "objective.schedule.start=0.2")

    def alpha(memory: object) -> object:
        return objective.at(StepContext(0.0, memory)).parts["shape"].settings["alpha"]

    memory = objective.start.states
    assert alpha(memory) == 0.2
    memory = objective.on_probe(memory, {"displacement/chosen": -0.3})  # the chosen side has fallen: alpha goes down
    assert alpha(memory) == pytest.approx(-0.1, abs=1e-15)
    memory = objective.on_probe(memory, {"displacement/chosen": 0.5})
    assert alpha(memory) == pytest.approx(0.4, abs=1e-15)
    memory = objective.on_probe(memory, {"displacement/chosen": None})
    assert alpha(memory) == pytest.approx(0.4, abs=1e-15)
    assert alpha(objective.on_probe(memory, {"displacement/chosen": -10.0})) == -1.0
    assert alpha(objective.on_probe(memory, {"displacement/chosen": 10.0})) == 2.0
