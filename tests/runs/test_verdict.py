"""What is said of a training: only what its readings bear out."""

from __future__ import annotations

import json
import re

import pytest

from alphapo_cli.cli.run import _report
from alphapo_cli.runs.verdict import verdict


def rows(wins=(), margins=(), down=0.5, both=0.2, norms=(), **last):
    """Readings at steps 0, 10, 20, ...; the last has `last`."""
    steps = max(len(wins), len(margins), 2)
    found = []
    for n in range(steps):
        row = {"step": 10 * n, "displacement/share_chosen_down": down, "displacement/quadrant/down_down": both,
               "displacement/chosen": -0.1}  # fmt: skip
        if n < len(wins):
            row["glassbox/true_win_rate"] = wins[n]
        if n < len(margins):
            row["rewards/margins"] = margins[n]
        found.append(row)
    found[-1] |= last
    return [*found, *({"step": 1 + n, "train/grad_norm": norm} for n, norm in enumerate(norms))]


def judged(found, answers=256, pairs=256):
    return verdict(found, answers=answers, pairs=pairs, max_grad_norm=1.0)


@pytest.mark.parametrize(
    ("wins", "answers", "outcome", "said"),
    [
        ((0.5, 0.6, 0.7), 256, "better", "better than the start: true win rate 70 % [64, 75], n = 256"),
        ((0.5, 0.3), 256, "worse", "worse than the start: true win rate 30 % [25, 36], n = 256"),
        ((0.5, 0.54), 256, "no evidence either way", "no evidence either way: true win rate 54 % [48, 60], n = 256"),
        ((0.5, 0.6), 40, "no evidence either way", "too few answers to tell (n = 40): true win rate 60 % [44, 74]"),
    ],
)
def test_against_the_start(wins, answers, outcome, said):
    found = judged(rows(wins), answers)
    assert found.outcome == outcome
    assert found.sentences[0].startswith(said)
    assert "against the model before training" in found.sentences[0]


def test_a_run_that_ended_worse_than_it_was():
    """The case of the practitioner: 0.54 at step 64, 0.31 at step 128, the margin still growing."""
    found = judged(rows((0.5, 0.54, 0.31), margins=(0.0, 1.0, 2.0)))
    assert (found.outcome, found.best_step) == ("worse", 10)
    assert any("step 10 was better than the last" in s and "over-optimisation" in s for s in found.sentences)


def test_a_higher_reading_that_cannot_be_told_apart_is_not_called_better():
    found = judged(rows((0.5, 0.62, 0.6)))
    assert found.best_step == 10
    assert not any("better than the last" in s for s in found.sentences)


def test_without_a_win_rate_nothing_is_better():
    found = judged(rows(margins=(0.0, 5.0), **{"rewards/accuracies": 1.0}), answers=None)
    assert (found.outcome, found.win_rate, found.best_step) == ("not measured", None, None)
    assert found.sentences[0].startswith("quality not measured")
    assert not any("better" in s for s in found.sentences)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"down": 0.96},
            "nearly every chosen answer became less likely, 96 % [93, 98], n = 256 pairs, mean change -0.1 nats",
        ),
        (
            {"down": 0.1, "displacement/chosen": 0.04},
            "10 % [7, 14], n = 256 pairs, mean change +0.04 nats per token: no",
        ),
        ({"both": 0.6}, "both answers became less likely in 60 %"),
        ({"samples/repetition": 0.4}, "repeat themselves: 40 % of their 4-grams in 256 answers"),
        ({}, "no curve warns"),
    ],
)
def test_what_the_curves_say(settings, said):
    assert any(said in s for s in judged(rows(**settings)).sentences)


@pytest.mark.parametrize(("pairs", "said"), [(1, "100 % [5, 100], n = 1 pair, mean"), (9, "n = 9 pairs, mean")])
def test_few_pairs_say_nothing_of_the_curves(pairs, said):
    (curves,) = (s for s in judged(rows(down=1.0, both=1.0), pairs=pairs).sentences if "less likely" in s)
    assert curves.startswith("too few pairs to read the curves by: chosen answers became less likely in 100 %")
    assert said in curves


@pytest.mark.parametrize(("norms", "share"), [((2.0, 3.0, 0.5), 2 / 3), ((0.5, 0.9), 0.0), ((), None)])
def test_clipped_steps(norms, share):
    found = judged(rows(norms=norms))
    assert found.clipped == share
    assert any("only its direction counts" in s for s in found.sentences) == (share is not None and share > 0.5)


def test_in_the_summary_and_on_stderr(trained):
    judged = json.loads((trained.path / "summary.json").read_text())["verdict"]
    assert judged["outcome"] in ("better", "worse", "no evidence either way")
    assert judged["n"] == len(json.loads((trained.path / "samples" / "reference.json").read_text()))
    for sentence in judged["sentences"]:
        assert f"verdict: {sentence}\n" in trained.err
    assert re.search(rf"next: alphapo generate \S*{trained.path.name}\n", trained.err)


def test_of_a_run_with_an_evaluation_the_training_says_nothing_of_missing_win_rates(tmp_path, capsys):
    """Data of one's own: the training takes no win rate, and the evaluation has one."""
    training = judged(rows(**{"rewards/accuracies": 1.0}), answers=None).as_json
    assert "no win rate was taken" in training["sentences"][0]
    said = "worse than glassbox-base: win rate 31 % [25, 37], n = 256, against glassbox-base, the model before training"
    found = {
        "metrics": {"eval/win_rate": 0.31, "eval/n_total": 256, "eval/avg_length": 33, "eval/standard_error": 0.025},
        "verdict": {"outcome": "worse", "sentence": said, "interval": [0.25, 0.37], "n": 256}, "eval": "runs/eval-x",
    }  # fmt: skip
    _report(found, {"verdict": training, "step": 20}, tmp_path)
    err = capsys.readouterr().err
    assert "no win rate" not in err
    lines = err.splitlines()
    assert f"verdict: {said}" in lines
    assert any(line.startswith("verdict on the training: chosen answers became less likely") for line in lines)
    assert lines.index(f"verdict: {said}") < next(i for i, line in enumerate(lines) if "on the training" in line)
    assert "31 % [25, 37], n = 256" in err.split("verdict")[0]  # in the table, too
    assert "2.5 points" in err
    assert "average length, characters" in err
    assert lines[-1].startswith("next: alphapo compare runs/eval-x ")
