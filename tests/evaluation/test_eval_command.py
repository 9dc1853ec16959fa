"""`alphapo eval` as a command: what it prints, what it writes, and what happens when it is typed again."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.data.glassbox import world
from alphapo_cli.evaluation.leaderboard import COLUMNS, update
from alphapo_cli.evaluation.report import results_table
from alphapo_cli.plots.evaluation import evaluation_figure
from tests.evaluation.eval_world import ROOT, Case, alphapo, load, outputs, write


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.iterdir())}


@pytest.mark.slow
def test_writes_alpacaevals_files_and_prints_the_directory_first(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.replay(*case.length_controlled(), "--json", "-") == 0
    said = capsys.readouterr()
    first, *_, last = said.out.splitlines()
    assert first == str(case.out.resolve())
    assert json.loads(last) == {"path": str(case.out.resolve()), **case.results()}
    assert {p.name for p in case.out.iterdir() if not p.name.startswith(".")} == {
        "annotations.json", "results.json", "leaderboard.csv", "manifest.json", "winrate.png"
    }  # fmt: skip
    rows = load(case.out / "annotations.json")
    assert [row["preference"] for row in rows] == [row["preference"] for row in case.judged]
    assert list(rows[0])[:8] == [
        "instruction", "dataset", "output_1", "generator_1", "output_2", "generator_2", "annotator", "preference"
    ]  # fmt: skip
    assert set(rows[0]) >= {
        f"preference_{x}" for x in ("price_per_example", "time_per_example", "raw_completion", "date")
    }
    assert (case.out / "winrate.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    results = case.results()
    for key in ("win_rate", "length_controlled_winrate"):
        low, high = results[f"{key}_interval"]
        assert low < results[key] < high
        assert f"{results[key]:.2f} %" in said.err
    low, high = results["length_controlled_winrate_interval"]
    # A normal's interval is 3.92 standard deviations wide; forty rows are nearly normal here. The controlled rate is never
    # taken for more certain than the plain one.
    larger = max(results["lc_bootstrap_error"], results["standard_error"])
    assert larger == pytest.approx((high - low) / 3.92, rel=0.15)
    assert results["lc_bootstrap_error"] > results["lc_standard_error"]
    assert "interval over instructions" in said.err
    table = said.err.splitlines()
    n = results["n_total"]
    for name in ("win rate ", "discrete win rate "):
        assert f", n = {n}" in next(line for line in table if line.startswith(f"│ {name}"))
    assert any("win rate by length" in line for line in table)
    assert sum(b["n"] for b in results["length_bins"]) == 40


@pytest.mark.slow
def test_an_evaluation_of_an_earlier_version_is_shown(case: Case) -> None:
    """Its results.json has no intervals of bins, no bootstrap error, and does not say over what."""
    assert case.replay(*case.length_controlled()) == 0
    old = case.results()
    for key in ("lc_bootstrap_error", "intervals_over"):
        del old[key]
    for one in old["length_bins"]:
        del one["interval"]
    assert results_table(old).row_count > 5
    assert evaluation_figure(old).axes[1].get_title(loc="left") == "Win rate by length difference"


def test_every_row_a_draw_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(tmp_path)
    write(case.annotations, [row | {"preference": 1.5} for row in case.judged])
    assert case.replay() == 0
    assert "every row is a draw" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_line_again_is_complete_and_changes_nothing(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert case.replay() == 0
    before = files(case.out)
    capsys.readouterr()
    assert case.replay("--json", "-") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "complete"
    assert json.loads(lines[-1])["win_rate"] == case.results()["win_rate"]
    assert files(case.out) == before
    assert case.replay("--replace") == 0
    assert "complete" not in capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_other_statistics_are_computed_anew_in_place(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert case.replay() == 0
    assert case.results()["length_controlled_winrate"] is None
    assert case.replay(*case.length_controlled(), "statistics.confidence=0.5") == 0
    assert "computed anew" in capsys.readouterr().err
    assert case.results()["length_controlled_winrate"] is not None
    assert case.results()["confidence"] == 0.5


@pytest.mark.slow
def test_another_model_needs_another_directory(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert case.replay() == 0
    other = Case(case.folder / "other", generator="other")
    other.out = case.out
    assert other.replay() == 2
    assert "differs in: judge.annotations, outputs" in capsys.readouterr().err
    assert other.replay("--replace") == 0
    assert other.results()["generator"] == "other"


@pytest.mark.slow
def test_default_directories_do_not_collide(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(case.folder)
    other = Case(case.folder / "other", generator="org/other model")
    for one in (case, other):
        line = ["eval", one.outputs, "--reference", one.reference, "--annotations", one.annotations]
        assert alphapo(*line, "statistics.bootstrap=0") == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("/"))
    assert Path(first).parent == Path(second).parent == case.folder / "runs"
    assert Path(first).name.startswith("eval-tuned-")
    assert Path(second).name.startswith("eval-org-other-model-")


@pytest.mark.slow
def test_packed_files_and_old_column_names_are_the_same_evaluation(case: Case) -> None:
    assert case.replay() == 0
    plain = case.results()
    old = [
        row | {"price_per_example": 0.01, "time_per_example": 2.0, "raw_completion": "m", "datasplit": "eval"}
        for row in case.judged
    ]
    old[3]["preference"] = 0  # an old draw
    packed = []
    for name, rows in (("outputs", case.rows), ("reference", case.reference_rows), ("annotations", old)):
        path = case.folder / f"{name}.json.gz"
        path.write_bytes(gzip.compress(json.dumps(rows).encode()))
        packed.append(path)
    case.outputs, case.reference, case.annotations = packed
    assert case.replay("--replace") == 0
    row = load(case.out / "annotations.json")[3]
    assert (row["preference"], row["preference_price_per_example"], row["preference_raw_completion"]) == (
        1.5,
        0.01,
        "m",
    )
    assert row["datasplit"] == "eval"
    assert "price_per_example" not in row
    assert case.results()["n_draws"] == 1
    assert case.results()["avg_length"] == plain["avg_length"]


@pytest.mark.slow
def test_own_annotations_can_be_replayed(case: Case) -> None:
    assert case.replay(*case.length_controlled()) == 0
    first, case.annotations, case.out = case.results(), case.out / "annotations.json", case.folder / "again"
    assert case.replay(*case.length_controlled()) == 0
    again = case.results()
    assert {k: v for k, v in again.items() if k != "statistics"} == {
        k: v for k, v in first.items() if k != "statistics"
    }


def test_rows_follow_the_reference_and_missing_ones_are_said(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    write(case.outputs, list(reversed(case.rows[:30])))
    write(case.annotations, list(reversed(case.judged[:25])))
    assert case.replay() == 0
    assert [r["instruction"] for r in load(case.out / "annotations.json")] == [r["instruction"] for r in case.rows[:25]]
    assert (case.results()["n_total"], case.results()["n_not_judged"]) == (25, 5)
    said = capsys.readouterr().err
    assert "5 outputs are not in the annotations" in said
    assert "outputs for 30 of the reference's 40 instructions" in said


def test_nulls_are_no_draws(case: Case) -> None:
    write(case.annotations, [row | {"preference": None} if i < 4 else row for i, row in enumerate(case.judged)])
    assert case.replay() == 0
    assert (case.results()["n_total"], case.results()["n_null"], case.results()["n_draws"]) == (36, 4, 0)
    assert load(case.out / "annotations.json")[0]["preference"] is None


# ------------------------------------------------------------------------------------------------ the embedded world


def test_glassbox_counts_true_wins(tmp_path: Path) -> None:
    texts = world.instructions(4)
    answers = {  # by what the true reward says of each: better, worse, the same, other words of the same worth
        0: ("sure , nothing .", "ugh , nothing ."),
        1: ("ugh , nothing .", "sure , nothing ."),
        2: ("sure , nothing .", "sure , nothing ."),
        3: ("sure , nothing .", "gladly , nothing ."),
    }

    def file(name: str, side: int) -> Path:
        rows = [{"instruction": t, "output": answers[i][side], "generator": name} for i, t in enumerate(texts)]
        return write(tmp_path / f"{name}.json", rows)

    assert alphapo("eval", file("policy", 0), "--reference", file("start", 1), "--out", tmp_path / "out") == 0
    found = load(tmp_path / "out" / "results.json")
    assert (found["n_wins"], found["n_wins_base"], found["n_draws"]) == (1, 1, 2)
    assert found["true_win_rate"] == 0.5
    assert found["win_rate"] == 50.0
    assert [row["preference"] for row in load(tmp_path / "out" / "annotations.json")] == [2, 1, 1.5, 1.5]


class Spelling:
    """A tokenizer whose ids are the characters."""

    eos_token_id = pad_token_id = 0

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))


def test_glassbox_equals_the_probe_for_the_samples_it_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, over draws with wins, losses and ties."""
    from alphapo_cli.modeling.sampling import Sample
    from alphapo_cli.probe import sampled_answers

    texts, rng = world.instructions(97), random.Random(0)
    quality = {"now": 0.4}

    def sampled(*args: Any, **kwargs: Any) -> list[Sample]:
        answers = [world.draw_answer(rng, world.parse(t), quality["now"]).text() for t in texts]
        return [Sample([ord(c) for c in text], cut=False) for text in answers]

    monkeypatch.setattr(sampled_answers, "sample", sampled)
    prompts = sampled_answers.SamplePrompts("glassbox", texts, [[1]] * 97, world.true_reward)
    probe = sampled_answers.SampledAnswers(
        Spelling(), 0, sampled_answers.Sampling(40, 1.0), prompts, 0, "policy",
        lambda file, rows: (tmp_path / file).write_text(json.dumps(rows)),
    )  # fmt: skip
    probe.start(None)
    quality["now"] = 0.7
    measured = probe.measure(None, 16)
    line = ["eval", tmp_path / "step-16.json", "--reference", tmp_path / "reference.json", "--out", tmp_path / "out"]
    assert alphapo(*line) == 0
    found = load(tmp_path / "out" / "results.json")
    assert found["true_win_rate"] == measured["glassbox/true_win_rate"]
    bounds = [100 * measured[f"glassbox/true_win_rate/{end}"] for end in ("low", "high")]
    assert found["win_rate_interval"] == pytest.approx(bounds)
    assert found["true_reward"] == measured["glassbox/true_reward"]
    assert 0 < found["n_draws"] < found["n_wins"]


# -------------------------------------------------------------------------------------------------------- leaderboard


def read(path: Path) -> tuple[list[str], list[list[str]]]:
    header, *rows = list(csv.reader(path.read_text().splitlines()))
    return header, rows


def test_leaderboard_keeps_others_and_replaces_its_own_row(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    path.write_text(
        ",win_rate,standard_error,n_wins,n_wins_base,n_draws,n_total,discrete_win_rate,mode,avg_length,"
        "length_controlled_winrate,lc_standard_error\n"
        "top,90.10,1,1,1,1,3,90,verified,1000,80.500,0.1\n"
        "old,10.0,1,1,1,1,3,10,minimal,1000,,\n"
    )
    row: dict[str, Any] = dict.fromkeys(COLUMNS, 1.0) | {"win_rate": 20.0, "length_controlled_winrate": 30.0}
    update(path, "mine", row)
    update(path, "mine", row | {"length_controlled_winrate": 85.25})
    header, rows = read(path)
    assert header == ["", *COLUMNS]
    assert [r[0] for r in rows] == ["mine", "top", "old"]
    assert rows[0][10] == "85.25"
    assert rows[1] == ["top", "90.10", "1", "1", "1", "1", "3", "90", "verified", "1000", "80.500", "0.1"]
    assert rows[2][10:] == ["", ""]


@pytest.mark.slow
def test_one_leaderboard_for_many_evaluations(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    board = case.folder / "board.csv"
    other = Case(case.folder / "other", generator="other")
    assert case.replay("--leaderboard", board) == 0
    assert other.replay("--leaderboard", board, *other.length_controlled()) == 0
    _, rows = read(board)
    assert [row[0] for row in rows] == ["other", "tuned"]  # a controlled rate goes before none
    assert float(rows[1][1]) == case.results()["win_rate"]
    assert not (case.out / "leaderboard.csv").exists()
    late = case.folder / "late.csv"  # asked for when the evaluation is complete
    assert case.replay("--leaderboard", late) == 0
    assert [row[0] for row in read(late)[1]] == ["tuned"]
    write(board, "name,score\nx,1\n")
    assert case.replay("--leaderboard", board, "--replace") == 2
    assert "is not a leaderboard" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- weight


@pytest.mark.slow
def test_replay_imports_nothing_heavy(case: Case) -> None:
    """Neither torch nor an HTTP client, and no network: the process may not even open a socket."""
    program = (
        "import sys, socket\n"
        "def refuse(*a, **k): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        "from alphapo_cli.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "heavy = {'torch', 'transformers', 'wandb', 'httpx', 'datasets', 'pandas', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    line = ["eval", case.outputs, "--reference", case.reference, "--judge", "replay", "--annotations", case.annotations,
            "--out", case.out, *case.length_controlled()]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, line)], capture_output=True, text=True, cwd=case.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_folder_stands_for_its_usual_file(case: Case) -> None:
    write(case.folder / "run" / "model_outputs.json", outputs(40, "tuned"))
    write(case.folder / "base" / "model_outputs.json", outputs(40, "base"))
    write(case.folder / "judged" / "annotations.json", case.judged)
    case.outputs, case.reference, case.annotations = (case.folder / x for x in ("run", "base", "judged"))
    assert case.replay("statistics.bootstrap=0") == 0
    found = case.results()
    assert found["win_rate_interval"][0] < found["win_rate"] < found["win_rate_interval"][1]


def test_outputs_without_a_name_are_known_by_their_texts(tmp_path: Path) -> None:
    """AlpacaEval asks for `instruction` and `output` only; a folder's name contradicts no annotation."""
    case = Case(tmp_path)
    write(case.outputs, [{k: v for k, v in row.items() if k != "generator"} for row in case.rows])
    assert case.replay() == 0
    case.rows[3]["output"] += " changed"
    write(case.outputs, [{k: v for k, v in row.items() if k != "generator"} for row in case.rows])
    assert case.replay(out=tmp_path / "other") == 2
