"""`probe.first_position`: where probability went at the first position of chosen answers, over training."""

from __future__ import annotations

import json

import pytest

from tests.conftest import BARE, TINY, strict_rows

LINE = ("train", *TINY, *BARE, "probe.samples=0")


@pytest.mark.slow
def test_it_is_there_when_asked_for_and_changes_nothing_else(alphapo):
    plain, asked = alphapo(*LINE), alphapo(*LINE, "probe.first_position=true")
    assert asked.code == 0, asked.err
    with_mass, without = (strict_rows(run.path / "metrics.jsonl") for run in (asked, plain))
    probed = [row for row in with_mass if "displacement/chosen" in row]
    for row in probed:
        parts = sum(row[f"mass/first/to_{what}"] for what in ("rejected", "end", "other"))
        assert row["mass/first/moved"] == pytest.approx(parts, abs=1e-9)
        assert 0 < row["mass/first/top10"] <= 1
    assert (probed[0]["mass/first/moved"], probed[0]["mass/first/top10_change"]) == (0, 0)
    assert probed[-1]["mass/first/moved"] > 0
    # As measuring the finished run has it.
    measured = alphapo("measure", str(asked.path))
    ours = json.loads((measured.path / "metrics.json").read_text())["metrics"]
    for key, value in probed[-1].items():
        if key.startswith("mass/"):
            assert ours[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    for row in with_mass:
        for key in [key for key in row if key.startswith("mass/")]:
            del row[key]
    assert with_mass == without
