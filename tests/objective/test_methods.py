"""Every objective of conf/objective/ at its defaults, against its formula written out in plain floats.

The same formulas give the gradients, by finite differences: nothing of our code differentiates them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from alphapo_cli.config.compose import compose
from alphapo_cli.config.overrides import Sources, read_line
from alphapo_cli.config.schema import ObjectiveConfig, TrainConfig
from alphapo_cli.errors import ConfigError
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.objective.build import build
from alphapo_cli.objective.catalog import LEVELS, Method, markdown
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.objective import Objective
from tests import tiny

METHODS = tiny.catalogue()


@dataclass(frozen=True)
class Row:
    """One pair: summed log-probs (policy, reference), tokens, and columns."""

    w: float  # summed log-prob of the chosen side
    l: float  # noqa: E741  # of the rejected side
    n_w: int
    n_l: int
    ref_w: float
    ref_l: float
    score_chosen: float
    score_rejected: float
    win_probability: float
    other_reward_chosen: float
    other_reward_rejected: float
    semantic_distance: float
    guide_chosen_logp: float  # under a second reference
    guide_rejected_logp: float
    kl_w: float  # KL(reference || policy) summed over the answer
    kl_l: float

    @property
    def r_w(self) -> float:
        return self.w - self.ref_w

    @property
    def r_l(self) -> float:
        return self.l - self.ref_l

    @property
    def gap(self) -> float:
        return self.r_w - self.r_l

    @property
    def a_w(self) -> float:
        return self.w / self.n_w

    @property
    def a_l(self) -> float:
        return self.l / self.n_l

    @property
    def better(self) -> float:
        return self.score_chosen - self.score_rejected


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def ls(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def odds(a: float) -> float:
    return math.log(math.exp(a) / (1 - math.exp(a)))


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def omni(r: Row) -> float:
    weight = s(0.7 * r.better) * (1 - s(2 * (r.a_w - r.a_l) - 1)) ** 3
    nll = -1e-3 * r.a_w if r.ref_w > r.w and r.score_chosen >= 3.2 else 0.0
    return -weight * ls(2 * (r.r_w / r.n_w - r.r_l / r.n_l)) + nll


def mixed(reference: float, second: float) -> float:
    """MRPO's reference: half of each probability's inverse, the second one within a tenth of the first."""
    second = min(max(second, 1.1 * reference), 0.9 * reference)
    return -math.log(0.5 * math.exp(-reference) + 0.5 * math.exp(-second))


FORMULAS: dict[str, Callable[[Row], float]] = {
    "alphapo_adaptive": lambda r: -ls(2.5 * (r.a_w - r.a_l) - 0.25),  # at the start
    "alphapo": lambda r: -ls(2.5 * (math.exp(-r.a_l / 4) - math.exp(-r.a_w / 4)) / 0.25 - 0.25),
    "alphapo_ratio": lambda r: -ls(0.1 * (math.exp(r.r_w / 4) - math.exp(r.r_l / 4)) / 0.25),
    "apo_down": lambda r: s(0.1 * r.r_w) + 1 - s(0.1 * r.gap),
    "apo_zero": lambda r: 1 - s(0.1 * r.r_w) + s(0.1 * r.r_l),
    "asft": lambda r: -r.a_w - r.a_w - math.log(1 - math.exp(r.a_l)),
    "bco": lambda r: -ls(0.01 * r.r_w) - ls(-0.01 * r.r_l),  # before the first step
    "beta_dpo": lambda r: -ls(0.1 * r.gap),  # before the first step
    "bce": lambda r: -ls(0.01 * r.r_w) - ls(-0.01 * r.r_l),
    "cal_dpo": lambda r: -ls(r.gap) + ((r.r_w - 500) ** 2 + (r.r_l + 500) ** 2) / 2,
    "cdpo": lambda r: -0.9 * ls(0.1 * r.gap) - 0.1 * ls(-0.1 * r.gap),
    "chi_po": lambda r: -ls(0.1 * (r.r_w + math.exp(r.r_w) - r.r_l - math.exp(r.r_l))),
    "cpo": lambda r: -ls(0.1 * (r.w - r.l)) - r.a_w,
    "cpo_simpo": lambda r: -ls(2.5 * (r.a_w - r.a_l) - 0.25) - 0.05 * r.a_w,
    "discopop": lambda r: (1 - s(r.gap)) * -ls(0.05 * r.gap) + s(r.gap) * math.exp(-0.05 * r.gap),
    "dpo": lambda r: -ls(0.1 * r.gap),
    "dpo_shift": lambda r: -ls(0.01 * (r.r_w - 0.95 * r.r_l)),
    "dpo_shift_linear": lambda r: -ls(0.01 * (r.r_w - 0.95 * r.r_l)),  # at the start
    "dpop": lambda r: -ls(0.1 * (r.gap - 50 * max(0.0, -r.r_w))),
    "exo": lambda r: kl(s(0.1 * r.gap), 1 - 1e-3),
    "exo_list": lambda r: kl(s(0.1 * r.gap), s(r.better)),  # lists as pairs; more answers: test_lists.py
    "f_dpo_alpha": lambda r: -ls(0.1 * (math.exp(-0.5 * r.r_l) - math.exp(-0.5 * r.r_w)) / 0.5),
    "f_dpo_forward_kl": lambda r: -ls(0.1 * (math.exp(-r.r_l) - math.exp(-r.r_w))),
    "f_dpo_js": lambda r: -ls(0.1 * (ls(r.r_w) - ls(r.r_l))),
    "focalpo": lambda r: -(s(0.1 * r.gap) ** 0.05) * ls(0.1 * r.gap),
    "gamma_po": lambda r: -ls(2.5 * (r.a_w - r.a_l) - 0.375),  # before the first step
    "h_dpo": lambda r: -ls(0.1 * (0.95 * (r.w - r.l) - (r.ref_w - r.ref_l))),
    "hinge": lambda r: max(0.0, 1 - 0.05 * r.gap),
    "infonca": lambda r: -ls(0.01 * r.gap),
    "ipo": lambda r: (r.r_w / r.n_w - r.r_l / r.n_l - 5) ** 2,
    "irpo": lambda r: -ls(0.1 * r.gap) - r.a_w,
    "kto": lambda r: s(-0.1 * r.r_w) + s(0.1 * r.r_l),  # before the first step
    "kto_constant": lambda r: s(-0.1 * r.r_w) + s(0.1 * r.r_l),
    "kto_pair": lambda r: s(-0.1 * r.r_w) + s(0.1 * r.r_l),  # before the first step
    "ln_dpo": lambda r: -ls(5 * (r.r_w / r.n_w - r.r_l / r.n_l)),
    "mappo": lambda r: -ls(0.1 * (r.r_w - r.better * r.r_l)),
    "modpo": lambda r: -ls((0.1 * r.gap - 0.5 * (r.other_reward_chosen - r.other_reward_rejected)) / 0.5),
    "swepo": lambda r: -ls(0.1 * r.gap),
    "mrpo": lambda r: (
        -ls(0.1 * (r.w - mixed(r.ref_w, r.guide_chosen_logp) - r.l + mixed(r.ref_l, r.guide_rejected_logp)))
    ),
    "nca_list": lambda r: -ls(0.01 * r.r_w) - 0.5 * ls(-0.01 * r.r_w) - 0.5 * ls(-0.01 * r.r_l),
    "nca_pair": lambda r: -ls(0.01 * r.r_w) - 0.5 * ls(-0.01 * r.r_w) - 0.5 * ls(-0.01 * r.r_l),
    "odpo": lambda r: -ls(0.1 * r.gap - math.log(r.better)),
    "omni_dpo": omni,
    "orpo": lambda r: -r.a_w - 0.1 * ls(odds(r.a_w) - odds(r.a_l)),
    "r_dpo": lambda r: -ls(0.1 * r.gap + 0.05 * (r.n_w - r.n_l)),
    "robust_dpo": lambda r: (-0.9 * ls(0.1 * r.gap) + 0.1 * ls(-0.1 * r.gap)) / 0.8,
    "rpo_aware_kl": lambda r: kl(s(r.better), s(0.1 * r.gap)),
    "rpo_aware_reverse_kl": lambda r: kl(s(0.1 * r.gap), s(r.better)),
    "rpo_aware_squared": lambda r: (0.1 * r.gap - r.better) ** 2,
    "rpo_sft": lambda r: -ls(0.01 * r.gap) - 0.01 * 0.005 * r.w,
    "sem_dpo": lambda r: -math.exp(-r.semantic_distance) * ls(0.1 * r.gap),
    "sft": lambda r: -r.a_w,
    "simpo": lambda r: -ls(2.5 * (r.a_w - r.a_l) - 0.25),
    "slic": lambda r: max(0.0, 1 - r.w + r.l) - 0.1 * r.w,
    "soft_labels": lambda r: -r.win_probability * ls(0.1 * r.gap) - (1 - r.win_probability) * ls(-0.1 * r.gap),
    "sppo_hard": lambda r: (r.r_w - 500) ** 2 + (r.r_l + 500) ** 2,
    "sppo_soft": lambda r: (
        (r.r_w - (r.win_probability - 0.5) / 1e-3) ** 2 + (r.r_l - (0.5 - r.win_probability) / 1e-3) ** 2
    ),
    "tdpo": lambda r: -ls(0.1 * (r.gap - 0.5 * (r.kl_l - r.kl_w))),  # the KL's own gradient: test_third_model.py
    "tempered_asft": lambda r: -ls(0.1 * odds(r.a_w)) - ls(-0.1 * odds(r.a_l)),
    "tr_dpo": lambda r: -ls(0.05 * r.gap),  # with the reference where it is
    "tempered_orpo": lambda r: -ls(0.1 * (odds(r.a_w) - odds(r.a_l))),
}
# Formulas with parts that have no gradient: those are read from the second row, which stays where it is.
DETACHED: dict[str, Callable[[Row, Row], float]] = {
    "alpha_dpo": lambda r, z: -ls(2.5 * (r.a_w - r.a_l - 0.15 - 0.05 * (z.r_w / z.n_w - z.r_l / z.n_l))),
}


def rows(count: int, seed: int, scale: float = 1.0) -> list[Row]:
    """Pairs of 1 to 40 tokens, 0.2 to 2.5 nats a token, log-ratios of about two nats."""
    rng = Random(seed)
    found = []
    for _ in range(count):
        n_w, n_l = rng.randint(1, 40), rng.randint(1, 40)
        chosen, rejected = -n_w * rng.uniform(0.2, 2.5), -n_l * rng.uniform(0.2, 2.5)
        low = rng.uniform(0, 0.4)
        found.append(
            Row(
                chosen, rejected, n_w, n_l, chosen - rng.gauss(0, 2), rejected - rng.gauss(0, 2), scale * (low + rng.uniform(0.05, 0.6)),
                scale * low, rng.random(), rng.gauss(0, 1), rng.gauss(0, 1), rng.random(), 0.0, 0.0, 0.0, 0.0,
            )
        )  # fmt: skip
    more = Random(seed)  # of its own: what came before stays as it is
    return [
        replace(
            r, guide_chosen_logp=r.ref_w - more.gauss(0, 2), guide_rejected_logp=r.ref_l - more.gauss(0, 2),
            kl_w=more.expovariate(1), kl_l=more.expovariate(1),
        )
        for r in found
    ]  # fmt: skip


def answers(found: list[Row], dtype: torch.dtype = torch.float64) -> AnswerLogProbs:
    def of(*names: str) -> Tensor:
        return torch.tensor([[getattr(r, name) for r in found] for name in names], dtype=dtype)

    columns = ("score_chosen", "score_rejected", "win_probability", "other_reward_chosen", "other_reward_rejected",
               "semantic_distance", "guide_chosen_logp", "guide_rejected_logp")  # fmt: skip
    return AnswerLogProbs(
        of("w", "l"), of("n_w", "n_l"), of("ref_w", "ref_l"), columns={name: of(name)[0] for name in columns},
        kl=of("kl_w", "kl_l"),
    )  # fmt: skip


def loss_and_gradient(
    objective: Objective, given: AnswerLogProbs, context: StepContext | None = None
) -> tuple[Tensor, Tensor]:
    """Where single tokens are read: as if every one counted once, and the distributions were flat."""
    leaf = given.sums.clone().requires_grad_(True)
    weighted = torch.stack([leaf, given.lengths, given.lengths]) if objective.weighs_tokens else None
    loss = objective(replace(given, sums=leaf, weighted=weighted, log_p2=-torch.ones_like(leaf)), context).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("name", [*FORMULAS, *DETACHED])
def test_the_formula_and_its_derivative(name: str) -> None:
    # Omni-DPO's threshold is on a scale of 1 to 10 (its authors' scores); MaPPO's gap lies within 1.
    found = rows(60, seed=11, scale=5.0 if name == "omni_dpo" else 1.0)
    loss, gradient = loss_and_gradient(METHODS[name].objective, answers(found))
    h = 1e-4
    kinks = 0
    for i, r in enumerate(found):

        def formula(moved: Row, base: Row = r) -> float:
            return DETACHED[name](moved, base) if name in DETACHED else FORMULAS[name](moved)

        assert loss[i].item() == pytest.approx(formula(r), rel=1e-9, abs=1e-12), r
        for side, key in enumerate(("w", "l")):

            def at(step: float, r: Row = r, key: str = key) -> float:
                return formula(replace(r, **{key: getattr(r, key) + step}))

            # Richardson's extrapolation of central differences: error of order h^4, and round-off of the values over h.
            wide, narrow = (at(2 * h) - at(-2 * h)) / (4 * h), (at(h) - at(-h)) / (2 * h)
            slope = (4 * narrow - wide) / 3
            if abs(wide - narrow) > 1e-2 * (1 + abs(slope)):  # the step crosses a kink of a hinge
                kinks += 1
                continue
            allowed = 1e-6 * abs(slope) + 1e-11 * (1 + abs(formula(r))) / h
            assert abs(gradient[side, i].item() - slope) <= allowed, (key, r)
    assert kinks <= 2


def test_every_objective_has_its_formula_here() -> None:
    tokens = {n for n, m in METHODS.items() if m.objective.weighs_tokens or m.objective.needs_statistics}
    more = {n for n, m in METHODS.items() if m.objective.sides(2) > 2}
    # Those of tokens: test_tokens.py; those that cannot do with two answers: test_lists.py
    assert set(METHODS) == set(FORMULAS) | set(DETACHED) | tokens | more


@pytest.mark.parametrize("name", METHODS)
def test_finite_at_the_ends_of_the_range(name: str) -> None:
    """float32, scores in [-1e4, 0], ratios up to 1e4 either way, beta 100, alpha to 4: loss, gradient and its norm."""
    cfg = METHODS[name].cfg
    corners = [-1e4, -30.0, -1.0, -1e-3, 0.0]
    grid = torch.cartesian_prod(*(torch.tensor(corners),) * 4)  # policy and reference, both sides
    count = len(grid)
    lengths = torch.tensor([[1.0], [1.0]]).expand(2, count)
    columns = {"score_chosen": 0.9, "score_rejected": 0.1, "win_probability": 1.0, "other_reward_chosen": 5.0,
               "other_reward_rejected": -5.0, "semantic_distance": 2.0, "guide_chosen_logp": -1e4,
               "guide_rejected_logp": -0.5}  # fmt: skip
    # Omni-DPO's weight has a gradient, which multiplies the loss itself: only with its own shape.
    shapes = (
        [cfg.shape]
        if name == "omni_dpo"
        else [cfg.shape, {"name": "power", "alpha": 4.0}, {"name": "power", "alpha": -4.0}]
    )
    for shape in shapes:
        for beta in (0.01, cfg.beta, 100.0):
            objective = build(replace(cfg, shape=dict(shape), beta=beta))
            sides = [0, 1, 0][: max(2, objective.sides(2))]  # where a third answer is read, it is the chosen one
            given = AnswerLogProbs(grid[:, :2].T[sides].contiguous(), lengths[sides], grid[:, 2:].T[sides].contiguous(),
                                   columns={k: torch.full((count,), v) for k, v in columns.items()},
                                   kl=torch.full((len(sides), count), 1e3))  # fmt: skip
            loss, gradient = loss_and_gradient(objective, given)
            assert loss.dtype == torch.float32
            worst = (gradient * gradient).sum(0)
            for what, value in (("loss", loss), ("gradient", gradient), ("its norm", worst)):
                bad = ~value.isfinite()
                assert not bad.any(), (what, shape, beta, grid[bad.reshape(-1, count).any(0)][0].tolist())


# ------------------------------------------------------------------------------------------------------- identities

# objective and settings -> the objective that it then is
IDENTITIES = [
    ("h_dpo", {"score": {"alpha": 1.0}}, "dpo", {}),
    ("dpo_shift", {"margin": {"factor": 1.0}}, "dpo", {"beta": 0.01}),
    ("dpop", {"margin": {"weight": 0.0}}, "dpo", {}),
    ("r_dpo", {"margin": {"alpha": 0.0}}, "dpo", {}),
    ("odpo", {"margin": {"alpha": 0.0}}, "dpo", {}),
    ("modpo", {"margin": {"weight": 0.0}}, "dpo", {}),
    ("sem_dpo", {"weight": {"alpha": 0.0}}, "dpo", {}),
    ("focalpo", {"link": {"power": 0.0}}, "dpo", {}),
    ("cpo", {"nll": 0.0}, "simpo", {"score": {"name": "sum"}, "beta": 0.1, "gamma_beta_ratio": 0.0}),
    ("cpo_simpo", {"nll": 0.0}, "simpo", {}),
    ("irpo", {"nll": 0.0}, "dpo", {}),
    ("cdpo", {"label_smoothing": 0.0}, "dpo", {}),
    ("robust_dpo", {"label_smoothing": 0.0}, "dpo", {}),
    ("kto_constant", {}, "apo_zero", {}),
    ("kto", {}, "apo_zero", {}),  # before the first step
    ("f_dpo_forward_kl", {}, "alphapo_ratio", {"shape": {"alpha": -1.0}}),
    ("f_dpo_alpha", {"shape": {"alpha": 0.0}}, "dpo", {}),  # TRL's coefficient 1
    ("dpo_shift_linear", {}, "dpo_shift", {}),  # at the start
    ("tempered_asft", {"beta": 1.0}, "asft", {"nll": 0.0}),
    ("tempered_orpo", {"beta": 1.0}, "orpo", {"nll": 0.0, "preference": 1.0}),
    ("sppo_soft", {"columns": {"win_probability": 1.0}}, "sppo_hard", {}),
    ("soft_labels", {"columns": {"win_probability": 1.0}}, "dpo", {}),
    ("soft_labels", {"columns": {"win_probability": 0.9}}, "cdpo", {}),
    ("tdpo", {"margin": {"alpha": 0.0}}, "dpo", {}),
    ("mrpo", {"score": {"weight": 0.0}}, "dpo", {}),
    ("mappo", {"columns": {"score_chosen": 1.0, "score_rejected": 0.0}}, "dpo", {}),
]


def changed(name: str, settings: dict[str, object]) -> Objective:
    cfg: ObjectiveConfig = METHODS[name].cfg
    for key, value in settings.items():
        if key != "columns":
            cfg = replace(cfg, **{key: {**getattr(cfg, key), **value} if isinstance(value, dict) else value})
    return build(cfg)


@pytest.mark.parametrize(("one", "settings", "other", "others"), IDENTITIES, ids=[f"{i[0]}-{i[2]}" for i in IDENTITIES])
def test_limits(one: str, settings: dict[str, object], other: str, others: dict[str, object]) -> None:
    given = answers(rows(200, seed=5))
    fixed = settings.get("columns", {})
    assert isinstance(fixed, dict)
    columns = {k: torch.full_like(v, fixed[k]) if k in fixed else v for k, v in given.columns.items()}
    given = replace(given, columns=columns)
    for a, b in zip(
        loss_and_gradient(changed(one, settings), given), loss_and_gradient(changed(other, others), given), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)


def test_asfts_alignment_is_a_likelihood_and_no_less_than_orpos() -> None:
    given = answers(rows(200, seed=6))
    asft = changed("asft", {"nll": 0.0})(given).loss
    means = given.sums / given.lengths
    assert torch.allclose(asft, -means[0] - torch.log(1 - means[1].exp()), rtol=1e-12)
    orpo = changed("orpo", {"nll": 0.0, "preference": 1.0})(given).loss
    assert (asft >= orpo - 1e-12).all()


def test_sigmoid_of_margins_with_a_published_sign() -> None:
    # R-DPO weakens pairs whose chosen side is the longer one.
    longer = answers([replace(rows(1, seed=1)[0], n_w=40, n_l=10)])
    shorter = replace(longer, lengths=longer.lengths.flip(0))
    objective = METHODS["r_dpo"].objective
    assert loss_and_gradient(objective, longer)[1].abs().max() < loss_and_gradient(objective, shorter)[1].abs().max()


# --------------------------------------------------------------------------------------------------------- catalogue


@pytest.mark.parametrize("line", ["objective=mpo", "objective=dpo objective/link=mpo"])
def test_the_former_name_of_swepo_is_refused(line: str) -> None:
    """Trainers know another loss by that name: nobody is to train one in place of the other."""
    with pytest.raises(
        ConfigError, match=r"=mpo: no such objective.*objective(/link)?=swepo \(SWEPO, arXiv 2412\.04628\)"
    ) as no:
        tiny.objective(*line.split())
    assert ("arXiv 2411.10442" in str(no.value)) == (line == "objective=mpo")


def test_a_method_of_ones_own_may_have_that_name(tmp_path: Path) -> None:
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mpo.yaml").write_text("defaults:\n  - dpo\n  - _self_\nname: mpo\n")
    where = Sources(tmp_path)
    assert compose("train", TrainConfig, [read_line(["objective=mpo"], where)], where).objective.link == {
        "name": "logistic"
    }


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_its_head_says_everything(method: Method) -> None:
    assert method.cfg.name == method.name
    for key in ("paper", "loss", "checked"):
        assert method.head_line(key), key
    assert method.text.endswith(".")
    assert method.checked
    assert set(method.checked) <= set(LEVELS)


def test_the_page_of_the_docs_is_the_catalogue() -> None:
    page = Path(__file__).parents[2] / "docs" / "objectives.md"
    assert page.read_text() == markdown(list(METHODS.values())), "alphapo objectives --markdown > docs/objectives.md"


def test_schedules_move_a_parameter_over_training() -> None:
    given = answers(rows(50, seed=8))
    shift = METHODS["dpo_shift_linear"].objective
    for progress, factor in ((0.0, 0.95), (0.5, 0.975), (1.0, 1.0)):
        fixed = changed("dpo_shift", {"margin": {"factor": factor}})
        there = loss_and_gradient(shift, given, StepContext(progress))
        for a, b in zip(there, loss_and_gradient(fixed, given), strict=True):
            assert torch.allclose(a, b, rtol=1e-12)
    alpha = {"name": "cosine", "of": "shape.alpha", "start": -0.5, "end": 1.0}
    cosine = changed("alphapo", {"schedule": alpha})
    for progress in (0.0, 0.3, 1.0):
        value = 1.0 - 1.5 * (1 + math.cos(math.pi * progress)) / 2
        assert cosine.at(StepContext(progress)).parts["shape"].settings["alpha"] == pytest.approx(value, abs=1e-15)


def test_a_schedule_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.schedule\.of=shape\.alpha: .*objective/shape=power"):
        tiny.objective("objective=dpo", "objective/schedule=linear")


@pytest.mark.parametrize(
    ("of", "objective", "because"),
    [
        ("token.alpha", "ld_dpo", "it has: none"),  # the reference's sums were made with one value
        ("margin.spread", "alpha_dpo", "it has: margin.alpha"),  # where a memory begins is read once
        ("link.shift", "bco", "it has: none"),
    ],
)
def test_a_schedule_moves_nothing_that_is_not_read_at_every_step(of: str, objective: str, because: str) -> None:
    with pytest.raises(ConfigError, match=rf"objective\.schedule\.of={of}: .*{because}"):
        tiny.objective(f"objective={objective}", "objective/schedule=linear", f"objective.schedule.of={of}")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("objective=gamma_po objective.margin.tau=0", "objective.margin.tau=0.0: must be above 0"),
        ("objective=gamma_po objective.margin.size=-1", "objective.margin.size=-1: must be at least 0"),
        ("objective=alpha_dpo objective.margin.spread=0", "objective.margin.spread=0.0: must be above 0"),
        ("objective=alpha_dpo objective.margin.momentum=1", "objective.margin.momentum=1.0: must be below 1"),
        ("objective=beta_dpo objective.weight.drop=-1", "objective.weight.drop=-1.0: must be at least 0"),
        ("objective=beta_dpo objective.margin.drop=1", "objective.margin.drop=1.0: must be below 1"),
        ("objective=kto_pair objective.link.desirable=-1", "objective.link.desirable=-1.0: must be at least 0"),
        ("objective=focalpo objective.link.power=-1", "objective.link.power=-1.0: must be at least 0"),
        ("objective=sampo objective.token.seed=4294967296", "objective.token.seed=4294967296: must be below"),
        ("objective=alphapo_adaptive objective.schedule.start=9", "between low=-1.0 and high=2.0"),
        # Where a schedule leads is asked at once, not when training gets there.
        (
            "objective=exo objective/schedule=linear objective.schedule.of=link.epsilon objective.schedule.start=0.1 objective.schedule.end=-1",
            "objective.link.epsilon=-1.0: must be above 0 and below 1; objective.schedule moves it there",
        ),
        (
            "objective=alphapo objective/shape=tanh objective/schedule=adaptive objective.schedule.of=shape.scale objective.schedule.start=1",
            "objective.shape.scale=-1.0: must be above 0; objective.schedule moves it there",
        ),
        ("objective=kto_pair objective/margin=length", "objective/link=kto_pair reads no margin"),
        ("objective=dpo objective.preference=0", "no loss is left"),
    ],
)  # fmt: skip
def test_numbers_that_no_step_could_use_are_refused_before_any(line: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(fault)):
        tiny.objective(*line.split())
