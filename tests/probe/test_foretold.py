"""Scores of the probe pairs in training (`probe.scores`): what they foretold, and that nothing else changes."""

from __future__ import annotations

import json
import math

import pytest

from alphapo_cli.probe.score_names import NAMES
from alphapo_cli.runtime.wording import who_falls
from tests.conftest import BARE, TINY, strict_rows

LINE = ("train", *TINY, *BARE, "objective=dpo", "probe.samples=0", "probe.pairs=24")


def ranks(xs: list[float]) -> list[float]:
    return [sum(other < x for other in xs) + (sum(other == x for other in xs) + 1) / 2 for x in xs]


def correlation(xs: list[float], ys: list[float]) -> float:
    a, b = ranks(xs), ranks(ys)
    x, y = math.fsum(a) / len(a), math.fsum(b) / len(b)
    product = math.fsum((p - x) * (q - y) for p, q in zip(a, b, strict=True))
    return product / math.sqrt(math.fsum((p - x) ** 2 for p in a) * math.fsum((q - y) ** 2 for q in b))


@pytest.mark.slow
def test_what_the_scores_of_step_0_foretold_is_followed_and_nothing_else_changes(alphapo):
    plain, asked = alphapo(*LINE), alphapo(*LINE, "probe.scores=true")
    assert asked.code == 0, asked.err
    pairs = strict_rows(asked.path / "probe.jsonl")
    first, last = ([row for row in pairs if row["step"] == step] for step in (0, pairs[-1]["step"]))
    assert {*NAMES, "idealised_margin"} <= first[0].keys()
    assert not {*NAMES} & last[0].keys()
    probed = [row for row in strict_rows(asked.path / "metrics.jsonl") if "displacement/chosen" in row]
    assert not any(key.startswith("foretold/") for key in probed[0])  # nothing has moved yet
    for name in NAMES:
        expected = correlation([row[name] for row in first], [row["displacement/chosen"] for row in last])
        assert probed[-1][f"foretold/{name}"] == pytest.approx(expected, abs=1e-9), name
        assert probed[-1][f"foretold/{name}/low"] < expected < probed[-1][f"foretold/{name}/high"]
    said = json.loads((asked.path / "summary.json").read_text())["verdict"]["sentences"]
    ends = [probed[-1][f"foretold/ches{end}"] for end in ("", "/low", "/high")]
    sentence = who_falls(ends[0], (ends[1], ends[2]), 24)
    assert sentence in said
    assert f"verdict: {sentence}" in asked.err

    # As measuring the finished run has it.
    measured = json.loads(alphapo("measure", str(asked.path), "--json", "-").out.splitlines()[-1])
    assert measured["correlations"]["ches"]["rho"] == pytest.approx(ends[0], abs=0.02)  # two near ranks may swap
    assert measured["foretold"].startswith("CHES ")
    assert measured["metrics"]["ranking/idealised_accuracy"] == probed[-1]["ranking/idealised_accuracy"]

    rows, without = (strict_rows(run.path / "metrics.jsonl") for run in (asked, plain))
    assert [{k: v for k, v in row.items() if not k.startswith("foretold/")} for row in rows] == without


@pytest.mark.parametrize(
    ("rho", "low", "high", "said"),
    [
        (-0.41, -0.5, -0.31, "CHES predicts who falls: rho = -0.41 [-0.50, -0.31], n = 1,256"),
        (0.02, -0.1, 0.14, "CHES does not predict who falls: rho = +0.02 [-0.10, +0.14], n = 1,256"),
        (0.4, 0.3, 0.5, "CHES predicts who falls the wrong way round (pairs that it warns of fell less): rho = +0.40"),
    ],
)
def test_the_sentence_says_what_the_interval_bears_out(rho, low, high, said):
    assert who_falls(rho, (low, high), 1256).startswith(said)
