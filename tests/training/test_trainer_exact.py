"""An optimizer step's gradient and every logged value are means over exactly that step's pairs, however it is split.

The oracle takes the pairs one by one through the model's own logits, in float64, and forms the mean itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from alphapo_cli.config.schema import TrainerConfig
from alphapo_cli.data.token_pairs import TokenPair, TokenPairs
from alphapo_cli.errors import AlphapoError
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.scoring import score_pairs
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.training.arguments import training_arguments
from alphapo_cli.training.data_order import DataOrder
from tests import tiny

OBJECTIVES = {
    "alphapo": ("objective=alphapo",),
    "alphapo_ratio": ("objective=alphapo_ratio", "objective.shape.alpha=0.5"),
    "cpo": ("objective=cpo", "objective.label_smoothing=0.1"),
    "sft": ("objective=sft",),
}
CASES = [
    *((name, split, torch.float64) for name in ("alphapo", "alphapo_ratio") for split in ((8, 1), (4, 2), (2, 4))),
    ("cpo", (3, 3), torch.float64),  # nine a step, the last one a micro-batch of three
    ("sft", (2, 4), torch.float64),
    ("alphapo", (8, 1), torch.float32),
    ("alphapo", (2, 4), torch.float32),
]
PAIRS = tiny.token_pairs(21, seed=1, scale=0.15)  # two steps of 8 and one of 5


class Spy(TrainerCallback):
    """Keeps parameters and gradients as the optimizer is about to see them."""

    def __init__(self) -> None:
        self.parameters: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = dict(kwargs["model"].named_parameters())
        self.parameters.append({n: p.detach().clone() for n, p in named.items()})
        self.gradients.append({n: p.grad.detach().clone() for n, p in named.items() if p.grad is not None})


class Trained:
    """A short training run that was watched."""

    def __init__(
        self, folder: Path, lm: nn.Module, objective: Objective, *, split: tuple[int, int] = (8, 1),
        pairs: TokenPairs = PAIRS, reference: np.ndarray | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        cfg = TrainerConfig(**{
            "per_device_train_batch_size": split[0], "gradient_accumulation_steps": split[1], "learning_rate": 1e-3,
            "num_train_epochs": 1.0, "max_grad_norm": 0.0, "use_cpu": True, "warmup_ratio": 0.2, **settings,
        })  # fmt: skip
        logged = tiny.Logged()
        self.rows = logged.rows
        self.spy = Spy()
        self.policy = PolicyModel(copy.deepcopy(lm))
        self.trainer = tiny.trainer(
            self.policy, objective, pairs, cfg, folder, hooks=logged, reference=reference, seed=3
        )
        self.order = self.trainer.order
        self.trainer.add_callback(self.spy)
        self.trainer.train()


def plain_sums(lm: nn.Module, pair: TokenPair, sides: int) -> Tensor:
    """Summed log-probs [sides, 1] from the logits of one sequence at a time."""
    sums = []
    for answer in (pair.chosen, pair.rejected)[:sides]:
        ids = torch.tensor([*pair.prompt.tolist(), *answer.tolist()])
        table = lm(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].log_softmax(-1)
        first = len(pair.prompt)
        sums.append(table[torch.arange(first - 1, len(ids) - 1), ids[first:]].sum())
    return torch.stack(sums).unsqueeze(1)


def plain_loss(objective: str, s: Tensor, n: Tensor, ref: Tensor | None) -> tuple[Tensor, Tensor]:
    """(loss, rewards) of one pair: the four objectives above by their formulas."""
    if objective == "sft":
        return -s[0] / n[0], s / n
    if objective == "alphapo":
        r = 2.5 * (1 - (s / n).exp() ** -0.25) / 0.25
        return -(r[0] - r[1] - 0.25).sigmoid().log(), r
    if objective == "alphapo_ratio":
        assert ref is not None
        r = 0.1 * ((s - ref).exp() ** 0.5 - 1) / 0.5
        return -(r[0] - r[1]).sigmoid().log(), r
    r = 0.1 * s
    m = r[0] - r[1]
    return -0.9 * m.sigmoid().log() - 0.1 * (-m).sigmoid().log() - s[0] / n[0], r


def oracle(
    lm: nn.Module, parameters: dict[str, Tensor], indices: np.ndarray, objective: str, reference: np.ndarray | None
) -> tuple[Tensor, float, list[dict[str, float]]]:
    """(mean of the pairs' gradients, mean of their norms, each pair's values) in float64."""
    lm = copy.deepcopy(lm).double()
    lm.load_state_dict({n.removeprefix("lm."): p.double() for n, p in parameters.items()}, strict=False)
    sides = 1 if objective == "sft" else 2
    gradients, values = [], []
    for i in indices:
        pair = PAIRS[int(i)]
        lm.zero_grad()
        s = plain_sums(lm, pair, sides)
        n = torch.tensor([[len(pair.chosen)], [len(pair.rejected)]][:sides], dtype=torch.float64)
        ref = None if reference is None else torch.from_numpy(reference[:, [int(i)]]).double()
        loss, r = plain_loss(objective, s, n, ref)
        loss.backward()
        gradients.append(flat({f"lm.{n}": p.grad for n, p in lm.named_parameters() if p.grad is not None}))
        row = {"loss": loss.item()}
        for side, name in enumerate(("chosen", "rejected")[:sides]):
            row[f"rewards/{name}"] = r[side].item()
            row[f"logps/{name}_sum"] = s[side].item()
            row[f"logps/{name}"] = (s[side] / n[side]).item()
        if sides == 2:
            row["rewards/margins"] = (r[0] - r[1]).item()
            row["rewards/accuracies"] = float(r[0] > r[1])
        values.append(row)
    table = torch.stack(gradients)
    return table.mean(0), table.norm(dim=1).mean().item(), values


def flat(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([named[n].detach().flatten().double() for n in sorted(named)])


def start(dtype: torch.dtype) -> Any:
    """A model whose whole forward runs in `dtype`; for float32 the kind that is trained most."""
    return tiny.model("opt" if dtype == torch.float64 else "llama", spread=0.15).to(dtype)


def references(lm: nn.Module, objective: Objective) -> np.ndarray | None:
    if not objective.needs_reference:
        return None
    other = PolicyModel(tiny.perturbed(lm, seed=5))
    return score_pairs(other, PAIRS, batch_size=4, pad_id=tiny.PAD, processes=Processes())


@pytest.mark.parametrize(
    ("name", "split", "dtype"), CASES, ids=[f"{n}-{s[0]}x{s[1]}-{str(d)[6:]}" for n, s, d in CASES]
)
def test_every_step_is_the_mean_over_its_pairs(
    name: str, split: tuple[int, int], dtype: torch.dtype, tmp_path: Path
) -> None:
    lm, objective = start(dtype), tiny.objective(*OBJECTIVES[name])
    reference = references(lm, objective)
    run = Trained(tmp_path, lm, objective, split=split, reference=reference)
    assert len(run.spy.gradients) == len(run.rows) == 3
    sizes = [len(run.order.pairs(step)) for step in range(3)]
    assert sizes == ([9, 9, 3] if split == (3, 3) else [8, 8, 5])
    # float32: a log-prob of -10 is rounded by 5e-7, and alphapo's weights are exponentials of such
    tolerance = 2e-6 if dtype == torch.float32 else 1e-11
    for step, (number, row) in enumerate(run.rows):
        assert number == step + 1
        truth, size, values = oracle(lm, run.spy.parameters[step], run.order.pairs(step), name, reference)
        error = (flat(run.spy.gradients[step]) - truth).norm().item()
        # What is rounded are the pairs' gradients; their mean may be smaller than they are.
        assert error <= tolerance * (size if dtype == torch.float32 else truth.norm().item())
        for key in values[0]:
            mean = math.fsum(v[key] for v in values) / len(values)
            # A margin is the small difference of two rewards, so its round-off is theirs.
            terms = [abs(v[k]) for v in values for k in v if k in (key, "rewards/chosen", "rewards/rejected")]
            assert abs(row[f"train/{key}"] - mean) <= tolerance * max(1.0, *terms), key
        # the norm is taken in float32 whatever the gradients are
        assert row["train/grad_norm"] == pytest.approx(truth.norm().item(), rel=2e-6)
        assert set(row) == {f"train/{key}" for key in (*values[0], "grad_norm", "learning_rate", "epoch")}


def test_splits_of_a_step_end_at_the_same_parameters(tmp_path: Path) -> None:
    lm, objective = start(torch.float64), tiny.objective(*OBJECTIVES["alphapo"])
    ends = []
    for micro, accumulation in ((8, 1), (4, 2), (2, 4), (1, 8)):
        run = Trained(tmp_path, lm, objective, split=(micro, accumulation), max_grad_norm=1.0)
        ends.append((dict(run.policy.named_parameters()), [row for _, row in run.rows]))
    for parameters, rows in ends[1:]:
        for name, p in parameters.items():
            assert torch.allclose(p, ends[0][0][name], rtol=0, atol=1e-11)
        for a, b in zip(rows, ends[0][1], strict=True):
            assert a == pytest.approx(b, rel=1e-9, abs=1e-11)


def test_steps_between_logs_are_pooled_by_pair(tmp_path: Path) -> None:
    # 8, 8 and 5 pairs of one window weigh as 21 pairs, not as three steps; the last window is closed by the end
    lm, objective = start(torch.float64), tiny.objective(*OBJECTIVES["cpo"])
    each = Trained(tmp_path, lm, objective, num_train_epochs=2.0)
    pooled = Trained(tmp_path, lm, objective, num_train_epochs=2.0, logging_steps=4)
    assert [step for step, _ in pooled.rows] == [4, 6]
    for (first, last), (_, row) in zip(((0, 4), (4, 6)), pooled.rows, strict=True):
        sizes = [len(each.order.pairs(step)) for step in range(first, last)]
        for key, value in row.items():
            singles = [each.rows[step][1][key] for step in range(first, last)]
            if key in ("train/grad_norm", "train/learning_rate", "train/epoch"):
                assert value == pytest.approx(singles[-1], rel=1e-9), key
            else:
                pooled_mean = sum(s * n for s, n in zip(singles, sizes, strict=True)) / sum(sizes)
                assert value == pytest.approx(pooled_mean, rel=1e-11), key


@pytest.mark.parametrize(
    ("scheduler", "at"),
    [
        ("constant", lambda step: 1.0),
        ("linear", lambda step: step / 2 if step < 2 else (6 - step) / 4),
        ("cosine", lambda step: step / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 4)) / 2),
    ],
)
def test_learning_rate_is_the_one_the_step_used(scheduler: str, at: Callable[[int], float], tmp_path: Path) -> None:
    run = Trained(tmp_path, tiny.model(), tiny.objective("objective=simpo"), lr_scheduler_type=scheduler,
                  warmup_ratio=1 / 3, num_train_epochs=2.0)  # fmt: skip
    for step, row in run.rows:
        assert row["train/learning_rate"] == pytest.approx(1e-3 * at(step - 1), abs=1e-12)
        assert row["train/epoch"] == pytest.approx(step / 3)


def test_a_share_of_the_steps_is_warmed_up_as_transformers_rounds_it(tmp_path: Path) -> None:
    cfg = TrainerConfig(max_steps=25, warmup_ratio=0.1, use_cpu=True)
    schedule = DataOrder.of(cfg, 100, 1, seed=0)
    ours = training_arguments(cfg, schedule, str(tmp_path), 0)
    theirs = TrainingArguments(output_dir=str(tmp_path), max_steps=25, warmup_steps=0.1, use_cpu=True)
    assert ours.get_warmup_steps(25) == theirs.get_warmup_steps(25) == 3


def test_a_step_with_plain_gradient_descent_moves_by_minus_the_gradient(tmp_path: Path) -> None:
    lm = start(torch.float64)
    run = Trained(tmp_path, lm, tiny.objective("objective=alphapo"), split=(4, 2), optim="sgd",
                  lr_scheduler_type="constant", warmup_ratio=0.0, learning_rate=0.05)  # fmt: skip
    for step in range(2):
        for name, p in run.spy.parameters[step].items():
            moved = run.spy.parameters[step + 1][name] - p
            assert torch.allclose(moved, -0.05 * run.spy.gradients[step][name], rtol=1e-12, atol=1e-15)


def test_clipping_limits_the_whole_steps_gradient(tmp_path: Path) -> None:
    lm, objective = start(torch.float64), tiny.objective("objective=alphapo")
    free = Trained(tmp_path, lm, objective, split=(2, 4), max_steps=1)
    full = free.rows[0][1]["train/grad_norm"]
    clipped = Trained(tmp_path, lm, objective, split=(2, 4), max_steps=1, max_grad_norm=full / 4)
    # what is logged is the norm before clipping
    assert clipped.rows[0][1]["train/grad_norm"] == pytest.approx(full, rel=1e-6)
    for name, gradient in clipped.spy.gradients[0].items():
        assert torch.allclose(gradient * 4, free.spy.gradients[0][name], rtol=1e-5, atol=1e-12)


def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    lm = tiny.model()
    with torch.no_grad():
        lm.lm_head.weight[5] = math.nan
    with pytest.raises(AlphapoError, match=r"the loss is nan at step 1: lower trainer.learning_rate"):
        Trained(tmp_path, lm, tiny.objective("objective=alphapo"))


@pytest.mark.slow
def test_every_row_of_metrics_jsonl_is_the_same_for_every_split(
    alphapo: Callable[..., Any], rows: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Through the command line, in float32: 8x1 = 4x2 = 2x4 on 21 pairs, probe and all."""
    start = tiny.saved_start(tmp_path / "start", 21, 7)
    made = []
    for micro in (8, 4, 2):
        ran = alphapo(
            "train", *tiny.line_from(start), f"trainer.per_device_train_batch_size={micro}",
            f"trainer.gradient_accumulation_steps={8 // micro}",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        made.append(rows(ran.path / "metrics.jsonl"))
    assert [row["step"] for row in made[0]] == [0, 1, 2, 3]
    for other in made[1:]:
        for a, b in zip(made[0], other, strict=True):
            tiny.assert_same_row(a, b, 1e-5)
