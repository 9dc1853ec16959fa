"""`alphapo loss` against values that other implementations gave, and against formulas written out in plain floats."""

from __future__ import annotations

import json
import math
import signal
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from alphapo_cli.cli.main import main
from alphapo_cli.objective.catalog import methods

# Two hand-made pairs: B is displaced (its chosen answer became less likely than under the reference).
ROW_A = {
    "chosen_logp": -12.0, "rejected_logp": -20.0, "chosen_tokens": 6, "rejected_tokens": 8,
    "ref_chosen_logp": -13.0, "ref_rejected_logp": -18.5,
}  # fmt: skip
ROW_B = {
    "chosen_logp": -16.0, "rejected_logp": -21.0, "chosen_tokens": 8, "rejected_tokens": 6,
    "ref_chosen_logp": -13.0, "ref_rejected_logp": -20.0,
}  # fmt: skip

# (overrides, loss of A, loss of B). Values to 8 digits, from an independent script; all but the last eight were also
# given by the functions of the methods' own or of widely used public trainers (TRL, Liger, SimPO, f-DPO, the original
# DPO code), run in float64.
GOLDEN = [
    ("objective=dpo", 0.57593942, 0.79813887),
    ("objective=dpo objective.label_smoothing=0.1", 0.60093942, 0.77813887),
    ("objective=dpo objective/link=hinge", 0.75, 1.2),
    ("objective=ipo objective/score=ratio_sum", 6.25, 49.0),
    ("objective=ipo", 21.58376736, 27.12673611),
    ("objective=dpo objective/score=ratio_mean", 0.67559563, 0.70361810),
    ("objective=simpo objective.beta=2.5 objective.gamma=0.25", 0.31326169, 0.02975042),
    ("objective=alphapo", 0.13361433, 0.00070883),  # the file's own settings: alpha 0.25, beta 2.5, gamma 0.25
    ("objective=alphapo objective.shape.alpha=0.1 objective.gamma=0.25", 0.23769499, 0.00913001),
    ("objective=alphapo objective.shape.alpha=-0.25 objective.gamma=0.25", 0.48832619, 0.17620903),
    ("objective=alphapo objective.shape.alpha=1", 0.00000802, 0.0),
    ("objective=alphapo objective.shape.alpha=-1", 0.75329080, 0.68674543),
    ("objective=cpo objective.nll=0", 0.37110067, 0.47407698),
    # f-DPO: forward KL is the power shape at -1; its alpha-divergence of 0.5 the one at -0.5
    ("objective=alphapo_ratio objective.shape.alpha=-1", 0.50846348, 1.89892606),
    ("objective=alphapo_ratio objective.shape.alpha=-0.5", 0.55346472, 1.01604694),
    # ODPO with a constant offset of ln 2 is DPO with that margin
    ("objective=dpo objective.gamma=0.6931471805599453", 0.93906993, 1.23628670),
    ("objective=alphapo_ratio", 0.58090499, 0.75631089),
    ("objective=alphapo_ratio objective.shape.alpha=-0.25", 0.56702599, 0.87355532),
    ("objective=alphapo_ratio objective.shape.alpha=1", 0.57615172, 0.70917827),
    ("objective=dpo objective/shape=power objective.shape.alpha=0.25", 0.58090499, 0.75631089),
    ("objective=cpo", 2.37110067, 2.47407698),
    ("objective=sft", 2.0, 2.0),
    ("objective=cpo objective/link=hinge objective.beta=1 objective.nll=0", 0.0, 0.0),
    ("objective=simpo objective.gamma_beta_ratio=0.1", 0.31326169, 0.02975042),
]
# Columns that some of them read: a gap of 2 for ODPO, whose log is then ln 2, and of 0.4 for the others.
WIDE = {"score_chosen": 3.0, "score_rejected": 1.0}
NARROW = {"score_chosen": 0.9, "score_rejected": 0.5}
OTHER = {"other_reward_chosen": 1.0, "other_reward_rejected": 0.0}
# The same of the objectives by name. MODPO's was given by its authors' code as well.
NAMED: list[tuple[str, dict[str, float], float, float]] = [
    ("objective=cdpo", {}, 0.60093942, 0.77813887),
    ("objective=robust_dpo", {}, 0.54468942, 0.82313887),
    ("objective=hinge objective.beta=0.1", {}, 0.75, 1.2),
    ("objective=ln_dpo objective.beta=0.1", {}, 0.67559563, 0.70361810),
    ("objective=f_dpo_forward_kl", {}, 0.50846348, 1.89892606),
    ("objective=f_dpo_js", {}, 0.62614638, 0.78367294),
    ("objective=f_dpo_alpha", {}, 0.55346472, 1.01604694),
    ("objective=orpo objective.nll=0", {}, 0.04519316, 0.01814380),
    ("objective=asft objective.nll=0", {}, 2.08565048, 2.03066272),
    ("objective=slic objective.nll=0", {}, 0.0, 0.0),
    ("objective=slic", {}, 1.2, 1.6),
    ("objective=kto_constant objective.link.kl=0.3 objective.link.undesirable=0", {}, 0.48250714, 0.58175938),
    ("objective=kto_constant objective.link.kl=0.3 objective.link.desirable=0", {}, 0.45512111, 0.46754569),
    ("objective=kto_pair objective.link.kl=0.3 objective.link.undesirable=0", {}, 0.48250714, 0.58175938),
    ("objective=kto objective.link.kl=0.3 objective.link.undesirable=0", {}, 0.48250714, 0.58175938),
    ("objective=kto objective.link.kl=0.3 objective.link.desirable=0", {}, 0.45512111, 0.46754569),
    ("objective=bco objective.beta=0.1", {}, 1.26535371, 1.49875190),
    (
        "objective=alpha_dpo objective.gamma_beta_ratio=0.6 objective.margin.alpha=0.2 objective.margin.mean=1 "
        "objective.margin.spread=2",
        {},
        0.73839765,
        0.07503248,
    ),
    ("objective=bce objective.beta=0.1", {}, 1.26535371, 1.49875190),
    ("objective=nca_pair objective.beta=0.1", {}, 1.32707351, 1.45373120),
    ("objective=sppo_hard objective.beta=0.1", {}, 28.25, 80.0),
    ("objective=exo", {}, 2.33954475, 3.11039702),
    ("objective=apo_zero", {}, 0.93759097, 1.04946333),
    ("objective=apo_down", {}, 0.96280269, 0.97539148),
    ("objective=dpop objective.margin.weight=5", {}, 0.57593942, 1.86778603),
    ("objective=dpo_shift objective.beta=0.1", {}, 0.57923002, 0.80089113),
    ("objective=mappo", NARROW, 0.61634377, 0.83157349),
    ("objective=h_dpo objective.score.alpha=0.9", {}, 0.61175534, 0.82593942),
    ("objective=r_dpo", {}, 0.62095705, 0.74439666),
    ("objective=odpo", WIDE, 0.93906993, 1.23628670),
    ("objective=focalpo", {}, 0.55959064, 0.76691476),
    ("objective=rpo_aware_squared", NARROW, 0.0225, 0.36),
    ("objective=rpo_aware_kl", NARROW, 0.00272732, 0.04433621),
    ("objective=discopop", {}, 0.86354011, 0.78740201),
    ("objective=modpo", OTHER, 0.97407698, 1.62041741),
]
GOLDEN_TOLERANCE = 6e-9  # half of the last digit that is written, and a little


def run_loss(
    rows: list[dict[str, Any]], overrides: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> list[Any]:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["loss", str(file), *overrides.split()])
    finally:
        signal.signal(signal.SIGTERM, handler)
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    assert err == ""
    lines = out.splitlines()
    assert len(lines) == len(rows)
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("overrides", "a", "b"), GOLDEN, ids=[g[0] for g in GOLDEN])
def test_golden_values(overrides: str, a: float, b: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run_loss([ROW_A, ROW_B, ROW_A], overrides, tmp_path, capsys)
    assert [r["loss"] for r in results] == pytest.approx([a, b, a], abs=GOLDEN_TOLERANCE, rel=0)
    assert results[0] == results[2]


@pytest.mark.parametrize(("overrides", "columns", "a", "b"), NAMED, ids=[g[0] for g in NAMED])
def test_golden_values_of_the_library(
    overrides: str, columns: dict[str, float], a: float, b: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, **columns} for row in (ROW_A, ROW_B)]
    results = run_loss(rows, overrides, tmp_path, capsys)
    assert [r["loss"] for r in results] == pytest.approx([a, b], abs=GOLDEN_TOLERANCE, rel=0)


def test_what_is_called_golden_is_in_a_table() -> None:
    shown = {entry[0].split()[0].removeprefix("objective=") for entry in (*GOLDEN, *NAMED)}
    claimed = {m.name for m in methods() if "golden" in m.checked}
    assert claimed <= shown


# ---------------------------------------------------------------------- every method written out for one pair of floats


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def mean_logps(row: dict[str, float]) -> tuple[float, float]:
    return row["chosen_logp"] / row["chosen_tokens"], row["rejected_logp"] / row["rejected_tokens"]


def ratios(row: dict[str, float]) -> tuple[float, float]:
    return row["chosen_logp"] - row["ref_chosen_logp"], row["rejected_logp"] - row["ref_rejected_logp"]


def alphapo(row: dict[str, float], alpha: float, beta: float, gamma: float) -> dict[str, float]:
    """The paper's formulas with p = e^(mean log-prob), as they are printed: r = beta (1 - p^-alpha)/alpha."""
    a_w, a_l = mean_logps(row)
    p_w, p_l = math.exp(a_w), math.exp(a_l)
    r_w, r_l = beta * (1 - p_w**-alpha) / alpha, beta * (1 - p_l**-alpha) / alpha
    pull = sigmoid(-(r_w - r_l - gamma))
    return {
        "loss": -log_sigmoid(r_w - r_l - gamma),
        "chosen_reward": r_w,
        "rejected_reward": r_l,
        "margin": r_w - r_l,
        "d_loss_d_chosen_logp": -pull * beta * p_w**-alpha / row["chosen_tokens"],
        "d_loss_d_rejected_logp": pull * beta * p_l**-alpha / row["rejected_tokens"],
    }


def alphapo_ratio(row: dict[str, float], alpha: float, beta: float) -> dict[str, float]:
    """r = beta (t^alpha - 1)/alpha of the probability ratio t = pi/pi_ref."""
    t_w, t_l = (math.exp(x) for x in ratios(row))
    r_w, r_l = beta * (t_w**alpha - 1) / alpha, beta * (t_l**alpha - 1) / alpha
    pull = sigmoid(r_l - r_w)
    return {
        "loss": -log_sigmoid(r_w - r_l),
        "chosen_reward": r_w,
        "rejected_reward": r_l,
        "margin": r_w - r_l,
        "d_loss_d_chosen_logp": -pull * beta * t_w**alpha,
        "d_loss_d_rejected_logp": pull * beta * t_l**alpha,
    }


def simpo(row: dict[str, float], beta: float, gamma: float) -> dict[str, float]:
    a_w, a_l = mean_logps(row)
    pull = sigmoid(gamma - beta * (a_w - a_l))
    return {
        "loss": -log_sigmoid(beta * (a_w - a_l) - gamma),
        "chosen_reward": beta * a_w,
        "rejected_reward": beta * a_l,
        "margin": beta * (a_w - a_l),
        "d_loss_d_chosen_logp": -pull * beta / row["chosen_tokens"],
        "d_loss_d_rejected_logp": pull * beta / row["rejected_tokens"],
    }


def dpo(row: dict[str, float], beta: float, smoothing: float = 0.0) -> dict[str, float]:
    x_w, x_l = ratios(row)
    m = beta * (x_w - x_l)
    pull = (1 - smoothing) * sigmoid(-m) - smoothing * sigmoid(m)
    return {
        "loss": -(1 - smoothing) * log_sigmoid(m) - smoothing * log_sigmoid(-m),
        "chosen_reward": beta * x_w,
        "rejected_reward": beta * x_l,
        "margin": m,
        "d_loss_d_chosen_logp": -pull * beta,
        "d_loss_d_rejected_logp": pull * beta,
    }


def ipo(row: dict[str, float], tau: float, per_token: bool) -> dict[str, float]:
    x_w, x_l = ratios(row)
    n_w, n_l = (row["chosen_tokens"], row["rejected_tokens"]) if per_token else (1, 1)
    gap = x_w / n_w - x_l / n_l - 1 / (2 * tau)
    return {
        "loss": gap**2,
        "chosen_reward": tau * x_w / n_w,
        "rejected_reward": tau * x_l / n_l,
        "margin": tau * (x_w / n_w - x_l / n_l),
        "d_loss_d_chosen_logp": 2 * gap / n_w,
        "d_loss_d_rejected_logp": -2 * gap / n_l,
    }


def cpo(row: dict[str, float], beta: float, nll: float) -> dict[str, float]:
    m = beta * (row["chosen_logp"] - row["rejected_logp"])
    return {
        "loss": -log_sigmoid(m) - nll * row["chosen_logp"] / row["chosen_tokens"],
        "chosen_reward": beta * row["chosen_logp"],
        "rejected_reward": beta * row["rejected_logp"],
        "margin": m,
        "d_loss_d_chosen_logp": -beta * sigmoid(-m) - nll / row["chosen_tokens"],
        "d_loss_d_rejected_logp": beta * sigmoid(-m),
    }


METHODS = [
    ("objective=alphapo", lambda row: alphapo(row, 0.25, 2.5, 0.25)),
    (
        "objective=alphapo objective.shape.alpha=-1 objective.beta=10 objective.gamma_beta_ratio=0.3",
        lambda row: alphapo(row, -1.0, 10.0, 3.0),
    ),
    ("objective=alphapo objective.shape.alpha=2 objective.gamma=0", lambda row: alphapo(row, 2.0, 2.5, 0.0)),
    ("objective=alphapo_ratio", lambda row: alphapo_ratio(row, 0.25, 0.1)),
    ("objective=alphapo_ratio objective.shape.alpha=-0.5", lambda row: alphapo_ratio(row, -0.5, 0.1)),
    ("objective=simpo", lambda row: simpo(row, 2.5, 0.25)),
    ("objective=dpo", lambda row: dpo(row, 0.1)),
    ("objective=dpo objective.label_smoothing=0.2 objective.beta=0.5", lambda row: dpo(row, 0.5, 0.2)),
    ("objective=ipo", lambda row: ipo(row, 0.1, True)),
    ("objective=ipo objective/score=ratio_sum objective.beta=0.5", lambda row: ipo(row, 0.5, False)),
    ("objective=cpo", lambda row: cpo(row, 0.1, 1.0)),
    ("objective=cpo objective.nll=0.25 objective.beta=0.02", lambda row: cpo(row, 0.02, 0.25)),
]


def realistic_rows(n: int) -> list[dict[str, Any]]:
    """Lengths of 1 to 300 tokens, 0.2 to 3.5 nats a token, log-ratios of a few nats."""
    rng = Random(5)
    rows = []
    for _ in range(n):
        n_w, n_l = rng.randint(1, 300), rng.randint(1, 300)
        chosen, rejected = -n_w * rng.uniform(0.2, 3.5), -n_l * rng.uniform(0.2, 3.5)
        rows.append(
            {
                "chosen_logp": chosen, "rejected_logp": rejected, "chosen_tokens": n_w, "rejected_tokens": n_l,
                "ref_chosen_logp": chosen - rng.gauss(0, 4), "ref_rejected_logp": rejected - rng.gauss(0, 4),
            }
        )  # fmt: skip
    return rows


@pytest.mark.parametrize(("overrides", "formula"), METHODS, ids=[m[0] for m in METHODS])
def test_methods_as_their_papers_print_them(
    overrides: str, formula: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = realistic_rows(40)
    for row, ours in zip(rows, run_loss(rows, overrides, tmp_path, capsys), strict=True):
        expected = formula(row)
        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            assert ours[key] == pytest.approx(value, rel=1e-9, abs=1e-12), (key, row)


def test_sft_needs_no_rejected_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"chosen_logp": -12.0, "chosen_tokens": 5}, {"chosen_logp": -3.0, "chosen_tokens": 4}]
    first, second = run_loss(rows, "objective=sft", tmp_path, capsys)
    assert first["loss"] == pytest.approx(2.4, rel=1e-15)
    assert second["loss"] == pytest.approx(0.75, rel=1e-15)
    assert first["d_loss_d_chosen_logp"] == pytest.approx(-0.2, rel=1e-15)
    for key in ("rejected_reward", "margin", "d_loss_d_rejected_logp"):
        assert first[key] is None


def test_numbers_keep_every_digit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 0.1 - 0.3 is exact in its last bit only if nothing on the way was float32 or a rounded text.
    row = {**ROW_A, "chosen_logp": -0.1, "chosen_tokens": 1, "rejected_logp": -0.3, "rejected_tokens": 1}
    (result,) = run_loss([row], "objective=simpo objective.beta=1 objective.gamma=0", tmp_path, capsys)
    assert result["margin"] == -0.1 - -0.3
    assert abs(result["loss"] + log_sigmoid(-0.1 - -0.3)) <= 2 * sys.float_info.epsilon
