"""The order of pairs: every pair once an epoch, whatever the split."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphapo_cli.config.schema import TrainerConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.training.data_order import DataOrder, StepIndices, probe_every

small = st.integers(1, 5)


def schedule(
    pairs: int, micro: int, accumulation: int, world: int, *, seed: int = 0, epochs: float = 1.0, max_steps: int = -1
) -> DataOrder:
    cfg = TrainerConfig(
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        max_steps=max_steps,
    )
    return DataOrder.of(cfg, pairs, world, seed)


def dealt(s: DataOrder, step: int) -> list[int]:
    """Pairs with weight 1 of all processes of a step."""
    found = []
    for rank in range(s.world):
        for indices, weights in s.micro_batches(step, rank):
            assert len(indices) == len(weights) <= s.micro_pairs
            found += [int(i) for i, w in zip(indices, weights, strict=True) if w == 1.0]
            assert set(weights) <= {0.0, 1.0}
    return found


@given(st.integers(1, 60), small, small, small, st.integers(0, 3), st.integers(1, 3))
def test_every_pair_once_an_epoch(
    pairs: int, micro: int, accumulation: int, world: int, seed: int, epochs: int
) -> None:
    s = schedule(pairs, micro, accumulation, world, seed=seed, epochs=epochs)
    assert s.total_steps == epochs * s.steps_per_epoch
    for epoch in range(epochs):
        steps = range(epoch * s.steps_per_epoch, (epoch + 1) * s.steps_per_epoch)
        sizes = [len(dealt(s, step)) for step in steps]
        assert sorted(itertools.chain.from_iterable(dealt(s, step) for step in steps)) == list(range(pairs))
        assert all(size == s.pairs_per_step for size in sizes[:-1])
        assert 1 <= sizes[-1] <= s.pairs_per_step


@given(st.integers(1, 40), small, small, small, st.integers(0, 3))
def test_every_process_works_as_often_and_is_never_idle(
    pairs: int, micro: int, accumulation: int, world: int, seed: int
) -> None:
    # a gradient reduction waits for every process, so each needs as many micro-batches, and at least one pair in each
    s = schedule(pairs, micro, accumulation, world, seed=seed, epochs=2)
    for step in range(s.total_steps):
        counts = {len(s.micro_batches(step, rank)) for rank in range(world)}
        assert len(counts) == 1
        assert all(len(i) >= 1 for rank in range(world) for i, _ in s.micro_batches(step, rank))
        assert counts.pop() <= accumulation
        assert sorted(dealt(s, step)) == sorted(s.pairs(step).tolist())


@pytest.mark.parametrize("pairs", [1, 7, 8, 21, 64])
def test_the_split_does_not_change_what_a_step_holds(pairs: int) -> None:
    splits = [(8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 2, 4), (1, 1, 8)]
    all_steps = [
        [sorted(dealt(s, step)) for step in range(s.total_steps)]
        for s in (schedule(pairs, *split, seed=3, epochs=3) for split in splits)
    ]
    assert all(steps == all_steps[0] for steps in all_steps)


def test_epochs_and_seeds_are_shuffled_differently_and_repeatably() -> None:
    s = schedule(32, 8, 1, 1, seed=1, epochs=2)
    first, second = (np.concatenate([s.pairs(step) for step in range(4 * e, 4 * e + 4)]) for e in range(2))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(32))
    other = schedule(32, 8, 1, 1, seed=2, epochs=2)
    assert not np.array_equal(first, np.concatenate([other.pairs(step) for step in range(4)]))
    again = schedule(32, 8, 1, 1, seed=1, epochs=2)
    assert np.array_equal(first, np.concatenate([again.pairs(step) for step in range(4)]))


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [(1.0, -1, 3), (2.0, -1, 6), (0.5, -1, 2), (0.01, -1, 1), (1.0, 2, 2), (1.0, 50, 50), (1 / 3, -1, 1)],
)
def test_how_many_steps(epochs: float, max_steps: int, steps: int) -> None:
    # 21 pairs, 8 a step: two full steps and one of 5 an epoch
    assert schedule(21, 4, 2, 1, epochs=epochs, max_steps=max_steps).total_steps == steps


def test_epoch_counts_whole_passes() -> None:
    s = schedule(21, 4, 2, 1, epochs=2)
    assert [s.epoch(step) for step in (0, 3, 6)] == [0.0, 1.0, 2.0]


def test_a_resumed_sampler_goes_on_where_it_was() -> None:
    assert list(StepIndices(5)) == [0, 1, 2, 3, 4]
    assert list(StepIndices(5, start=3)) == [3, 4]


@pytest.mark.parametrize("per_step", [2, 8, 16, 32, 128, 512])
@pytest.mark.parametrize("pairs", [32, 231, 256])
def test_the_default_probe_costs_less_than_a_tenth_of_training(per_step: int, pairs: int) -> None:
    """Forward passes over the probe against three for each training pair, without the first and the last reading."""
    every = probe_every(None, pairs, per_step)
    assert pairs / 3 <= 0.1 * every * per_step
    assert every == 16 or pairs / 3 >= 0.05 * every * per_step  # no rarer than that takes


def test_a_probe_as_often_as_asked() -> None:
    assert probe_every(5, 256, 8) == 5


@pytest.mark.parametrize("pairs", [1, 8, 13, 16])
def test_pairs_trained_on_are_counted_in_ragged_steps_too(pairs: int) -> None:
    schedule = DataOrder(pairs, micro_pairs=2, accumulation=2, world=2, total_steps=9, seed=0)
    for steps in (range(0), range(9), range(3, 8)):
        assert schedule.pairs_in(steps) == sum(len(schedule.pairs(step)) for step in steps)


def test_the_given_order_and_stages() -> None:
    """given: the data's own order in each epoch; stages: one after the other, shuffled within, anew in each epoch."""

    def epochs(order: str, stages: np.ndarray | None = None) -> list[list[int]]:
        cfg = TrainerConfig(per_device_train_batch_size=4, num_train_epochs=2, order=order)
        s = DataOrder.of(cfg, 10, 1, 0, stages)
        steps = [s.pairs(step).tolist() for step in range(s.total_steps)]
        return [list(itertools.chain(*steps[:3])), list(itertools.chain(*steps[3:]))]

    assert epochs("given") == [list(range(10))] * 2
    assert epochs("shuffled", np.ones(10)) == epochs("shuffled")
    stages = np.array([2.0, 1, 3, 1, 2, 3, 1, 2, 3, 1])
    first, second = epochs("stages", stages)
    for one in (first, second):
        assert [stages[i] for i in one] == sorted(stages)
        assert sorted(one) == list(range(10))
    assert first != second
    for missing in (None, np.array([1.0] * 9 + [np.nan])):
        with pytest.raises(UsageError, match='the pairs have no column "stage"'):
            epochs("stages", missing)
