"""The table that `alphapo train` prints at the end."""

from __future__ import annotations

from alphapo_cli.cli.train import report


def test_a_win_rate_comes_with_its_interval_and_says_over_what(capsys):
    bounds = {"glassbox/true_win_rate/low": 0.551, "glassbox/true_win_rate/high": 0.672}
    report({"state": "complete", "metrics": {"glassbox/true_win_rate": 0.6125, "rewards/margins": 0.5, **bounds}})
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().err.splitlines()]
    assert ["true win rate against the start", "+0.6125"] in rows
    assert ["95 % interval over prompts", "0.5510 to 0.6720"] in rows
    assert ["reward margin", "+0.5000"] in rows


def test_a_run_of_an_earlier_version_has_none(capsys):
    report({"state": "complete", "metrics": {"glassbox/true_win_rate": 0.6125}})
    assert "over prompts" not in capsys.readouterr().err
