"""Columns that an objective reads: missing or unfit ones are one line that says which, before anything is written."""

from __future__ import annotations

import json

import pytest

ROW = {
    "chosen_logp": -12.0, "rejected_logp": -20.0, "chosen_tokens": 6, "rejected_tokens": 8,
    "ref_chosen_logp": -13.0, "ref_rejected_logp": -18.5,
}  # fmt: skip


@pytest.fixture
def loss(alphapo, tmp_path):
    def run(row, *overrides):
        (tmp_path / "rows.jsonl").write_text(
            json.dumps(ROW | {"score_chosen": 2, "score_rejected": 1}) + "\n" + json.dumps(row)
        )
        return alphapo("loss", "rows.jsonl", *overrides)

    return run


@pytest.mark.slow
def test_a_missing_column_is_named_with_the_methods_that_need_it(loss):
    ran = loss(ROW | {"score_chosen": 1.0}, "objective=odpo")
    assert (ran.code, ran.out) == (2, "")
    assert "line 2: no column 'score_rejected', which objective 'odpo' needs (margin 'score_gap'" in ran.fault
    for method in ("mappo", "omni_dpo", "rpo_aware_squared"):
        assert method in ran.fault
    assert "modpo" not in ran.fault


def test_a_column_of_ones_own_name(loss):
    row = ROW | {"gap": 0.5}
    ran = loss(row, "objective=dpo", "objective/margin=column", "objective.margin.column=gap")
    assert "line 1: no column 'gap', which objective 'dpo' needs (margin 'column')" in ran.fault


@pytest.mark.parametrize(
    ("objective", "columns", "words"),
    [
        ("odpo", {"score_chosen": 1.0, "score_rejected": 1.0}, "score_chosen must be above score_rejected"),
        ("mappo", {"score_chosen": 3.0, "score_rejected": 1.0}, "must be between 0 and 1"),
    ],
)
def test_what_the_loss_has_no_value_for_is_refused(loss, objective, columns, words):
    ran = loss(ROW | columns, f"objective={objective}")
    assert (ran.code, ran.out) == (2, "")
    assert "line 2 (score_chosen=" in ran.fault
    assert words in ran.fault


def test_an_optional_part_from_the_command_line(loss):
    """m = 0.1 D - 0.5 (2 - 1) in both rows; another part's settings are unknown keys."""
    scores = {"score_chosen": 2, "score_rejected": 1}
    ran = loss(ROW | scores, "objective=dpo", "objective/margin=column", "objective.margin.column=score_chosen",
               "objective.margin.scale=0.5", "objective.beta=1")  # fmt: skip
    (first, second) = (json.loads(line) for line in ran.out.splitlines())
    assert first == second
    # D = 1 - -1.5 = 2.5; 0.5 score_chosen = 1; -log sigmoid(1.5)
    assert first["loss"] == pytest.approx(0.2014132779827524, rel=1e-14)
    ran = loss(ROW | scores, "objective=odpo", "objective.margin.scale=0.5")
    assert "unknown key 'objective.margin.scale'" in ran.fault
    ran = loss(ROW | scores, "objective=dpo", "objective/margin=lenght")
    assert "did you mean 'length'?" in ran.fault


@pytest.mark.slow
def test_training_looks_at_the_columns_first(alphapo, tiny, tmp_path, pairs):
    ran = alphapo("train", *tiny, "objective=modpo")
    assert ran.code == 2
    line = ran.err.splitlines()[-1]
    assert "the training data: no column 'other_reward_chosen', which objective 'modpo' needs" in line
    # A column of text, and one with a gap, are there: what they lack is numbers.
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps(
                {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "score_chosen": "7", "score_rejected": i or None}
            )
            + "\n"
            for i in range(4)
        )
    )
    used: tuple[str, ...] = ("data=jsonl", f"data.path={tmp_path}/rows.jsonl", "model=from_scratch")
    line = alphapo("train", *used, "objective=odpo").err.splitlines()[-1]
    assert "add it to the data as numbers (its columns with finite numbers: score_rejected)" in line
    used = (*used, "objective=dpo", "objective/weight=column", "objective.weight.column=score_rejected")
    line = alphapo("train", *used).err.splitlines()[-1]
    assert "pair 1 has no finite number in column 'score_rejected', which objective 'dpo' needs" in line
    # The embedded world's true rewards do not always agree with its labels.
    ran = alphapo("train", *tiny, "objective=odpo")
    assert ran.code == 2
    assert "score_chosen must be above score_rejected" in ran.err.splitlines()[-1]
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.slow
def test_training_reads_them(alphapo, tiny):
    ran = alphapo("train", *tiny, "objective=rpo_aware_squared", "--json", "-")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out.splitlines()[-1])["state"] == "complete"


@pytest.mark.slow
def test_alphapo_objectives_lists_every_one_and_explains_one(alphapo):
    every = alphapo("objectives")
    assert every.code == 0
    names = [line for line in every.out.splitlines() if line and line[0] != " "][:-1]  # the last line is the legend
    assert len(names) > 50
    assert {"dpo", "odpo", "alphapo", "wpo"} <= set(names)
    one = alphapo("objectives", "odpo")
    assert "needs:    reference, column score_chosen, column score_rejected" in one.out
    assert "simpo" not in one.out
    ran = alphapo("objectives", "odop")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean 'odpo'?" in ran.fault
