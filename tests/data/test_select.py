"""Conditions on named numbers: which rows remain, in words and whatever their order."""

from __future__ import annotations

import math
import random

import pytest

from alphapo_cli.data.select import RANDOM, Condition, check, select
from alphapo_cli.errors import UsageError

NAN = float("nan")


def kept(column, *conditions, keys=None, **more):
    keys = keys or [f"row {i}" for i in range(len(column))]
    return select({"a": column}, conditions, keys, **more).kept


def test_limits_include_their_ends():
    assert kept([1.0, 2.0, 3.0, 4.0], Condition("a", min=2, max=3)) == (1, 2)


@pytest.mark.parametrize(("keep", "rows"), [("lowest", (0, 1)), ("highest", (3, 4)), ("middle", (1, 2))])
def test_a_share_of_the_rows_in_the_order_of_the_number(keep, rows):
    column = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert kept(column, Condition("a", keep=keep, count=2)) == rows
    assert kept(column, Condition("a", keep=keep, share=0.4)) == rows


@pytest.mark.parametrize(("share", "of", "remaining"), [(0.95, 1000, 950), (0.29, 100, 29), (0.5, 3, 2), (0.01, 5, 1)])
def test_a_share_is_rounded_and_never_leaves_nothing(share, of, remaining):
    assert len(kept([float(i) for i in range(of)], Condition("a", keep="highest", share=share))) == remaining


def test_more_rows_than_there_are_is_all_of_them():
    assert kept([1.0, 2.0], Condition("a", keep="lowest", count=9)) == (0, 1)


def test_a_row_without_the_number_is_dropped_and_counted_apart():
    conditions = [Condition("a", keep="lowest", share=0.5)]
    found = select({"a": [3.0, NAN, 1.0, 2.0, 4.0]}, conditions, list("vwxyz"))
    assert found.kept == (2, 3)  # half of the four rows that have one
    assert found.counts(conditions) == {"the lowest 50 % by a": 2, "a: no value": 1}


def test_conditions_are_applied_to_what_is_left():
    first, second = Condition("a", max=2), Condition("b", keep="highest", share=0.5)
    numbers = {"a": [1.0, 2.0, 3.0, 0.0, 1.0], "b": [1.0, 2.0, 9.0, 4.0, 3.0]}
    found = select(numbers, [first, second], list("vwxyz"))
    assert found.kept == (3, 4)
    assert [(one.row, one.condition) for one in found.dropped] == [(2, 0), (0, 1), (1, 1)]


def test_the_order_of_the_rows_changes_nothing():
    draw = random.Random(0)
    rows = [(f"key {i}", draw.choice([1.0, 2.0, 3.0])) for i in range(60)]  # many ties
    conditions = [Condition("a", keep="lowest", share=0.7), Condition(RANDOM, keep="highest", share=0.5)]

    def chosen(order):
        found = select({"a": [value for _, value in order]}, conditions, [key for key, _ in order])
        return {order[row][0] for row in found.kept}

    first = chosen(rows)
    for _ in range(5):
        draw.shuffle(rows)
        assert chosen(rows) == first


def test_random_takes_other_rows_with_another_seed_and_every_row_alike():
    column = [0.0] * 200
    half = Condition(RANDOM, keep="lowest", share=0.5)
    draws = [set(kept(column, half, seed=seed)) for seed in range(40)]
    assert all(len(rows) == 100 for rows in draws)
    assert draws[0] != draws[1]
    # Each row is kept in about half of the draws: a binomial of 40, five standard errors.
    counts = [sum(row in rows for rows in draws) for row in range(200)]
    assert all(abs(count - 20) < 5 * math.sqrt(10) for count in counts)


def test_ties_beyond_a_share_go_by_the_key():
    assert kept([1.0] * 4, Condition("a", keep="lowest", count=2), keys=list("dbca")) == (1, 3)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Condition("ab", min=1), "data.select.by=ab: no such score or column; did you mean 'abc'? (there are: abc, random)"),
        (Condition("abc"), "keeps what?"),
        (Condition("abc", keep="low", share=0.5), "did you mean 'lowest'?"),
        (Condition("abc", keep="lowest"), "how many?"),
        (Condition("abc", keep="lowest", share=0.5, count=3), "how many?"),
        (Condition("abc", share=0.5), "of which rows?"),
        (Condition("abc", keep="lowest", share=0.0), "above 0 and at most 1"),
        (Condition("abc", keep="lowest", share=1.5), "above 0 and at most 1"),
        (Condition("abc", keep="lowest", count=0), "at least 1"),
        (Condition("abc", min=2, max=1), "no row can satisfy both"),
        (Condition("abc", min=NAN), "finite"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(condition, said):
    with pytest.raises(UsageError) as refused:
        check([condition], ["abc"], "data.select")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
