"""`alphapo compare`: the paired difference, its interval, its p-value, and the words."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alphapo_cli.plots.evaluation import evaluation_figure
from alphapo_cli.runtime.statistics.paired import paired_test
from tests.evaluation.eval_world import Case, alphapo, one_line, write


def rows(
    name: str, preferences: list[float | None], judge: str = "a_judge", reference: str = "r"
) -> list[dict[str, Any]]:
    return [
        {"instruction": f"q{i}", "output_1": f"{reference}{i}", "generator_1": "base", "output_2": f"{name}{i}",
         "generator_2": name, "annotator": judge, "preference": x}
        for i, x in enumerate(preferences)
    ]  # fmt: skip


def compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], a: Any, b: Any, *more: str
) -> tuple[dict[str, Any], str]:
    code = alphapo("compare", write(tmp_path / "a.json", a), write(tmp_path / "b.json", b), "--json", "-", *more)
    assert code == 0
    sentence, found = capsys.readouterr().out.splitlines()
    return json.loads(found), sentence


def test_the_table_says_whose_answers_are_better_and_what_p_can_be(tmp_path, capsys):
    """Of 200 random signs the least p is 1/201; 21 instructions of 30 are won, and 30 rates have an n."""
    a = rows("A", [1.9] * 21 + [1.1] * 9)
    files = write(tmp_path / "a.json", a), write(tmp_path / "b.json", rows("B", [1.0] * 21 + [1.2] * 9))
    assert alphapo("compare", *files, "--resamples", "200") == 0
    said = capsys.readouterr().err
    assert "30: A better on 21, worse on 9" in said
    assert "p <= 0.005, the least of 200 random signs" in said


def test_difference_is_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Instructions differ wildly, the two models by a constant: unpaired this would drown."""
    rng = random.Random(0)
    base = [1.05 + 0.9 * rng.random() for _ in range(200)]
    found, sentence = compared(tmp_path, capsys, rows("A", [x + 0.02 for x in base]), rows("B", base))
    assert found["difference"] == pytest.approx(2.0, abs=1e-9)
    assert 0 < found["interval"][0] < 2.0 < found["interval"][1] < 4.0  # a rare large difference may be unseen
    assert found["p_value"] < 0.01
    assert found["distinguishable"] is True
    assert "win rate of A is 2.00 points above that of B on 200 instructions" in sentence
    assert "95 % interval over instructions +0." in sentence
    assert sentence.endswith("distinguishable at the 0.05 level")
    assert "not distinguishable" not in sentence


def test_noise_is_not_distinguishable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(3)
    a, b = ([1 + rng.random() for _ in range(100)] for _ in range(2))
    found, sentence = compared(tmp_path, capsys, rows("A", a), rows("B", b))
    d = np.array(a) - np.array(b)
    assert found["difference"] == pytest.approx(100 * d.mean())
    error = 100 * d.std(ddof=1) / math.sqrt(100)
    assert found["interval"][0] == pytest.approx(found["difference"] - 1.96 * error, abs=0.15 * error)
    assert found["interval"][1] == pytest.approx(found["difference"] + 1.96 * error, abs=0.15 * error)
    two_sided = math.erfc(abs(found["difference"]) / error / math.sqrt(2))
    # The two rows added to 100 make the error 5 % larger here.
    assert found["p_value"] == pytest.approx(two_sided, abs=0.03)
    assert "not distinguishable" in sentence


def test_swapping_the_two_mirrors_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(4)
    a, b = ([1 + rng.random() for _ in range(50)] for _ in range(2))
    one, _ = compared(tmp_path, capsys, rows("A", a), rows("B", b))
    two, _ = compared(tmp_path, capsys, rows("B", b), rows("A", a))
    assert one["difference"] == pytest.approx(-two["difference"], abs=1e-12)
    assert one["interval"] == pytest.approx([-two["interval"][1], -two["interval"][0]], abs=1e-9)
    assert one["p_value"] == pytest.approx(two["p_value"], abs=1e-12)
    assert one["better"] == two["worse"]


def test_p_values_are_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    draws = [np.clip(rng.normal(size=40) * 0.3, -1, 1) for _ in range(300)]
    found = [paired_test(d, 0.95, 400, seed).p_value for seed, d in enumerate(draws)]
    # 300 draws of a uniform: the largest gap of the distribution function stays below 0.08 in 96 % of the cases. The
    # larger of two p-values is a little too large: here by 0.02 (the two rows added to 40 with a variance of 0.09).
    gaps = np.sort(found) - (np.arange(300) + 0.5) / 300
    assert gaps.min() > -0.08
    assert gaps.max() < 0.16
    assert min(found) > 0


class TestWhatTheRowsCannotShow:
    def test_fewer_than_six_that_differ(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        a, b = [2.0] * 5 + [1.5] * 15, [1.0] * 5 + [1.5] * 15
        found, sentence = compared(tmp_path, capsys, rows("A", a), rows("B", b))
        assert found["p_value"] >= 0.0625
        assert found["interval"][0] <= 0
        assert sentence.endswith("; only 5 differ, and fewer than 6 cannot be told apart at this level")
        found, sentence = compared(tmp_path, capsys, rows("A", [2.0] * 6), rows("B", [1.0] * 6))
        assert found["interval"][0] > 0
        assert sentence.endswith("distinguishable at the 0.05 level")

    def test_other_answers_judged_alike(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found, sentence = compared(tmp_path, capsys, rows("A", [1.5] * 50), rows("B", [1.5] * 50))
        assert (found["identical"], found["p_value"]) == (0, 1.0)
        assert found["interval"][0] < 0 < found["interval"][1]
        assert sentence.endswith("; no instruction was judged differently")

    def test_the_same_answers_judged_twice(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A judge at a temperature above zero disagrees with itself."""
        a, b = rows("A", [1.2] * 10), rows("B", [1.3] * 10)
        for one, other in zip(a, b, strict=True):
            other["output_2"] = one["output_2"]
        found, sentence = compared(tmp_path, capsys, a, b)
        assert found["identical"] == 10
        assert sentence.endswith("every instruction, so that only the judge's own noise is compared")
        assert found["verdict"]["outcome"] == "the same answers"
        assert found["distinguishable"] is False

    def test_one_instruction_is_singular(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _, sentence = compared(tmp_path, capsys, rows("A", [2.0]), rows("B", [1.0]))
        assert "that of B on 1 instruction (95 %" in sentence


def test_only_what_both_were_judged_on_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = rows("A", [2.0, 1.0, None, 1.5, 1.5])
    b = rows("B", [1.0, 1.0, 2.0, None])
    found, _ = compared(tmp_path, capsys, a, b)
    assert (found["n"], found["left_out"], found["difference"]) == (2, 3, 50.0)


@pytest.mark.slow
def test_results_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Case(tmp_path / "one", generator="one")
    two = Case(tmp_path / "two", generator="two")
    assert one.replay("statistics.bootstrap=0") == 0
    assert two.replay("statistics.bootstrap=0") == 0
    capsys.readouterr()
    assert alphapo("compare", one.out, two.out, "--json", tmp_path / "c.json") == 0
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["win_rate_a"] == pytest.approx(one.results()["win_rate"])
    assert found["win_rate_b"] == pytest.approx(two.results()["win_rate"])
    assert found["difference"] == pytest.approx(found["win_rate_a"] - found["win_rate_b"])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (rows("B", [1.0] * 4, reference="s"), "different references"),
        (rows("B", [1.0] * 4, judge="another"), "a_judge"),
        ([row | {"instruction": "?" + row["instruction"]} for row in rows("B", [1.0] * 4)], "no instruction in common"),
        (rows("B", [None] * 4), "no row has a preference"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: Any, expected: str
) -> None:
    a, b = write(tmp_path / "a.json", rows("A", [1.5] * 4)), write(tmp_path / "b.json", other)
    assert alphapo("compare", a, b) == 2
    assert expected in one_line(capsys.readouterr().err)


def test_a_directory_without_annotations_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert alphapo("compare", tmp_path, tmp_path) == 2
    assert "holds no annotations.json" in one_line(capsys.readouterr().err)


class TestOneNameForBoth:
    """Answers of one model at two temperatures: their files tell them apart, wherever the two are named."""

    @pytest.mark.parametrize(
        ("places", "tails"),
        [
            (("cold/annotations.json", "hot/annotations.json"), ("cold/annotations.json", "hot/annotations.json")),
            (("one.json", "two.json"), ("one.json", "two.json")),
            (("x/run/a.json", "y/run/a.json"), ("x/run/a.json", "y/run/a.json")),
            (("x/run/a.json", "x/run/b.json"), ("a.json", "b.json")),
        ],
    )
    def test_the_shortest_tails_that_differ(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], places: tuple[str, str], tails: tuple[str, str]
    ) -> None:
        files = [tmp_path / place for place in places]
        for file, preference in zip(files, (1.2, 1.7), strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file, rows("X", [preference] * 4))
        assert alphapo("compare", *files, "--json", "-") == 0
        printed = capsys.readouterr()
        sentence, found = printed.out.splitlines()
        assert sentence.startswith(f"the win rate of {tails[0]} is 50.00 points below that of {tails[1]} on ")
        shown = json.loads(found)
        assert (shown["a"], shown["b"], shown["sentence"]) == (*tails, sentence)
        for tail in tails:
            assert f"win rate of {tail}" in printed.err

    def test_different_names_are_kept(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found, _ = compared(tmp_path, capsys, rows("X", [1.0] * 4), rows("Y", [1.0] * 4))
        assert (found["a"], found["b"]) == ("X", "Y")

    def test_one_file_given_twice(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = write(tmp_path / "a.json", rows("X", [1.2] * 4))
        assert alphapo("compare", file, file) == 0
        said, err = capsys.readouterr()
        assert "verdict: the same answers: the two are one model: win rates" in err
        assert "more prompts" not in err  # which would show nothing either
        assert err.splitlines()[-1].startswith("next: alphapo compare EVAL-A EVAL-B  # evaluations of two models")
        assert "the win rate of X (A) is equal to that of X (B) on 4 instructions" in said
        assert "interval over instructions +0.00 to +0.00" in said
        assert said.rstrip().endswith("; both gave the same answer to every instruction")

    def test_outputs_against_a_reference_of_the_same_name(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """results.json, the table and the picture; annotations and leaderboard keep the generator's name."""
        case = Case(tmp_path, generator="base")
        assert case.replay("statistics.bootstrap=0") == 0
        found = case.results()
        assert (found["generator"], found["reference"]) == (case.outputs.name, case.reference.name)
        assert f"{case.outputs.name} against {case.reference.name}, judged by" in capsys.readouterr().err
        title = evaluation_figure(found).get_suptitle()
        assert title.startswith(f"{case.outputs.name} against {case.reference.name}, judged by")
        judged = json.loads((case.out / "annotations.json").read_text())
        assert {(row["generator_1"], row["generator_2"]) for row in judged} == {("base", "base")}
        assert (case.out / "leaderboard.csv").read_text().splitlines()[1].startswith("base,")

    def test_long_names_in_the_picture_stay_different(self, tmp_path: Path) -> None:
        case = Case(tmp_path)
        assert case.replay("statistics.bootstrap=0") == 0
        names = [f"llama-3-8b-instruct-alphapo-trained-{end}" for end in ("hot", "cold")]
        title = evaluation_figure(case.results() | {"generator": names[0], "reference": names[1]}).get_suptitle()
        assert title.startswith("...8b-instruct-alphapo-trained-hot against ...b-instruct-alphapo-trained-cold, ")
