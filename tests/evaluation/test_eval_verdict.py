"""What is said of an evaluation, a comparison and a generation: only what their figures bear out."""

from __future__ import annotations

import re

import pytest

from alphapo_cli.evaluation.compare import compare
from alphapo_cli.evaluation.formats import Annotation, Annotations
from alphapo_cli.evaluation.verdict import verdict
from alphapo_cli.generation.notes import verdict as of_generation


def results(win, low, high, n=256, **more):
    return {
        "win_rate": win,
        "win_rate_interval": [low, high],
        "n_total": n,
        "reference": "REF",
        "confidence": 0.95,
        **more,
    }


@pytest.mark.parametrize(
    ("found", "outcome", "said"),
    [
        (results(74.2, 68.5, 79.2), "better", "better than REF: win rate 74 % [68, 79], n = 256, against REF"),
        (results(31.0, 25.0, 37.0), "worse", "worse than REF: win rate 31 % [25, 37], n = 256, against REF"),
        (results(52.0, 46.0, 58.0), "no evidence either way",
         "no evidence either way: win rate 52 % [46, 58], n = 256, against REF"),
        (results(60.0, 44.0, 74.0, n=40), "too few pairs",
         "too few pairs to tell (n = 40): win rate 60 % [44, 74], n = 40, against REF"),
        (results(90.0, 77.0, 96.0, n=40), "better", "better than REF: win rate 90 % [77, 96], n = 40, against REF"),
        (results(74.2, 66.0, 81.0, confidence=0.99), "better",
         "better than REF: win rate 74 % [66, 81], n = 256 (99% interval), against REF"),
        ({"win_rate": None, "reference": "REF"}, "no evidence either way", "nothing was judged against REF"),
    ],
)  # fmt: skip
def test_an_evaluation(found, outcome, said):
    judged = verdict(found)
    assert (judged["outcome"], judged["sentence"]) == (outcome, said)


def test_no_figure_of_it_has_the_name_of_one_in_per_cent():
    """Who flattens results.json would read the one for the other."""
    found = results(74.2, 68.5, 79.2)
    assert not verdict(found).keys() & found.keys()
    assert verdict(found)["share_won"] == pytest.approx(0.742)


def test_the_reference_is_named_by_what_it_is():
    judged = verdict(results(74.0, 68.0, 79.0), "the model before training")
    assert judged["sentence"].endswith("against REF, the model before training")
    assert judged["interval"] == [0.68, 0.79]


def annotated(name, wins, n):
    rows = tuple(
        Annotation(f"q{i}", "reference", f"{name} {i}", 2.0 if i < wins else 1.0, "REF", name) for i in range(n)
    )
    return Annotations(f"{name}.json", rows)


@pytest.mark.parametrize(
    ("a", "b", "n", "outcome", "said"),
    [
        (180, 120, 256, "distinguishable", "good is better than poor: win rates against the same reference, good 70 %"),
        (120, 180, 256, "distinguishable", "poor is better than good: win rates"),
        (130, 128, 256, "no evidence either way", "no evidence either way: win rates"),
        (22, 20, 40, "too few pairs", "too few pairs to tell (n = 40): win rates"),
    ],
)
def test_a_comparison(a, b, n, outcome, said):
    found = compare(annotated("good", a, n), annotated("poor", b, n), resamples=1000)
    assert found.verdict["outcome"] == outcome
    assert found.verdict["sentence"].startswith(said)
    assert len(re.findall(rf"\d+ % \[\d+, \d+\], n = {n}", found.verdict["sentence"])) == 2


@pytest.mark.parametrize(
    ("cut", "empty", "outcome", "said"),
    [
        (1.0, 0.0, "cut", "raise it (generation.max_new_tokens=80)"),
        (0.1, 0.8, "empty", "answers are empty: see the chat template"),
        (0.1, 0.0, "usable", "answers cut by the token limit 10 % ["),
    ],
)
def test_a_generation(cut, empty, outcome, said):
    found = of_generation({"answers": 50, "share_cut": cut, "share_empty": empty}, 40)
    assert found["outcome"] == outcome
    assert said in found["sentence"]
    assert "n = 50" in found["sentence"]
