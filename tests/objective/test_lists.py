"""Objectives over K answers of a row, against their formulas in plain floats; pair objectives see best against worst."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alphapo_cli.errors import ConfigError, UsageError
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.objective.build import build
from alphapo_cli.objective.data_requirements import check_columns, check_sides
from alphapo_cli.objective.objective import Objective
from tests import tiny

METHODS = tiny.catalogue()
LISTS = ("infonca", "nca_list", "exo_list", "swepo")


def ls(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(x - top) for x in values]
    return [p / sum(powers) for p in powers]


def infonca(r: list[float], scores: list[float], temperature: float) -> float:
    pairs = zip(softmax([x / temperature for x in scores]), softmax(r), strict=True)
    return -sum(t * math.log(q) for t, q in pairs)


def nca(r: list[float], scores: list[float], temperature: float) -> float:
    t = softmax([x / temperature for x in scores])
    return -sum(a * ls(x) for a, x in zip(t, r, strict=True)) - sum(ls(-x) for x in r) / len(r)


def exo(r: list[float], scores: list[float], temperature: float) -> float:
    pairs = zip(softmax(r), softmax([x / temperature for x in scores]), strict=True)
    return sum(q * math.log(q / t) for q, t in pairs)


def swepo(r: list[float], scores: list[float], alpha: float, power: float) -> float:
    mean = sum(scores) / len(scores)
    each = [math.exp(alpha * abs(s - mean) ** power + x) for s, x in zip(scores, r, strict=True)]
    return -math.log(sum(e for e, s in zip(each, scores, strict=True) if s > mean) / sum(each))


# Settings under which every answer of a list matters; beta is 0.3.
FORMULAS: dict[str, tuple[dict[str, float], Callable[[list[float], list[float]], float]]] = {
    "infonca": ({"temperature": 0.7}, lambda r, s: infonca(r, s, 0.7)),
    "nca_list": ({"temperature": 0.7}, lambda r, s: nca(r, s, 0.7)),
    "exo_list": ({"temperature": 0.7}, lambda r, s: exo(r, s, 0.7)),
    "swepo": ({"alpha": 0.8, "power": 2.0}, lambda r, s: swepo(r, s, 0.8, 2.0)),
}
# The alpha of a power shape on log-ratios -> h
SHAPES: dict[str, tuple[dict[str, Any], Callable[[float], float]]] = {
    "identity": ({"name": "identity"}, lambda x: x),
    "alpha=0.5": ({"name": "power", "alpha": 0.5, "convention": "ratio"}, lambda x: (math.exp(0.5 * x) - 1) / 0.5),
    "alpha=-1": ({"name": "power", "alpha": -1.0, "convention": "ratio"}, lambda x: 1 - math.exp(-x)),
}


def columns(scores: Tensor) -> dict[str, Tensor]:
    names = ("score_chosen", "score_rejected", *(f"score_{i}" for i in range(2, len(scores))))
    return dict(zip(names, scores, strict=True))


def rows(count: int, sides: int, seed: int = 0) -> AnswerLogProbs:
    """Rows of `sides` answers; scores fall from side 0 over 2, 3, ... to side 1."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, (sides, count)).astype(float)
    sums = -lengths * rng.uniform(0.2, 2.5, (sides, count))
    falling = -np.sort(-rng.uniform(0, 3, (sides, count)), axis=0)
    scores = falling[[0, sides - 1, *range(1, sides - 1)]]
    tensors = [torch.from_numpy(x) for x in (sums, lengths, sums - rng.normal(0, 2, (sides, count)), scores)]
    return AnswerLogProbs(tensors[0], tensors[1], tensors[2], columns=columns(tensors[3]))


def changed(name: str, **settings: Any) -> Objective:
    cfg = METHODS[name].cfg
    merged = {k: {**getattr(cfg, k), **v} if k == "link" else v for k, v in settings.items()}
    return build(replace(cfg, **merged))


def loss_and_gradient(objective: Objective, given: AnswerLogProbs) -> tuple[Tensor, Tensor]:
    leaf = given.sums.clone().requires_grad_(True)
    loss = objective(replace(given, sums=leaf)).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sides", [2, 3, 4, 5])
@pytest.mark.parametrize("name", LISTS)
def test_the_formula_and_its_derivative(name: str, sides: int, shape: str) -> None:
    settings, formula = FORMULAS[name]
    bound, h = SHAPES[shape]
    given = rows(20, sides, seed=sides)
    loss, gradient = loss_and_gradient(changed(name, link=settings, shape=bound, beta=0.3), given)
    assert given.reference is not None
    ratios, scores = (given.sums - given.reference).tolist(), torch.stack(list(given.columns.values())).tolist()
    for i in range(20):
        own = [row[i] for row in scores]

        def at(side: int, step: float, i: int = i, own: list[float] = own) -> float:
            return formula([0.3 * h(row[i] + step * (k == side)) for k, row in enumerate(ratios)], own)

        assert loss[i].item() == pytest.approx(at(0, 0.0), rel=1e-9)
        for side in range(sides):
            # Central differences with Richardson's extrapolation: error of order h^4 = 1e-16, round-off over h.
            wide, narrow = ((at(side, x) - at(side, -x)) / (2 * x) for x in (2e-4, 1e-4))
            slope = (4 * narrow - wide) / 3
            allowed = 1e-7 * abs(slope) + 1e-11 * (1 + abs(loss[i].item())) / 1e-4
            assert abs(gradient[side, i].item() - slope) <= allowed


def test_triple_po_adds_the_nll_of_the_third_answer() -> None:
    given = rows(30, 4, seed=3)
    loss, gradient = loss_and_gradient(
        changed("triple_po", beta=0.1, regulariser={"name": "gold", "weight": 0.7}), given
    )
    for i in range(30):
        (w, l, g, _), n = given.sums[:, i].tolist(), given.lengths[2, i].item()  # noqa: E741
        assert loss[i].item() == pytest.approx(-ls(0.1 * (w - l)) - 0.7 * g / n, rel=1e-12)
        assert gradient[2, i].item() == pytest.approx(-0.7 / n, rel=1e-12)
    assert (gradient[3] == 0).all()


def pair(given: AnswerLogProbs, scores: tuple[float, float]) -> AnswerLogProbs:
    here = torch.tensor(scores, dtype=torch.float64).unsqueeze(1).expand(2, given.sums.shape[1])
    return replace(given.first(2), columns=columns(here))


# list objective and settings, the scores of a pair -> the pair objective that it then is
LIMITS = [
    ("infonca", {}, (1.0, 0.0), "dpo", {"beta": 0.01}),
    ("nca_list", {}, (1.0, 0.0), "nca_pair", {}),
    ("exo_list", {}, (math.log(0.999 / 0.001), 0.0), "exo", {}),
    ("swepo", {"link": {"alpha": 0.0}}, (3.0, 1.0), "dpo", {}),
    ("triple_po", {"regulariser": {"name": "gold", "weight": 0.0}, "beta": 0.1}, (1.0, 0.0), "cpo", {"nll": 0.0}),
]


@pytest.mark.parametrize("power", [False, True], ids=["identity", "power"])
@pytest.mark.parametrize(("name", "settings", "scores", "other", "others"), LIMITS, ids=[x[0] for x in LIMITS])
def test_on_two_answers_it_is_a_pair_objective(
    name: str, settings: dict[str, Any], scores: tuple[float, float], other: str, others: dict[str, Any], power: bool
) -> None:
    given = rows(100, 3, seed=5)
    convention = "ratio" if METHODS[name].objective.needs_reference else "paper"
    shape = {"name": "power", "alpha": 0.25, "convention": convention} if power else {"name": "identity"}
    # triple_po with no weight on its third answer sees it, and nothing comes of it
    two = given if name == "triple_po" else pair(given, scores)
    loss, gradient = loss_and_gradient(changed(name, shape=shape, **settings), two)
    expected, slope = loss_and_gradient(changed(other, shape=shape, **others), pair(given, scores))
    assert torch.allclose(loss, expected, rtol=1e-10, atol=1e-13)
    assert torch.allclose(gradient[:2], slope, rtol=1e-10, atol=1e-13)


# Token weights need tokens, which these rows have not.
PAIRED = [
    n
    for n, m in METHODS.items()
    if m.objective.reads_all is None and m.objective.sides(9) < 3 and not m.objective.weighs_tokens
]


@pytest.mark.parametrize("name", PAIRED)
def test_what_reads_pairs_sees_the_best_against_the_worst(name: str) -> None:
    given = rows(40, 5, seed=7)
    extra = {"win_probability": 0.7, "other_reward_chosen": 1.0, "other_reward_rejected": 0.5, "semantic_distance": 0.2}
    extra |= {f"guide_{side}_logp": -20.0 for side in ("chosen", "rejected", 2, 3, 4)}
    given = replace(
        given, columns={**given.columns, **{k: torch.full((40,), v) for k, v in extra.items()}}, index=torch.arange(40),
        kl=torch.ones_like(given.sums),
    )  # fmt: skip
    objective = METHODS[name].objective
    given = replace(given, log_p2=-torch.ones_like(given.sums))
    observed = objective.observe(given, objective.start)
    for kind, values in objective.observe(given.first(2), objective.start).items():
        assert torch.equal(observed[kind], values)
    for ours, expected in zip(
        loss_and_gradient(objective, given), loss_and_gradient(objective, given.first(2)), strict=True
    ):
        assert torch.equal(ours[:2] if ours.dim() == 2 else ours, expected)


@pytest.mark.parametrize("name", LISTS)
def test_finite_at_the_ends_of_the_range(name: str) -> None:
    corners = torch.tensor([-1e4, -30.0, -1e-3, 0.0])
    grid = torch.cartesian_prod(*(corners,) * 4)
    sums, reference = grid.T[[0, 1, 2, 3]].contiguous(), grid.T[[3, 2, 1, 0]].contiguous()
    scores = torch.tensor([10.0, -10.0, 3.0, 3.0]).unsqueeze(1).expand(4, len(grid))
    given = AnswerLogProbs(sums, torch.ones_like(sums), reference, columns=columns(scores))
    for alpha in (0.0, 4.0, -4.0):
        for beta in (0.01, 100.0):
            shape = {"name": "power", "alpha": alpha, "convention": "ratio"}
            loss, gradient = loss_and_gradient(changed(name, shape=shape, beta=beta), given)
            assert loss.dtype == torch.float32
            assert loss.isfinite().all()
            assert (gradient * gradient).sum(0).isfinite().all()


@pytest.mark.parametrize("name", LISTS)
def test_answers_with_equal_scores_change_places_freely(name: str) -> None:
    given = rows(10, 4, seed=9)
    same = {**given.columns, "score_3": given.columns["score_2"]}
    order = [0, 1, 3, 2]
    assert given.reference is not None
    other = AnswerLogProbs(given.sums[order], given.lengths[order], given.reference[order], columns=same)
    objective = METHODS[name].objective
    assert torch.allclose(objective(replace(given, columns=same)).loss, objective(other).loss, rtol=1e-12)


def test_answers_that_all_have_the_best_score_are_left_alone() -> None:
    given = rows(10, 4, seed=9)
    same = {name: torch.ones_like(column) for name, column in given.columns.items()}
    loss, gradient = loss_and_gradient(METHODS["swepo"].objective, replace(given, columns=same))
    assert (loss == 0).all()
    assert (gradient == 0).all()


def test_settings_about_two_answers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^objective.label_smoothing=0.1: link 'infonca' reads how good"):
        tiny.objective("objective=infonca", "objective.label_smoothing=0.1")
    with pytest.raises(
        ConfigError, match=r"^objective/token=prefix: .* regulariser 'gold' reads more; .*objective/token=all"
    ):
        tiny.objective("objective=triple_po", "objective/token=prefix")
    for bad in ("objective.link.temperature=0", "objective=swepo objective.link.power=-1"):
        with pytest.raises(ConfigError, match=r"objective.link.\w+=\S+: must be above 0"):
            tiny.objective("objective=infonca", *bad.split())


def test_missing_scores_and_answers_are_named() -> None:
    infonca, triple = METHODS["infonca"].objective, METHODS["triple_po"].objective
    given = {name: np.ones(2) for name in ("score_chosen", "score_rejected", "score_2")}
    check_columns(infonca, given, [1, 2], "the data", 3)
    with pytest.raises(
        UsageError, match=r"^the data: no column 'score_3', which objective 'infonca' needs \(link 'infonca'"
    ):
        check_columns(infonca, given, [1, 2], "the data", 4)
    with pytest.raises(
        UsageError, match=r"^the data: no column 'score_chosen', which objective 'infonca' needs .*methods"
    ):
        check_columns(infonca, {}, [1, 2], "the data")
    check_sides(triple, 3, False, "the data")
    with pytest.raises(
        UsageError, match=r"^the data: objective 'triple_po' reads 3 answers of a row, which has 2; .*gold_column"
    ):
        check_sides(triple, 2, False, "the data")


# --------------------------------------------------------------------------------------------------- alphapo loss


LIST_ROW: dict[str, Any] = {
    "logps": [-20.0, -12.0, -16.0],
    "tokens": [8, 6, 7],
    "ref_logps": [-18.5, -13.0, -16.5],
    "scores": [1.0, 3.0, 2.5],
}


@pytest.fixture
def loss(alphapo, tmp_path):
    def run(rows, *overrides):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return alphapo("loss", "rows.jsonl", *overrides)

    return run


def test_loss_of_a_list_is_in_the_lists_order(loss) -> None:
    ran = loss(
        [LIST_ROW, {**LIST_ROW, "logps": [-20.0, -14.0, -16.0]}],
        "objective=infonca",
        "objective.link.temperature=0.5",
        "objective.beta=0.1",
    )
    assert (ran.code, ran.err) == (0, "")
    first, second = (json.loads(line) for line in ran.out.splitlines())
    r = [0.1 * x for x in (-1.5, 1.0, 0.5)]
    assert first["loss"] == pytest.approx(infonca(r, LIST_ROW["scores"], 0.5), rel=1e-12)
    assert first["rewards"] == pytest.approx(r, rel=1e-12)
    assert first["margin"] == pytest.approx(0.25, rel=1e-12)  # the second answer against the first
    q, t = softmax(r), softmax([x / 0.5 for x in LIST_ROW["scores"]])
    assert first["d_loss_d_logps"] == pytest.approx([0.1 * (a - b) for a, b in zip(q, t, strict=True)], rel=1e-9)
    assert second["loss"] > first["loss"]  # the best answer has become less likely


def test_loss_of_a_pair_objective_on_a_list_is_best_against_worst(loss) -> None:
    ran = loss([LIST_ROW], "objective=dpo")
    # The best answer is the chosen one of the golden pair A, the worst its rejected one.
    result = json.loads(ran.out)
    assert result["loss"] == pytest.approx(0.57593942, abs=6e-9)
    assert result["d_loss_d_logps"][2] == 0
    without = {k: v for k, v in LIST_ROW.items() if k != "scores"}
    turned = {k: [v[i] for i in (1, 0, 2)] for k, v in without.items()}
    assert json.loads(loss([turned], "objective=dpo").out)["loss"] == result["loss"]
    cpo, triple = (
        json.loads(loss([turned], f"objective={n}", "objective.beta=0.1").out)["loss"] for n in ("cpo", "triple_po")
    )
    assert triple == pytest.approx(cpo - 12 / 6 + 16 / 7, rel=1e-12)


def test_lists_of_two_are_pairs_under_an_nll_per_token_of_the_batch(loss) -> None:
    rows = [{**LIST_ROW, **{k: LIST_ROW[k][:2] for k in LIST_ROW}} for _ in range(2)]
    rows[1] |= {"logps": [-9.0, -10.0], "tokens": [5, 2]}
    named = (
        ("rejected_logp", "chosen_logp"),
        ("rejected_tokens", "chosen_tokens"),
        ("ref_rejected_logp", "ref_chosen_logp"),
    )
    keys = dict(zip(("logps", "tokens", "ref_logps"), named, strict=True))
    as_pairs = [{n: x for k, ns in keys.items() for n, x in zip(ns, row[k], strict=True)} for row in rows]
    words = ("objective=dpo", "objective.nll=1", "objective.nll_scope=tokens")
    lists, pairs = ([json.loads(x)["loss"] for x in loss(r, *words).out.splitlines()] for r in (rows, as_pairs))
    assert lists == pytest.approx(pairs, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "line", "fault"),
    [
        ({"tokens": [8, 6]}, "objective=dpo", "line 2: tokens=[8, 6] must be a list of 3 numbers, as many as logps"),
        ({"logps": [-1.0]}, "objective=dpo", "line 2: logps=[-1.0] must be a list of two numbers or more"),
        ({"scores": [1, None, 2]}, "objective=infonca", "line 2: scores[1]=null must be a finite number"),
        ({"scores": None}, "objective=infonca", "line 2: no column 'score_chosen', which objective 'infonca' needs"),
        ({"ref_logps": None}, "objective=dpo", "line 2: no 'ref_logps'"),
        ({"tokens": [8, 0, 7]}, "objective=dpo", "line 2: tokens=[8, 0, 7] must be whole numbers of at least 1"),
    ],
)
def test_broken_lists_are_named(loss, change, line, fault) -> None:
    ran = loss([LIST_ROW, {**LIST_ROW, **change}], line)
    assert (ran.code, ran.out) == (2, "")
    assert fault in ran.fault


def test_pairs_and_lists_do_not_mix(loss) -> None:
    pair_row = {"chosen_logp": -1, "rejected_logp": -2, "chosen_tokens": 1, "rejected_tokens": 1}
    ran = loss([LIST_ROW, pair_row], "objective=simpo")
    assert ran.code == 2
    assert "line 2: no 'logps', which line 1 has" in ran.fault
    ran = loss([pair_row], "objective=triple_po")
    assert ran.code == 2
    assert "reads 3 answers of a row, which has 2" in ran.fault


def test_the_second_best_of_a_scored_list_is_no_gold_answer(loss) -> None:
    ran = loss([LIST_ROW], "objective=triple_po")
    assert (ran.code, ran.out) == (2, "")
    assert "line 1: objective 'triple_po' reads a gold answer as a row's third" in ran.fault


def test_ranked_ties_keep_the_lists_order() -> None:
    from alphapo_cli.data.scored_answers import ranked

    rng = Random(1)
    for _ in range(50):
        answers = [(i, float(rng.randint(0, 3))) for i in range(rng.randint(2, 6))]
        count = rng.randint(2, len(answers))
        sides, scores = ranked(answers, count)
        given = dict(answers)
        assert scores["score_chosen"] == max(given.values())
        assert scores["score_rejected"] == min(given.values())
        rest = [s for s in sides if s != sides[1]]
        assert rest == sorted(rest, key=lambda i: (-given[i], i))
        left_out = set(given) - set(sides)
        assert all(given[i] <= given[s] for i in left_out for s in rest)
