"""The probe's row of metrics against the same numbers worked out pair by pair in plain Python."""

from __future__ import annotations

import copy
import json
import math
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from alphapo_cli.modeling.layout.registry import LAYOUTS
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.probe.displacement import ProbeValues, metrics, objective_values, per_pair
from alphapo_cli.probe.probe import Probe
from alphapo_cli.probe.scoring import score_pairs
from alphapo_cli.runtime.distributed import Processes
from tests import tiny

Row = dict[str, float | None]


def values(rng: Random, pairs: int, lengths: list[list[int]] | None = None, drift: float = 1.0) -> ProbeValues:
    def table(low: float, high: float, sides: int = 2) -> np.ndarray:
        return np.array([[rng.uniform(low, high) for _ in range(pairs)] for _ in range(sides)])

    tokens = lengths or [[rng.randint(1, 30) for _ in range(pairs)] for _ in range(2)]
    return ProbeValues(
        sums=table(-40, -1) * drift,
        lengths=np.array(tokens, float),
        scores=table(-3, 0),
        rewards=table(-5, 5),
        slopes=table(0, 2),
        gradients=table(-1, 1),
        entropy=table(0, 4, 1)[0],
        kl=table(0, 1, 1)[0],
        rounding=np.zeros((2, pairs)),
        reward_rounding=np.zeros((2, pairs)),
    )


def quantile(xs: list[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(xs)
    place = (len(ordered) - 1) * q / 100
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def mean(xs: list[float]) -> float:
    return math.fsum(xs) / len(xs)


def expected(now: ProbeValues, start: ProbeValues) -> Row:
    n = now.sums.shape[1]
    row: Row = {}

    def spread(key: str, xs: list[float]) -> None:
        row[key] = mean(xs)
        for q in (10, 50, 90):
            row[f"{key}/p{q}"] = quantile(xs, q)

    up: list[tuple[bool, bool]] = []
    for side, name in enumerate(("chosen", "rejected")):
        moved = [float(now.sums[side][i] - start.sums[side][i]) for i in range(n)]
        spread(f"displacement/{name}", [moved[i] / float(now.lengths[side][i]) for i in range(n)])
        row[f"displacement/{name}_sum"] = mean(moved)
        spread(f"logps/{name}", [float(now.sums[side][i] / now.lengths[side][i]) for i in range(n)])
        row[f"logps/{name}_sum"] = mean([float(x) for x in now.sums[side]])
        spread(f"rewards/{name}", [float(x) for x in now.rewards[side]])
        spread(f"gradient_weight/{name}", [float(x) for x in now.gradients[side]])
    row["shape/slope"] = mean([float(x) for side in (0, 1) for x in now.slopes[side]])
    for i in range(n):
        up.append((now.sums[0][i] >= start.sums[0][i], now.sums[1][i] >= start.sums[1][i]))
    row["displacement/share_chosen_down"] = sum(not c for c, _ in up) / n
    for name, quadrant in {
        "up_up": (True, True), "up_down": (True, False), "down_up": (False, True), "down_down": (False, False),
    }.items():  # fmt: skip
        row[f"displacement/quadrant/{name}"] = sum(u == quadrant for u in up) / n
    margins = [float(now.rewards[0][i] - now.rewards[1][i]) for i in range(n)]
    before = [float(start.rewards[0][i] - start.rewards[1][i]) for i in range(n)]
    chosen_growth = mean([float(now.rewards[0][i] - start.rewards[0][i]) for i in range(n)])
    growth = mean(margins) - mean(before)
    row["displacement/margin_from_chosen"] = chosen_growth / growth if growth > 0 else None
    spread("rewards/margins", margins)
    row["rewards/accuracies"] = sum(m > 0 for m in margins) / n
    right = [now.sums[0][i] > now.sums[1][i] for i in range(n)]
    was = [start.sums[0][i] > start.sums[1][i] for i in range(n)]
    row["ranking/accuracy"] = sum(map(bool, right)) / n
    row["ranking/accuracy_length_normalised"] = (
        sum(bool(now.sums[0][i] / now.lengths[0][i] > now.sums[1][i] / now.lengths[1][i]) for i in range(n)) / n
    )
    gained = [[float(now.sums[k][i] - start.sums[k][i]) for i in range(n)] for k in (0, 1)]
    each = [[gained[k][i] / float(now.lengths[k][i]) for i in range(n)] for k in (0, 1)]
    row["ranking/against_start"] = sum(gained[0][i] > gained[1][i] for i in range(n)) / n
    row["ranking/against_start_length_normalised"] = sum(each[0][i] > each[1][i] for i in range(n)) / n
    row["displacement/rejected_to_chosen"] = mean(each[1]) / mean(each[0])
    row["ranking/flipped"] = sum(bool(a != b) for a, b in zip(right, was, strict=True)) / n
    row["kl/reference"] = mean([float(x) for x in now.kl])
    row["entropy/chosen"] = mean([float(x) for x in now.entropy])
    return row


@pytest.mark.parametrize("pairs", [1, 2, 7, 64])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_the_plain_means(pairs: int, seed: int) -> None:
    rng = Random(seed)
    start = values(rng, pairs)
    now = values(rng, pairs, start.lengths.astype(int).tolist())
    ours, theirs = metrics(now, start), expected(now, start)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)), key
    shares = [ours[f"displacement/quadrant/{q}"] for q in ("up_up", "up_down", "down_up", "down_down")]
    assert math.fsum(s or 0.0 for s in shares) == pytest.approx(1.0, abs=1e-12)
    assert ours["displacement/share_chosen_down"] == pytest.approx((shares[2] or 0.0) + (shares[3] or 0.0), abs=1e-12)


def test_before_the_first_step_nothing_has_moved() -> None:
    start = values(Random(0), 9)
    row = metrics(start, start)
    for key in ("displacement/chosen", "displacement/rejected_sum", "displacement/chosen/p90",
                "displacement/share_chosen_down", "ranking/flipped"):  # fmt: skip
        assert row[key] == 0.0
    assert row["displacement/quadrant/up_up"] == 1.0
    assert row["displacement/margin_from_chosen"] is None  # the margin has not grown: no share to speak of
    assert row["displacement/rejected_to_chosen"] is None
    assert row["ranking/against_start"] == row["ranking/against_start_length_normalised"] == 0.5  # nobody has gained


def test_the_slope_ratio_is_none_while_the_chosen_answers_have_moved_by_rounding_alone() -> None:
    """Four answers of 4 tokens, each sum off by up to 0.2 before and now: their mean by sqrt(4 * 2) * 0.2 / 16."""
    start = values(Random(0), 4, [[4] * 4] * 2)
    start = ProbeValues(**{**vars(start), "rounding": np.full((2, 4), 0.2)})
    for fall, ratio in ((0.13, None), (0.16, pytest.approx(1.0 / 0.16))):
        now = ProbeValues(**{**vars(start), "sums": start.sums - np.array([[fall], [1.0]])})
        assert metrics(now, start)["displacement/rejected_to_chosen"] == ratio


def test_an_order_within_rounding_is_a_tie_and_any_fall_is_a_fall() -> None:
    """Four pairs: clearly right, right by less than rounding, wrong by less, clearly wrong."""
    start = values(Random(0), 4, [[4] * 4] * 2)
    sums = np.array([[-3.0, -5.0, -5.0, -9.0], [-6.0, -5.1, -4.9, -6.0]])
    moved = sums + np.array([[-1.0, -0.1, 0.1, 1.0], [-1.0, 1.0, -0.1, -1.0]])
    rounding = np.full((2, 4), 0.2)
    start = ProbeValues(**{**vars(start), "sums": sums, "rounding": rounding, "reward_rounding": rounding})
    now = ProbeValues(**{**vars(start), "sums": moved, "rewards": np.array([[3.0, 1.25, 1.0, 1.0], [1, 1, 1.25, 3]])})
    row = metrics(now, start)
    # Of two roundings of 0.2, which add in squares: 0.28.
    assert row["rewards/accuracies"] == (1 + 0.5 + 0.5 + 0) / 4
    assert [r["rewards/accuracies"] for r in per_pair(now, start, 1)] == [1, 0.5, 0.5, 0]
    # Now and before are scored alike: a change has no rounding of its own.
    assert row["displacement/share_chosen_down"] == 2 / 4
    assert row["displacement/quadrant/down_down"] == 1 / 4
    assert row["displacement/quadrant/down_up"] == 1 / 4
    assert row["displacement/quadrant/up_down"] == 2 / 4
    assert row["ranking/accuracy"] == (1 + 0 + 0.5 + 0) / 4  # -4 and -7; -5.1 and -4.1; -4.9 and -5.0; -8 and -7
    assert row["ranking/flipped"] == (0 + 0.5 + 0 + 0) / 4  # a tie before
    assert row["ranking/accuracy_length_normalised"] == row["ranking/accuracy"]
    assert metrics(start, start)["ranking/flipped"] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_policy_that_is_its_reference_is_right_about_half(layout: str) -> None:
    """Its sums made in other batches than the probe's: every margin is round-off."""
    policy = PolicyModel(tiny.model(), layout=layout)
    pairs, objective = tiny.token_pairs(24, seed=5), tiny.objective("objective=dpo")
    reference = score_pairs(policy, pairs, batch_size=5, pad_id=tiny.PAD, processes=Processes())
    probe = Probe(policy, objective, pairs, batch_size=3, pad_id=tiny.PAD, processes=Processes(), reference=reference)
    margins = probe.start.rewards[0] - probe.start.rewards[1]
    assert np.abs(margins).max() < 1e-4
    assert metrics(probe.start, probe.start)["rewards/accuracies"] == 0.5
    probe.reference = reference + np.array([[-1e-3], [0.0]])  # a thousandth of a nat is seen
    assert metrics(probe.measure(policy), probe.start)["rewards/accuracies"] == 1.0


@pytest.mark.parametrize(
    ("chosen", "rejected", "share"), [(1.0, -1.0, 0.5), (-1.0, -3.0, -0.5), (3.0, 2.0, 3.0), (1.0, 2.0, None)]
)
def test_margin_from_chosen(chosen: float, rejected: float, share: float | None) -> None:
    start = values(Random(1), 5)
    rewards = start.rewards + np.array([[chosen], [rejected]])
    now = ProbeValues(**{**vars(start), "rewards": rewards})
    found = metrics(now, start)["displacement/margin_from_chosen"]
    assert found == (None if share is None else pytest.approx(share, rel=1e-12))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_undefined_is_null_and_never_nan(bad: float) -> None:
    start = values(Random(2), 4)
    rewards = start.rewards.copy()
    rewards[0, 1] = bad
    now = ProbeValues(**{**vars(start), "rewards": rewards})
    row = metrics(now, start)
    json.dumps(row, allow_nan=False)
    assert row["rewards/chosen"] is None
    assert row["rewards/margins"] is None
    assert row["displacement/margin_from_chosen"] is None
    assert row["rewards/rejected"] is not None
    (broken,) = [r for r in per_pair(now, start, 3) if r["pair"] == 1]
    assert broken["rewards/chosen"] is None


def test_per_pair_rows_are_what_the_means_are_made_of() -> None:
    rng = Random(3)
    start = values(rng, 12)
    now = values(rng, 12, start.lengths.astype(int).tolist())
    rows: list[dict[str, Any]] = per_pair(now, start, 40)
    assert [r["pair"] for r in rows] == list(range(12))
    assert {r["step"] for r in rows} == {40}
    means = metrics(now, start)
    for key in ("displacement/chosen", "displacement/rejected", "rewards/chosen", "gradient_weight/rejected",
                "logps/chosen_sum", "logps/rejected_sum"):  # fmt: skip
        assert mean([r[key] for r in rows]) == pytest.approx(means[key], rel=1e-9)
    assert [r["tokens/chosen"] for r in rows] == now.lengths[0].tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_the_probe_reads_the_model_pair_by_pair(batch_size: int) -> None:
    """Sums, lengths, entropy and KL to the start, against the model's own full logits one answer at a time."""
    lm = tiny.model("opt", spread=0.15).double()
    before = copy.deepcopy(lm)
    pairs = tiny.token_pairs(9, seed=8)
    policy = PolicyModel(lm).train()
    probe = Probe(
        policy, tiny.objective("objective=alphapo"), pairs, batch_size=batch_size, pad_id=tiny.PAD,
        processes=Processes(), reference=None,
    )  # fmt: skip
    assert probe.start.kl == pytest.approx(np.zeros(9), abs=1e-6)
    with torch.no_grad():
        for p, q in zip(lm.parameters(), tiny.perturbed(lm, seed=9, size=0.1).parameters(), strict=True):
            p.copy_(q)
    now = probe.measure(policy)
    assert policy.training  # as it was
    for i, pair in enumerate(pairs):
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            ids = torch.tensor([[*pair.prompt.tolist(), *answer.tolist()]])
            rows = slice(len(pair.prompt) - 1, ids.shape[1] - 1)
            with torch.no_grad():
                new, old = (m.eval()(input_ids=ids).logits[0, rows].log_softmax(-1) for m in (lm, before))
            total = math.fsum(new[t, token].item() for t, token in enumerate(answer.tolist()))
            assert now.sums[side, i] == pytest.approx(total, abs=1e-9)
            assert now.lengths[side, i] == len(answer)
            r = 2.5 * (1 - math.exp(-0.25 * total / len(answer))) / 0.25
            assert now.rewards[side, i] == pytest.approx(r, rel=1e-9)
            if side == 0:
                entropy = -(new.exp() * new).sum(-1).mean().item()
                kl = (new.exp() * (new - old)).sum(-1).mean().item()
                assert kl > 0.01
                assert now.entropy[i] == pytest.approx(entropy, rel=1e-5)
                assert now.kl[i] == pytest.approx(kl, rel=1e-5)


def test_runs_from_one_start_share_the_first_look_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another objective reads of the same log-probs is the same; one with token weights looks for itself."""
    pairs, kept = tiny.token_pairs(5, seed=8), dict[str, Any]()
    policy = PolicyModel(tiny.model())
    looks: list[int] = []
    hidden = PolicyModel.hidden

    def counted(self: PolicyModel, batch: Any) -> Any:
        looks.append(1)
        return hidden(self, batch)

    def keep(key: str, make: Any) -> Any:
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def probe(objective: str, **more: Any) -> Probe:
        looks.clear()
        return Probe(
            policy, tiny.objective(f"objective={objective}"), pairs, batch_size=5, pad_id=tiny.PAD,
            processes=Processes(), **more,
        )  # fmt: skip

    monkeypatch.setattr(PolicyModel, "hidden", counted)
    reference = np.full((2, 5), -3.0)
    first = probe("alphapo", reference=None, memoize=keep)
    assert len(looks) == 1
    second = probe("dpo", reference=reference, memoize=keep)
    assert not looks
    alone = probe("dpo", reference=reference)
    assert len(looks) == 1
    assert np.array_equal(first.start.sums, second.start.sums)
    for name in ("rewards", "scores", "gradients", "entropy", "kl"):
        assert np.array_equal(getattr(second.start, name), getattr(alone.start, name))
    weighted = probe("ld_dpo", reference=reference, memoize=keep)
    assert len(looks) == 1
    assert not np.array_equal(weighted.start.rewards, second.start.rewards)
    with torch.no_grad():
        policy.lm.get_output_embeddings().weight.mul_(1.5)
    ours, theirs = second.measure(policy), alone.measure(policy)
    assert np.array_equal(ours.kl, theirs.kl)
    assert (ours.kl > 0).all()


def test_gradient_weights_are_the_closed_form() -> None:
    # AlphaPO: -beta e^{-alpha s_w} sigmoid(gamma - m) and +beta e^{-alpha s_l} sigmoid(gamma - m)
    objective = tiny.objective("objective=alphapo", "objective.shape.alpha=0.5", "objective.gamma=0.4")
    scores = [[-0.5, -2.0, -1.0], [-1.5, -0.7, -1.0]]
    sums = torch.tensor(scores, dtype=torch.float64)
    answers = AnswerLogProbs(sums, torch.ones_like(sums))  # one token each: the mean is the sum
    read, rewards, slopes, weights = (
        objective_values(objective, answers, StepContext())[name]
        for name in ("scores", "rewards", "slopes", "gradients")
    )
    assert read.tolist() == scores
    for i in range(3):
        r = [2.5 * (1 - math.exp(-0.5 * scores[side][i])) / 0.5 for side in range(2)]
        assert slopes[:, i].tolist() == pytest.approx(
            [math.exp(-0.5 * scores[side][i]) for side in range(2)], rel=1e-12
        )
        pull = 1 / (1 + math.exp(r[0] - r[1] - 0.4))
        assert rewards[:, i].tolist() == pytest.approx(r, rel=1e-12)
        expected_weights = [-2.5 * math.exp(-0.5 * scores[0][i]) * pull, 2.5 * math.exp(-0.5 * scores[1][i]) * pull]
        assert weights[:, i].tolist() == pytest.approx(expected_weights, rel=1e-12)
