"""Against AlpacaEval's published figures and stored judgements, where its files lie beside the checkout.

The data are CC BY-NC and no part of the repository. Where they are absent, generated files take the same paths through
the code in the other tests of this folder.
"""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alphapo_cli.evaluation import length_controlled as lc
from alphapo_cli.evaluation.formats import ModelOutputs, read_outputs
from alphapo_cli.evaluation.judges.openai_response import first_token
from alphapo_cli.evaluation.judges.prompt import fill, load_template
from alphapo_cli.evaluation.judges.protocol import is_switched, preference
from alphapo_cli.evaluation.winrate import shares, win_rates
from tests.evaluation.eval_world import SHARED, alphapo, load, needs_shared

pytestmark = needs_shared
REFERENCE = SHARED / "reference_gpt4_1106_preview.model_outputs.json.gz"
EXPECTED: dict[str, Any] = load(SHARED / "expected.json") if SHARED.is_dir() else {}


@pytest.fixture(scope="module")
def reference() -> ModelOutputs:
    return read_outputs(REFERENCE)


@pytest.fixture(scope="module")
def control(reference: ModelOutputs) -> tuple[dict[str, float], lc.Gamed]:
    difficulty = lc.read_difficulty(SHARED / "instruction_difficulty.csv", reference)
    return difficulty, lc.read_gamed(SHARED / "df_gamed_rebuilt.csv.gz")


@pytest.mark.parametrize("model", EXPECTED)
def test_published_figures(model: str, reference: ModelOutputs, control: tuple[dict[str, float], lc.Gamed]) -> None:
    data, expected = load(SHARED / "compact" / f"{model}.json.gz"), EXPECTED[model]
    preferences = [1.5 if x == 0 else x for x in data["preference"]]
    found, published = win_rates(preferences), expected["leaderboard"] or expected
    for key in ("win_rate", "standard_error", "discrete_win_rate"):
        assert getattr(found, key) == pytest.approx(published[key], abs=1e-6)
    for key in ("n_wins", "n_wins_base", "n_draws", "n_total"):
        assert getattr(found, key) == published[key]
    if model == "gpt4_1106_preview":
        return
    index = data["index"] or range(data["n_rows"])
    delta = np.array(data["len_1"], dtype=float) - np.array(data["len_2"], dtype=float)
    difficulty, gamed = control
    by_instruction = np.array([difficulty[reference.rows[i].instruction] for i in index])
    by_row = lc.by_row(difficulty, reference, len(delta))
    # An exact solver with the same folds ran on the same inputs; alpaca_eval's liblinear stops within 0.011 of it.
    official = lc.fit(lc.Problem(delta, by_row, shares(preferences), gamed))
    assert official.c == pytest.approx(expected["lc"]["ref_cv_C"])
    assert official.win_rate == pytest.approx(expected["lc"]["ref_cv"], abs=1e-6)
    assert official.win_rate == pytest.approx(expected["lc"]["alpaca_eval_066"], abs=0.011)
    if data["index"]:
        ours = lc.fit(lc.Problem(delta, by_instruction, shares(preferences), gamed), expected["lc"]["C_official"])
        assert ours.win_rate == pytest.approx(expected["lc"]["difficulty_by_instruction_at_C_official"], abs=1e-6)


def test_unmodified_files_of_a_leaderboard_model(tmp_path: Path) -> None:
    folder, gamed = SHARED / "full" / "gpt-3.5-turbo-0301", SHARED / "df_gamed_rebuilt.csv.gz"
    line = ["eval", folder / "model_outputs.json.gz", "--reference", REFERENCE, "--judge", "replay", "--annotations",
            folder / "annotations.json.gz", "--difficulty", SHARED / "instruction_difficulty.csv", "--gamed", gamed,
            "--out", tmp_path / "out", "statistics.bootstrap=200"]  # fmt: skip
    assert alphapo(*line) == 0
    found, expected = load(tmp_path / "out" / "results.json"), EXPECTED["gpt-3.5-turbo-0301"]
    for key in ("win_rate", "standard_error", "discrete_win_rate"):
        assert found[key] == pytest.approx(expected["leaderboard"][key], abs=1e-6)
    assert found["avg_length"] == expected["avg_length"]
    assert found["length_controlled_winrate"] == pytest.approx(expected["lc"]["published"], abs=0.01)


def test_stored_log_probs_give_every_stored_preference(reference: ModelOutputs) -> None:
    """claude-2.1's 803 judgements through the parsing of a reply, the protocol's reading and the coin."""
    stored = json.loads(gzip.decompress((SHARED / "judge_logprobs_claude-2.1.json.gz").read_bytes()))
    assert len(stored) == 803
    for row in stored:
        top = [{"token": token, "logprob": logprob} for token, logprob in row["top_logprobs"]]
        reply = {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}
        switched = is_switched(reference.rows[row["index"]].instruction)
        found = preference(first_token(reply), switched)
        assert found is not None
        assert math.isclose(found, row["preference"], rel_tol=0, abs_tol=1e-9)


def test_half_of_the_instructions_are_switched_as_published(reference: ModelOutputs) -> None:
    assert sum(is_switched(row.instruction) for row in reference.rows) == 406


def test_alpacaevals_template_is_read_and_filled_as_it_is_there() -> None:
    path = SHARED / "judge" / "alpaca_eval_clf.txt"
    template = load_template(str(path))
    text = path.read_text()
    for place, value in (("{instruction}", "Why?"), ("{output_1}", "Because."), ("{output_2}", "Why not?")):
        text = text.replace(place, value, 1)
    expected = []
    for part in text.split("<|im_start|>")[1:]:
        role, _, rest = part.partition("\n")
        expected.append((role, rest.split("<|im_end|>")[0].strip()))
    assert [(m.role, m.content) for m in fill(template, "Why?", "Because.", "Why not?")] == expected
    assert [role for role, _ in expected] == ["system", "user"]
