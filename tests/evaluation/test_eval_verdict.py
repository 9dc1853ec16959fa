"""What is said of an evaluation, a comparison and a generation: only what their figures bear out."""

from __future__ import annotations

import re

import pytest

from alphapo_cli.evaluation.compare import compare
from alphapo_cli.evaluation.formats import Annotation, Annotations
from alphapo_cli.evaluation.report import results_table
from alphapo_cli.evaluation.results import summarise
from alphapo_cli.evaluation.schema import StatisticsConfig
from alphapo_cli.evaluation.verdict import verdict
from alphapo_cli.generation.notes import verdict as of_generation
from alphapo_cli.plots.evaluation import evaluation_figure
from alphapo_cli.runtime.wording import level, per_cent


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
         "better than REF: win rate 74 % [66, 81], n = 256 (99 % interval), against REF"),
        (results(74.2, 62.0, 84.0, confidence=0.999), "better",
         "better than REF: win rate 74 % [62, 84], n = 256 (99.9 % interval), against REF"),
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
    ("wins", "said"),
    [
        (0, "the same answers: the two are one model: win rates"),
        (
            60,
            "the same answers: the two are one model, judged twice, and the win rates differ by the judge's own noise",
        ),
    ],
)
def test_one_model_judged_twice_is_no_better_than_itself(wins, said):
    """However sure it is that the judge changed its mind."""
    found = compare(annotated("one", 100 + wins, 256), annotated("one", 100, 256), resamples=1000)
    assert found.verdict["outcome"] == "the same answers"
    assert found.verdict["sentence"].startswith(said)
    assert found.distinguishable is False
    assert "distinguishable" not in found.sentence
    assert (found.p_value < 0.05) == (wins > 0)  # of the judgements
    other = compare(annotated("one", 160, 256), annotated("two", 100, 256), resamples=1000)
    assert other.distinguishable is True


@pytest.mark.parametrize(
    ("confidence", "shown"), [(0.95, "95 %"), (0.999, "99.9 %"), (0.999999, "99.9999 %"), (0.57, "57 %")]
)
def test_a_confidence_is_never_rounded_to_certainty(confidence, shown):
    assert per_cent(confidence) == shown


def test_the_level_of_several_evaluations_has_every_confidence():
    assert level([{"confidence": 0.9, "intervals_over": "prompts"}]) == "90 % over prompts"
    assert level([{}]) == "95 % over instructions"  # of an earlier version
    assert level([{"confidence": 0.999}, {}, {}]) == "95 % or 99.9 % over instructions"


@pytest.mark.parametrize("confidence", [0.95, 0.999])
def test_tables_pictures_and_sentences_name_the_confidence_alike(confidence):
    shown = {0.95: "95 %", 0.999: "99.9 %"}[confidence]
    rows = [
        Annotation(f"q{i}", "reference", f"answer {i}" * (1 + i % 5), 1.0 + i % 2, "REF", "MODEL") for i in range(40)
    ]
    found = {
        **summarise(rows, ["answer"] * 40, "no difficulty", StatisticsConfig(confidence=confidence, bootstrap=0)),
        "generator": "MODEL", "reference": "REF", "annotator": "J", "n_not_judged": 0, "n_outputs": 40, "n_reference": 40,
    }  # fmt: skip
    (text, *_) = results_table(found).columns[1].cells
    assert f"({shown} interval over instructions " in str(text)
    assert evaluation_figure(found).axes[0].get_title(loc="left") == f"Win rate, {shown} over instructions"
    both = compare(annotated("good", 180, 256), annotated("poor", 120, 256), resamples=1000, confidence=confidence)
    assert f"({shown} interval over instructions " in both.sentence
    if confidence != 0.95:
        assert both.verdict["sentence"].endswith(f" ({shown} intervals)")


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
