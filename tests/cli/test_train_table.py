"""The table that `alphapo train` prints at the end."""

from __future__ import annotations

from pathlib import Path

from alphapo_cli.cli.train import report


def rows(capsys):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().err.splitlines()]


def test_a_win_rate_comes_with_its_interval_and_of_how_many_answers(capsys):
    """The interval that was recorded, not one made from the rate."""
    bounds = {"glassbox/true_win_rate/low": 0.551, "glassbox/true_win_rate/high": 0.682}
    metrics = {"glassbox/true_win_rate": 0.6125, "rewards/margins": 0.5, **bounds}
    report({"state": "complete", "metrics": metrics, "verdict": {"n": 256}}, Path("runs/x"))
    found = rows(capsys)
    assert ["true win rate against the start", "61 % [55, 68], n = 256"] in found
    assert ["reward margin (reward units)", "+0.5000"] in found


def test_a_run_of_an_earlier_version_has_none(capsys):
    report({"state": "complete", "metrics": {"glassbox/true_win_rate": 0.6125}}, Path("runs/x"))
    assert ["true win rate against the start", "61 %"] in rows(capsys)
