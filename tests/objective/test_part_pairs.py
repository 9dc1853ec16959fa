"""Every pair of parts of different kinds, and every way in which a label may be uncertain: computed, or refused.

A cell of the table joins two parts, the others being DPO's; some hundred cells more join parts of all kinds. Each equals
a computation in plain floats, which knows nothing of our code (value and, by finite differences, gradient), or it is
refused in a sentence that says what to type. What is refused stands in `refusal`, and nowhere else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

from alphapo_cli.config.schema import ObjectiveConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.layout.batch import CompletionTokens
from alphapo_cli.modeling.logprobs import AnswerLogProbs, TokenLogProbs
from alphapo_cli.objective.build import build
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.part import TABLES
from tests.objective.plain_pairs import (
    BETA,
    GAMMA,
    IDS,
    PAIRS,
    SEED,
    Answer,
    Pair,
    Part,
    Scored,
    Sums,
    dot,
    side_of,
    weigh,
)
from tests.objective.plain_parts import KINDS, LABELS, Cell, Seen


def as_tensors(pairs: list[Pair], token: Part) -> tuple[AnswerLogProbs, Tensor]:
    """The same as our code reads it, and the log-probs as a leaf."""
    answers = [p.w for p in pairs] + [p.l for p in pairs]
    count = torch.tensor([len(a.logps) for a in answers])
    record = CompletionTokens(
        torch.tensor([i for side in (0, 1) for ids in IDS for i in ids[side]]),
        torch.arange(len(answers)).repeat_interleave(count), len(pairs), 2,
        turn=torch.tensor([t for a in answers for t in a.turns]),
        guide=torch.tensor([q for a in answers for q in a.guide], dtype=torch.float64),
    )  # fmt: skip
    leaf = torch.tensor([x for a in answers for x in a.logps], dtype=torch.float64, requires_grad=True)

    def of(values: Callable[[Answer], float]) -> Tensor:
        return torch.tensor([values(a) for a in answers], dtype=torch.float64).view(2, -1)

    def both(name: str, values: Callable[[Answer], float]) -> dict[str, Tensor]:
        return dict(zip((name.format("chosen"), name.format("rejected")), of(values), strict=True))

    def column(values: Callable[[Pair], float]) -> Tensor:
        return torch.tensor([values(p) for p in pairs], dtype=torch.float64)

    # The reference's own sums are made with its own tokens' weights.
    reference = [[dot(weigh(p, side, token, p.l if side else p.w, True), side_of(p, side).reference) for p in pairs]
                 for side in (0, 1)]  # fmt: skip
    columns = {
        **both("score_{}", lambda a: a.score), **both("other_reward_{}", lambda a: a.other_reward),
        **both("guide_{}_logp", lambda a: a.second), "offset": column(lambda p: p.offset),
        "weight": column(lambda p: p.weight), "semantic_distance": column(lambda p: p.distance),
        "win_probability": column(lambda p: p.wins), "sure": column(lambda p: p.sure),
    }  # fmt: skip
    given = replace(
        TokenLogProbs(leaf, record).answers(), reference=torch.tensor(reference, dtype=torch.float64), columns=columns,
        index=torch.tensor([p.index for p in pairs]), kl=of(lambda a: a.kl), log_p2=of(lambda a: a.log_p2),
    )  # fmt: skip
    return given, leaf


# ---------------------------------------------------------------------------------------------------- what is refused

LISTS = {"infonca", "nca_list", "exo_list", "swepo"}
JUDGED = LISTS | {"reward_gap", "sppo_soft"}  # links that read how good the answers are
EACH = LISTS | {"kto", "kto_mismatched", "kto_pair", "bce", "bco", "nca", "apo_zero", "sppo", "sppo_soft", "none"}
DIVIDING = {"mean", "odds", "ratio_mean"}


def refusal(cell: Cell) -> str | None:
    """Start of the sentence with which a cell is refused, as a regular expression; None: it is computed."""
    name = {kind: found.name for kind, found in cell.items()}
    if name["margin"] != "none" and name["link"] in EACH:  # a margin is subtracted from a difference
        return (
            rf"objective/margin={name['margin']}: objective/link={name['link']} reads no margin; set objective/margin"
        )
    if name["token"] != "all":
        if name["score"] == "ratio_mixed":  # the second reference is known by its sums alone
            return rf"objective/token={name['token']}: score 'ratio_mixed' reads sums.*take objective/token=all"
        if name["link"] in LISTS | {"kto_mismatched"}:  # the shorter one of two answers; of more there is none
            return rf"objective/token={name['token']}: .*'{name['link']}' reads more; take objective/token=all"
    if name["token"] == "guided":  # weights of either sign, whose sum may be 0
        if name["score"] in DIVIDING:
            return rf"objective/token=guided: .*score '{name['score']}' divides.*take objective/score=ratio_sum or"
        if name["margin"] == "instance":
            return r"objective/token=guided: .*margin 'instance' divides.*take objective/margin=none or"
    if name["label"] != "certain" and name["link"] in JUDGED:
        setting = (
            "label_smoothing=0.2" if "smooth" in name["label"] or "unbiased" in name["label"] else "label_column=sure"
        )
        return rf"objective\.{setting}: link '{name['link']}' reads how good the answers are .*leave it out"
    return None


# ------------------------------------------------------------------------------------------------------- the computation


def scored(pair: Pair, cell: Cell, base: Scored | None = None) -> Scored:
    still = pair if base is None else base.pair
    sums = []
    for side in (0, 1):
        now, before = side_of(pair, side), side_of(still, side)
        weights = weigh(pair, side, cell["token"], before)
        sums.append(Sums(dot(weights, now.logps), dot(weigh(pair, side, cell["token"], before, True), now.reference),
                         math.fsum(weights), now.second))  # fmt: skip
    w, l = (BETA * cell["score"].formula(a) for a in sums)  # noqa: E741
    return Scored(pair, (w, l), (sums[0], sums[1]), base)


def expected(x: Scored, cell: Cell) -> float:
    margin = x.gap - GAMMA - cell["margin"].formula(x)
    link = cell["link"].formula
    right, wrong = cell["label"].formula(x.pair)
    loss = right * link(Seen(x.rewards, margin, x.pair))
    if wrong:
        loss += wrong * link(Seen((x.rewards[1], x.rewards[0]), -margin, x.pair, True))
    nll = -x.means[0] if cell["link"].name == "none" else 0.0  # or there would be no loss
    return float(cell["weight"].formula(x) * loss) + nll


def slope(pair: Pair, side: int, cell: Cell) -> float:
    """The derivative by the log-prob of the answer's second token: central differences, extrapolated (error h^4)."""
    base, h = scored(pair, cell), 2.0**-11

    def at(step: float) -> float:
        answer = side_of(pair, side)
        moved = replace(answer, logps=(answer.logps[0], answer.logps[1] + step, *answer.logps[2:]))
        return expected(scored(replace(pair, **{"l" if side else "w": moved}), cell, base), cell)

    wide, narrow = (at(2 * h) - at(-2 * h)) / (4 * h), (at(h) - at(-h)) / (2 * h)
    return (4 * narrow - wide) / 3


def settings(cell: Cell) -> ObjectiveConfig:
    parts = {kind: {"name": found.name, **found.settings} for kind, found in cell.items() if kind != "label"}
    nll = float(cell["link"].name == "none")
    more = {**parts, **cell["label"].settings}
    return ObjectiveConfig("a cell", shape={"name": "identity"}, beta=BETA, gamma=GAMMA, nll=nll, **more)


def check(cell: Cell) -> None:
    said = refusal(cell)
    if said is not None:
        with pytest.raises(UsageError, match=f"^{said}"):
            build(settings(cell), SEED)
        return
    objective = build(settings(cell), SEED)
    given, leaf = as_tensors(PAIRS, cell["token"])
    states = {
        kind: {**objective.start.states.get(kind, {}),
               **{k: torch.tensor(v, dtype=torch.float64) for k, v in found.state.items()}}
        for kind, found in cell.items()
    }  # fmt: skip
    loss = objective(given, StepContext(0.0, states)).loss
    assert loss.tolist() == pytest.approx([expected(scored(p, cell), cell) for p in PAIRS], rel=1e-9, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum() + 0 * leaf.sum(), leaf)
    starts = (given.lengths.flatten().cumsum(0) - given.lengths.flatten()).long().view(2, -1)
    for i, pair in enumerate(PAIRS):
        for side in (0, 1):
            here, by_hand = gradient[starts[side, i] + 1].item(), slope(pair, side, cell)
            # Round-off of the loss over h: 2^-11 makes 1e-12 of it, and SPPO's and IPO's losses go to a hundred.
            assert here == pytest.approx(by_hand, rel=1e-7, abs=1e-9 * max(1.0, abs(loss[i].item()))), (i, side)


def base() -> Cell:
    return {kind: parts[0] for kind, parts in KINDS.items()}


def test_the_table_has_every_part() -> None:
    for kind, parts in KINDS.items():
        if kind != "label":
            assert {p.name for p in parts} == set(TABLES[kind]), kind


def test_it_starts_from_dpo() -> None:
    assert [p.name for p in base().values()] == ["ratio_sum", "all", "none", "logistic", "none", "certain"]
    pair = PAIRS[0]
    d = sum(pair.w.logps) - sum(pair.w.reference) - sum(pair.l.logps) + sum(pair.l.reference)
    assert expected(scored(pair, base()), base()) == pytest.approx(math.log1p(math.exp(GAMMA - BETA * d)), rel=1e-14)


def test_an_uncertain_label_with_smoothing_in_figures() -> None:
    """D = 3 at beta 0.1, P = 0.3 and e = 0.2 make P = 0.38: -0.38 ls(0.3) - 0.62 ls(-0.3)."""
    given = AnswerLogProbs(
        torch.tensor([[-1.0], [-4.0]]).double(), torch.ones(2, 1).double(), torch.full((2, 1), -1.0).double(),
        columns={"sure": torch.tensor([0.3]).double()},
    )  # fmt: skip
    cell = {**base(), "label": LABELS[4]}
    assert build(replace(settings(cell), beta=0.1, gamma=0.0))(given).loss.item() == pytest.approx(0.740355, abs=5e-7)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(KINDS, 2)))
def test_every_pair_of_parts(one: str, other: str) -> None:
    wrong = {}
    for a, b in itertools.product(KINDS[one], KINDS[other]):
        try:
            check({**base(), one: a, other: b})
        except (Exception, pytest.fail.Exception) as error:  # the others are looked at all the same
            wrong[f"{a.label} x {b.label}"] = error
    assert not wrong


def draws(count: int) -> Iterator[Cell]:
    rng = Random(8)
    while count:
        cell = {kind: rng.choice(parts) for kind, parts in KINDS.items()}
        if refusal(cell) is None:  # most are not: the table has those
            count -= 1
            yield cell


@pytest.mark.slow
def test_parts_of_every_kind_together() -> None:
    for cell in draws(200):
        try:
            check(cell)
        except Exception as error:
            error.add_note(" x ".join(p.label for p in cell.values()))
            raise
