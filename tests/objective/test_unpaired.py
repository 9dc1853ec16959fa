"""Rows with one answer alone: what reads each answer by itself reads them, everything else refuses them by name."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alphapo_cli.config.schema import TrainerConfig
from alphapo_cli.data.token_pairs import Ragged, TokenPairs
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.objective.build import build
from alphapo_cli.objective.data_requirements import check_sides
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.scoring import score_pairs
from alphapo_cli.runtime.distributed import Processes
from tests import tiny

METHODS = tiny.catalogue()
POINTWISE = [name for name, m in METHODS.items() if m.objective.pairing is None]
GOOD = torch.tensor([True, False, False, True, True, False])


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def ls(x: float) -> float:
    return -math.log1p(math.exp(-x))


def pairs(sides: int = 2) -> AnswerLogProbs:
    rng = np.random.default_rng(4)
    lengths = rng.integers(1, 30, (sides, 6)).astype(float)
    sums = -lengths * rng.uniform(0.2, 2.5, (sides, 6))
    columns = {"win_probability": torch.linspace(0.5, 1, 6, dtype=torch.float64)}
    reference = torch.from_numpy(sums - rng.normal(0, 2, (sides, 6)))
    return AnswerLogProbs(torch.from_numpy(sums), torch.from_numpy(lengths), reference, columns=columns)


def alone(given: AnswerLogProbs, good: Tensor) -> AnswerLogProbs:
    """The same without the rejected answers of rows that are `good`, and without the chosen ones of the others."""
    present = torch.stack([good, ~good, *[torch.ones_like(good)] * (len(given.sums) - 2)])
    assert given.reference is not None
    return replace(
        given, sums=given.sums * present, lengths=given.lengths * present, reference=given.reference * present,
        present=present, chosen_tokens=float((given.lengths * present)[0].mean()),
    )  # fmt: skip


def loss_and_gradient(
    objective: Objective, given: AnswerLogProbs, context: StepContext | None = None
) -> tuple[Tensor, Tensor]:
    leaf = given.sums.clone().requires_grad_(True)
    loss = objective(replace(given, sums=leaf), context).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("shape", ["its own", "power"])
@pytest.mark.parametrize("name", POINTWISE)
def test_the_two_halves_of_a_pair_make_the_pair(name: str, shape: str) -> None:
    cfg = METHODS[name].cfg
    objective = build(
        cfg if shape == "its own" else replace(cfg, shape={"name": "power", "alpha": 0.5, "convention": "ratio"})
    )
    given = pairs()
    whole, slope = loss_and_gradient(objective, given)
    one, first = loss_and_gradient(objective, alone(given, GOOD))
    other, second = loss_and_gradient(objective, alone(given, ~GOOD))
    assert torch.allclose(one + other, whole, rtol=1e-12)
    assert torch.allclose(first + second, slope, rtol=1e-12)
    # What is not there has no gradient, and no NaN.
    assert (first[1, GOOD] == 0).all()
    assert (first[0, ~GOOD] == 0).all()
    assert first.isfinite().all()


@pytest.mark.parametrize("kind", ["plain", "smoothed"])
def test_kto_and_bco_in_plain_floats(kind: str) -> None:
    """The step's z and shift are of the answers that are there; a doubtful label counts an answer both ways."""
    e = 0.2 if kind == "smoothed" else 0.0
    kto = tiny.objective(
        "objective=kto",
        "objective.link.desirable=1.2",
        "objective.link.undesirable=0.7",
        f"objective.label_smoothing={e}",
    )
    bco = tiny.objective("objective=bco", "objective.beta=0.3", f"objective.label_smoothing={e}")
    likely = torch.tensor([[0.0], [0.0], [3.0]], dtype=torch.float64)  # z is above 0
    given = pairs(3)
    given = alone(replace(given, sums=given.sums + likely), GOOD)
    assert given.reference is not None
    ratio = (given.sums - given.reference).tolist()
    own = [ratio[0 if g else 1][i] for i, g in enumerate(GOOD.tolist())]
    z = max(0.0, sum(ratio[2]) / 6)
    assert z > 0
    d = sum(0.3 * x for x in own) / 6

    def mixed(good: bool, up: float, down: float) -> float:
        return (1 - e) * up + e * down if good else (1 - e) * down + e * up

    expected = {
        "kto": [
            mixed(g, 1.2 * s(0.1 * (z - x)), 0.7 * s(0.1 * (x - z))) for g, x in zip(GOOD.tolist(), own, strict=True)
        ],
        "bco": [mixed(g, -ls(0.3 * x - d), -ls(d - 0.3 * x)) for g, x in zip(GOOD.tolist(), own, strict=True)],
    }
    for objective in (kto, bco):
        context = StepContext(0.0, objective.update(objective.start.states, objective.observe(given, objective.start)))
        loss, gradient = loss_and_gradient(objective, given, context)
        assert loss.tolist() == pytest.approx(expected[objective.name], rel=1e-12)
        assert (gradient[2] == 0).all()  # z is without gradient


def test_a_step_without_one_of_the_kinds_is_no_nan() -> None:
    for name in ("kto_pair", "kto", "bco", "asft"):
        objective = tiny.objective(f"objective={name}")
        for good in (torch.ones(6, dtype=torch.bool), torch.zeros(6, dtype=torch.bool)):
            given = alone(pairs(3), good)
            context = objective.start
            if objective.observes:
                context = StepContext(0.0, objective.update(context.states, objective.observe(given, context)))
            loss, gradient = loss_and_gradient(objective, given, context)
            assert loss.isfinite().all()
            assert gradient.isfinite().all()


def test_z_is_at_least_zero() -> None:
    objective = tiny.objective("objective=kto")
    given = alone(pairs(3), GOOD)
    assert given.reference is not None
    low = replace(given, reference=given.reference + torch.tensor([[0.0], [0.0], [50.0]], dtype=torch.float64))
    assert objective.update(objective.start.states, objective.observe(low, objective.start))["link"]["kl"] == 0


@pytest.mark.parametrize(
    ("line", "reader"),
    [
        ("objective=alphapo", "link 'logistic'"),
        ("objective=infonca", "link 'infonca'"),
        ("objective=apo_down", "link 'apo_down'"),
        ("objective=sft", "link 'none'"),
        ("objective=bco objective/weight=on_policy", "weight 'on_policy'"),
        ("objective=bco objective/token=prefix", "token 'prefix'"),
    ],
)
def test_what_reads_pairs_refuses_and_names_what_does_not(line: str, reader: str) -> None:
    objective = tiny.objective(*line.split())
    with pytest.raises(UsageError) as caught:
        check_sides(objective, 2, True, "the training data")
    said = str(caught.value)
    assert said.startswith("the training data: rows with one answer alone, and objective ")
    assert f"reads pairs ({reader}); methods that take unpaired rows: " in said
    assert {"kto", "bco", "bce"} <= set(said.partition("rows: ")[2].split(", "))


def test_alphapo_loss_takes_rows_with_one_answer_alone(alphapo: Callable[..., Any], tmp_path: Path) -> None:
    good = {"chosen_logp": -12.0, "chosen_tokens": 6, "ref_chosen_logp": -13.0}
    bad = {"rejected_logp": -20.0, "rejected_tokens": 8, "ref_rejected_logp": -18.5, "chosen_logp": None}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (good, bad, {**bad, **good})))
    ran = alphapo("loss", "rows.jsonl", "objective=kto", "objective.link.kl=0.3")
    assert (ran.code, ran.err) == (0, "")
    first, second, both = (json.loads(line) for line in ran.out.splitlines())
    assert first["loss"] == pytest.approx(s(0.1 * (0.3 - 1)), rel=1e-12)  # the golden pair A's halves
    assert second["loss"] == pytest.approx(s(0.1 * (-1.5 - 0.3)), rel=1e-12)
    assert both["loss"] == pytest.approx(first["loss"] + second["loss"], rel=1e-12)
    assert [first[k] for k in ("rejected_reward", "margin", "d_loss_d_rejected_logp")] == [None] * 3
    assert [second[k] for k in ("chosen_reward", "margin", "d_loss_d_chosen_logp")] == [None] * 3
    assert second["d_loss_d_rejected_logp"] == both["d_loss_d_rejected_logp"] > 0
    (tmp_path / "rows.jsonl").write_text(json.dumps(good))
    refused = alphapo("loss", "rows.jsonl", "objective=dpo")
    assert refused.code == 2
    assert "line 1: no 'rejected_logp', which objective 'dpo' needs" in refused.fault
    (tmp_path / "rows.jsonl").write_text("{}")
    assert "line 1: no 'chosen_logp'" in alphapo("loss", "rows.jsonl", "objective=kto").fault


def test_an_nll_per_token_of_the_batch_counts_no_token_of_an_absent_answer(
    alphapo: Callable[..., Any], tmp_path: Path
) -> None:
    good = {"chosen_logp": -12.0, "chosen_tokens": 6, "ref_chosen_logp": -13.0}
    bad = {"rejected_logp": -20.0, "rejected_tokens": 8, "ref_rejected_logp": -18.5}
    other = {**good, "chosen_logp": -10.0, "chosen_tokens": 2, "ref_chosen_logp": -10.0}

    def losses(rows: list[dict[str, Any]], *more: str) -> list[float]:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        ran = alphapo("loss", "rows.jsonl", "objective=kto", *more)
        assert ran.code == 0, ran.err
        return [json.loads(line)["loss"] for line in ran.out.splitlines()]

    for rows in ([good, bad, other, bad], [bad, bad]):
        nll = np.subtract(losses(rows, "objective.nll=1", "objective.nll_scope=tokens"), losses(rows))
        # The mean over the rows is the NLL of all chosen tokens over their number: 22 nats, 8 tokens.
        assert nll.mean() == pytest.approx(22 / 8 if good in rows else 0.0, rel=1e-12)


# ------------------------------------------------------------------------------------------------ mismatched answers


def unpaired(n: int = 8, *, seed: int = 3) -> TokenPairs:
    """Every other row desirable, after `tiny.token_pairs`."""
    both = tiny.token_pairs(n, seed=seed, scale=0.15)
    chosen = [both.chosen[i].tolist() if i % 3 else [] for i in range(n)]
    rejected = [[] if i % 3 else both.rejected[i].tolist() for i in range(n)]
    return replace(both, chosen=Ragged.from_lists(chosen), rejected=Ragged.from_lists(rejected))


def test_mismatched_answers_come_from_another_prompt() -> None:
    data = unpaired(9)
    data = replace(data, prompt_keys=tuple("aabbbccad"))
    made = data.with_mismatched()
    assert made.num_sides == 3
    limit = max(len(p.prompt) + max(map(len, p.answers)) for p in data)
    sources = [2, 2, 5, 5, 5, 7, 7, 8, 0]  # the next row with another prompt
    for i, (pair, j) in enumerate(zip(made, sources, strict=True)):
        assert data.prompt_keys[i] != data.prompt_keys[j]
        there = next(a for a in data[j].answers if len(a)).tolist()
        third = pair.others[0].tolist()
        assert third == there[: len(third)]
        assert len(third) == min(len(there), max(1, limit - len(pair.prompt)))
    whole = tiny.token_pairs(6, scale=0.1).with_mismatched()  # of pairs, chosen and rejected by turns
    for i in range(6):
        source = whole[(i + 1) % 6]
        third = whole[i].others[0].tolist()
        assert third == (source.chosen, source.rejected)[i % 2].tolist()[: len(third)]


@pytest.mark.slow
def test_loss_and_every_gradient_equal_trls_kto(tmp_path: Path) -> None:
    """On the same ids, mismatched answers included; TRL's KL is over the same batch, as ours is over the step."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    data = unpaired().with_mismatched()
    reference = tiny.model(spread=0.15)
    policy = tiny.perturbed(reference, seed=2)
    tokenizer, _ = tiny.encoded(tiny.dialogues(8), vocab=97 + 256)
    args = trl.KTOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], beta=0.1,
        per_device_train_batch_size=8, max_length=4096, desirable_weight=1.3, undesirable_weight=0.8,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    stand_in = Dataset.from_list([{"prompt": "a", "completion": " b", "label": i % 2 == 0} for i in range(8)])
    theirs = copy.deepcopy(policy)
    trainer = trl.KTOTrainer(
        model=theirs, ref_model=copy.deepcopy(reference), args=args, train_dataset=stand_in, processing_class=tokenizer
    )
    batch = trainer.data_collator(
        [
            {
                "prompt_ids": p.prompt.tolist(),
                "completion_ids": (p.chosen if len(p.chosen) else p.rejected).tolist(),
                "KL_completion_ids": p.others[0].tolist(),
                "label": bool(len(p.chosen)),
            }
            for p in data
        ]
    )
    theirs.train()
    their_loss = trainer.compute_loss(theirs, batch)
    their_loss.backward()

    objective = tiny.objective("objective=kto", "objective.link.desirable=1.3", "objective.link.undesirable=0.8")
    sums = score_pairs(
        PolicyModel(reference), data, batch_size=3, pad_id=tiny.PAD, processes=Processes(), objective=objective
    )
    for micro in (8, 2):
        lm = copy.deepcopy(policy)
        cfg = TrainerConfig(per_device_train_batch_size=micro, gradient_accumulation_steps=8 // micro, use_cpu=True)
        ours = tiny.trainer(PolicyModel(lm, layout="packed"), objective, data, cfg, tmp_path, reference=sums)
        loss = ours.training_step(ours.model, ours.steps[0])
        assert ours.part_states["link"]["kl"] > 0  # or the comparison would say nothing of it
        assert loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
        for (name, a), (_, b) in zip(lm.named_parameters(), theirs.named_parameters(), strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert tiny.relative_error(a.grad, b.grad) <= 2e-5, name  # two float32 passes that add in different orders
