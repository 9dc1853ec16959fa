"""The reward shape of a run and of a measurement: from files, against the printed formula and plain means."""

from __future__ import annotations

import functools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from alphapo_cli.config.compose import compose, to_yaml
from alphapo_cli.config.overrides import Sources, read_line
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.plots import shape_data
from alphapo_cli.plots.shape_data import RewardShape
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.stages import missing_shapes, reward_shape
from alphapo_cli.stages.measuring import pictures
from alphapo_cli.stages.probe_rows import probe_rows
from tests import tiny

STEPS, PAIRS = (0, 4, 8), 6


@functools.cache
def config(line):
    where = Sources()
    return to_yaml(compose("train", TrainConfig, [read_line(line, where)], where))


def run_of(folder, *line, scores=True, steps=STEPS, pairs=PAIRS, total=8, more=()):
    """A run's directory written by hand; log-probs, and scores and weights of alphapo at alpha = 0.5 or of dpo."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config(line))
    (folder / "manifest.json").write_text(
        json.dumps({"made_by": "alphapo", "steps": total, "data": {"probe_pairs": pairs}})
    )
    rows = [row(step, pair, scores, "objective=dpo" in line) for step in steps for pair in range(pairs)]
    (folder / "probe.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in [{"step": s} for s in steps] + list(more))
    )
    return RunDirectory(folder)


def row(step, pair, scores, ratio):
    found = {"step": step, "pair": pair}
    for i, side in enumerate(("chosen", "rejected")):
        tokens = 3 + pair + i
        start, moved = -2.0 * tokens, -0.01 * step * (1 + i) * (1 + pair)
        found |= {f"logps/{side}_sum": start + moved, f"tokens/{side}": tokens}
        if scores:
            found[f"scores/{side}"] = moved if ratio else (start + moved) / tokens
        found[f"gradient_weight/{side}"] = (-1) ** (i + 1) * 10.0 ** -(pair if step else 0)
    return found


ALPHA = ("objective=alphapo", "objective.shape.alpha=0.5", "objective.beta=2")


def test_what_a_run_shows_is_the_plain_arithmetic_of_its_rows(tmp_path):
    found = reward_shape.of_run(run_of(tmp_path, *ALPHA))
    assert isinstance(found, RewardShape)
    assert found.steps.tolist() == list(STEPS)
    for i in (0, 1):
        for t, step in enumerate(STEPS):
            scores = [-2 - 0.01 * step * (1 + i) * (1 + p) / (3 + p + i) for p in range(PAIRS)]
            assert found.means[i, t] == pytest.approx(sum(scores) / PAIRS, rel=1e-12)
        assert found.weights[i, 0] == (-1) ** (i + 1)
        assert abs(found.weights[i, -1]) == pytest.approx(sum(10.0**-p for p in range(PAIRS)) / PAIRS, rel=1e-12)
    # 1 % of beta sigmoid(gamma), gamma = 0.1 beta: the weights are 1, 0.1, 0.01, 1e-3, 1e-4 and 1e-5.
    assert found.limit == pytest.approx(0.02 / (1 + math.exp(-0.2)), rel=1e-12)
    assert found.saturated[0].tolist() == [0.0, pytest.approx(4 / 6), pytest.approx(4 / 6)]
    for s, h, slope in zip(found.grid, found.shape, found.slope, strict=True):
        assert h == pytest.approx((1 - math.exp(-0.5 * s)) / 0.5, rel=1e-12)
        assert slope == pytest.approx(math.exp(-0.5 * s), rel=1e-12)
    assert found.grid[0] < found.now.scores.min() < found.now.scores.max() < found.grid[-1]
    assert found.unit == "log-prob per token"
    assert found.notes == ()


@pytest.mark.parametrize("line", [ALPHA, ("objective=dpo",)])
def test_rows_of_versions_without_scores_give_the_same(tmp_path, line):
    now = reward_shape.of_run(run_of(tmp_path / "now", *line))
    before = reward_shape.of_run(run_of(tmp_path / "before", *line, scores=False))
    assert isinstance(now, RewardShape)
    assert np.allclose(before.means, now.means, rtol=0, atol=1e-12)
    assert np.allclose(before.now.scores, now.now.scores, rtol=0, atol=1e-12)


def test_what_cannot_be_drawn_is_said(tmp_path):
    told = {
        "sft": reward_shape.of_run(run_of(tmp_path / "sft", "objective=sft")),
        "reference": reward_shape.of_run(
            run_of(tmp_path / "ref", "objective=dpo", "model.reference=elsewhere", scores=False)
        ),
        "rows": reward_shape.of_run(run_of(tmp_path / "none", *ALPHA, steps=())),
    }
    assert "no preference term" in str(told["sft"])
    assert "has no scores, which an earlier version did not write" in str(told["reference"])
    assert told["rows"] == "the held-out pairs have not been measured yet"
    part = reward_shape.of_run(run_of(tmp_path / "r_dpo", "objective=r_dpo"))
    assert part.field is None
    assert part.limit is None
    assert np.isnan(part.saturated).all()
    assert part.notes[0].startswith("no gradient field and no saturated share: the loss reads more of a pair")


def test_a_schedule_is_where_training_had_moved_it(tmp_path):
    linear = (
        "objective=alphapo",
        "objective/schedule=linear",
        *(f"objective.schedule.{x}" for x in ("start=0", "end=1")),
    )
    found = reward_shape.of_run(run_of(tmp_path / "linear", *linear, total=16))
    assert found.shape_start.tolist() == pytest.approx(found.grid.tolist())
    assert found.slope_start.tolist() == [1.0] * len(found.grid)
    assert found.slope.tolist() == pytest.approx(np.exp(-0.5 * found.grid).tolist())  # 8 of 16 steps
    logged = [{"step": 8, "train/objective/scheduled": 0.25}]
    found = reward_shape.of_run(run_of(tmp_path / "adaptive", "objective=alphapo_adaptive", more=logged))
    assert found.slope.tolist() == pytest.approx(np.exp(-0.25 * found.grid).tolist())


class TestFile:
    def test_what_is_read_is_what_was_written_until_rows_are_added(self, tmp_path):
        run = run_of(tmp_path, *ALPHA)
        made = reward_shape.record(run, pytest.fail)
        found = shape_data.read(run.path)
        assert isinstance(found, RewardShape)
        assert np.allclose(found.shape, made.shape, rtol=1e-6)
        assert np.allclose(found.field.rejected, made.field.rejected, rtol=1e-6)
        assert found.as_json() == made.as_json()
        with open(run.path / "probe.jsonl", "a") as file:
            file.write(json.dumps({"step": 12, "pair": 0}) + "\n")
        assert shape_data.read(run.path) is None

    def test_a_changed_file_is_not_believed(self, tmp_path):
        run = run_of(tmp_path, *ALPHA)
        reward_shape.record(run, pytest.fail)
        file = run.path / shape_data.FILE
        content = json.loads(file.read_text())
        content["saturated"]["chosen"][-1] = 0.0
        file.write_text(json.dumps(content))
        assert shape_data.read(run.path) is None

    @pytest.mark.parametrize(
        "change",
        [
            lambda c: c["curve"]["shape"].pop(),
            lambda c: c["means"].pop("rejected"),
            lambda c: c["field"]["chosen"][3].append(1.0),
            lambda c: c["end"]["scores"].update(chosen=["a"]),
            lambda c: c.update(steps=None),
            lambda c: c["curve"].update(score=[None] * len(c["curve"]["score"])),
        ],
    )
    def test_parts_that_do_not_fit_are_not_read(self, tmp_path, change):
        content = reward_shape.of_run(run_of(tmp_path, *ALPHA)).as_json()
        assert shape_data.from_json(json.loads(json.dumps(content))) is not None
        change(content)
        assert shape_data.from_json(content) is None

    def test_a_settings_file_that_makes_no_objective_is_a_note(self, tmp_path):
        run = run_of(tmp_path, *ALPHA)
        text = run.config.read_text()
        run.config.write_text(text.replace("name: power", "name: powder"))
        notes: list[str] = []
        assert reward_shape.record(run, notes.append) is None
        assert "no such shape" in notes[0]
        assert not (run.path / shape_data.FILE).exists()


def test_missing_shapes_are_made_once(tmp_path, monkeypatch):
    runs = [run_of(tmp_path / name, *ALPHA) for name in ("a", "b")]
    missing_shapes.refresh(runs, pytest.fail, pictures=False)
    assert all(isinstance(shape_data.read(run.path), RewardShape) for run in runs)
    monkeypatch.setattr(reward_shape, "refresh", lambda *_, **__: pytest.fail("made again"))
    missing_shapes.refresh(runs, pytest.fail, pictures=False)


class TestProbeRows:
    def test_a_long_run_is_thinned_between_its_ends(self, tmp_path, monkeypatch):
        run = run_of(tmp_path, *ALPHA, steps=range(0, 100, 2))
        monkeypatch.setattr("alphapo_cli.stages.probe_rows._MOST_ROWS", 10 * PAIRS)
        found = probe_rows(run.path / "probe.jsonl")
        assert len(found) == 10
        assert (min(found), max(found)) == (0, 98)
        assert all([r["pair"] for r in rows] == list(range(PAIRS)) for rows in found.values())

    def test_a_step_that_is_being_written_is_left_out(self, tmp_path):
        run = run_of(tmp_path, *ALPHA)
        file = run.path / "probe.jsonl"
        file.write_text(file.read_text() + json.dumps(row(12, 0, True, False)) + '\n{"step": 12, "pa')
        assert list(probe_rows(file)) == list(STEPS)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.25])
def test_of_a_measurement_shape_and_slope_are_those_of_the_formula(alpha):
    objective = tiny.objective("objective=alphapo", f"objective.shape.alpha={alpha}", "objective.beta=2")
    scores = np.array([[-1.0, -2.0, 0.0], [-3.0, -0.5, -1.5]])
    lengths = np.array([[3.0, 4.0, 0.0], [2.0, 2.0, 2.0]])
    values = SimpleNamespace(scores=scores, lengths=lengths, gradients=np.ones_like(scores))
    measurement = SimpleNamespace(objective=objective, measured=SimpleNamespace(context=objective.start))
    shape = pictures.reward_shape(measurement, SimpleNamespace(start=values, now=values, step=None))
    assert math.isnan(shape.now.scores[0, 2])  # an absent answer
    assert shape.ends == ("start", "now")
    assert (shape.grid[0], shape.grid[-1]) == (pytest.approx(-3.125), pytest.approx(-0.375))
    for s, h, slope in zip(shape.grid, shape.shape, shape.slope, strict=True):
        assert h == pytest.approx(s if alpha == 0 else (1 - math.exp(-alpha * s)) / alpha, rel=1e-12)
        assert slope == pytest.approx(math.exp(-alpha * s), rel=1e-12)
