"""Training on lists of answers and on unpaired rows: every property that training on pairs has.

A step's gradient is the mean over its rows however it is split, a killed run ends as an undisturbed one, the probe
knows what is absent, and data that an objective cannot read are refused before a model is.
"""

from __future__ import annotations

import copy
import json
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
from alphapo_cli.modeling.layout.registry import LAYOUTS
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.probe.displacement import metrics, per_pair
from alphapo_cli.probe.probe import Probe
from alphapo_cli.probe.scoring import score_pairs
from alphapo_cli.runtime.distributed import Processes
from tests import tiny

ROWS = 11  # a step of eight and one of three


def listed(sides: int) -> TokenPairs:
    """Rows of `sides` answers with scores."""
    found = [tiny.token_pairs(ROWS, seed=seed, scale=0.12) for seed in range((sides + 1) // 2)]
    answers = [side for pairs in found for side in (pairs.chosen, pairs.rejected)][:sides]
    rng = np.random.default_rng(1)
    names = ["score_chosen", "score_rejected", *(f"score_{i}" for i in range(2, sides))]
    columns = dict(zip(names, rng.uniform(0, 2, (sides, ROWS)), strict=True))
    return replace(found[0], chosen=answers[0], rejected=answers[1], others=tuple(answers[2:]), columns=columns)


def unpaired() -> TokenPairs:
    both = tiny.token_pairs(ROWS, seed=5, scale=0.12)
    sides = [[side[i].tolist() if keeps(i) else [] for i in range(ROWS)] for side, keeps in (
        (both.chosen, lambda i: i % 3 > 0), (both.rejected, lambda i: i % 3 == 0))]  # fmt: skip
    return replace(both, chosen=Ragged.from_lists(sides[0]), rejected=Ragged.from_lists(sides[1]))


def log_ratio(lm: Any, prompt: Any, answer: Any, start: float) -> Tensor:
    whole = torch.tensor([*prompt.tolist(), *answer.tolist()])
    table = lm(input_ids=whole.unsqueeze(0), use_cache=False).logits[0].log_softmax(-1)
    first = len(prompt)
    return table[torch.arange(first - 1, len(whole) - 1), whole[first:]].sum() - start


def infonca(ratios: list[list[Tensor]], pairs: TokenPairs, indices: list[int]) -> Tensor:
    """Mean over the rows of -sum t log softmax(0.1 r), t = softmax(2 score)."""
    losses = []
    for i, r in zip(indices, ratios, strict=True):
        scores = torch.tensor([v[i] for v in pairs.columns.values()], dtype=torch.float64)
        t = scores.mul(2).softmax(0)
        losses.append(-(t * torch.stack(r).mul(0.1).log_softmax(0)).sum())
    return torch.stack(losses).mean()


def kto(ratios: list[list[Tensor]], pairs: TokenPairs, indices: list[int]) -> Tensor:
    """Mean over the rows of 1 - sigmoid(+-0.1 (r - z)), z the step's mean over the third answers."""
    z = torch.stack([r[-1] for r in ratios]).mean().clamp(min=0).detach()
    signs = [1.0 if len(pairs.chosen[i]) else -1.0 for i in indices]
    return torch.stack(
        [1 - torch.sigmoid(0.1 * sign * (r[0] - z)) for sign, r in zip(signs, ratios, strict=True)]
    ).mean()


CASES: dict[str, tuple[TokenPairs, tuple[str, ...], Callable[..., Tensor]]] = {
    "infonca over four answers": (
        listed(4), ("objective=infonca", "objective.beta=0.1", "objective.link.temperature=0.5"), infonca,
    ),
    "kto over unpaired rows": (unpaired().with_mismatched(), ("objective=kto",), kto),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_the_mean_over_its_rows_however_it_is_split(name: str, tmp_path: Path) -> None:
    """Gradients in float64 against single forwards; steps of 8 and 3 rows as 8x1, 4x2 and 3x3 (of nine and two)."""
    pairs, line, formula = CASES[name]
    objective = tiny.objective(*line)
    start = tiny.model("opt", spread=0.15).double()
    # The policy is likelier on what it is given than its reference, so that z is above 0.
    reference = score_pairs(
        PolicyModel(tiny.perturbed(start, seed=6)), pairs, batch_size=4, pad_id=tiny.PAD, processes=Processes(),
        objective=objective,
    )  # fmt: skip
    reference[-1] -= 1.0
    for micro, accumulation in ((8, 1), (4, 2), (3, 3)):
        lm = copy.deepcopy(start)
        cfg = TrainerConfig(per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, use_cpu=True)
        trainer = tiny.trainer(PolicyModel(lm), objective, pairs, cfg, tmp_path, reference=reference, seed=3)
        for step in range(2):
            lm.zero_grad()
            loss = trainer.training_step(trainer.model, trainer.steps[step])
            plain = copy.deepcopy(start)
            indices = trainer.order.pairs(step).tolist()
            ratios = [
                [
                    log_ratio(plain, pairs[i].prompt, a, reference[side, i])
                    for side, a in enumerate(pairs[i].answers)
                    if len(a)
                ]
                for i in indices
            ]
            expected = formula(ratios, pairs, indices)
            expected.backward()
            assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # the step's total is a float32 number
            ours, truth = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (lm, plain))
            assert tiny.relative_error(ours, truth) <= 1e-10, micro
        if formula is kto:
            assert trainer.part_states["link"]["kl"] > 0
        window = trainer.sums.means(lambda x: x)
        if pairs.unpaired:
            good = [i for step in range(2) for i in trainer.order.pairs(step) if len(pairs.chosen[i])]
            sums = [log_ratio(start, pairs[i].prompt, pairs[i].chosen, 0.0).item() for i in good]
            assert window["train/logps/chosen_sum"] == pytest.approx(np.mean(sums), rel=1e-10)
            assert np.isnan(window["train/rewards/margins"])
            assert np.isfinite(window["train/rewards/rejected"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_probe_measures_only_what_is_there(layout: str) -> None:
    """Batches of one row: some have no chosen answer at all."""
    pairs = unpaired().with_mismatched()
    objective = tiny.objective("objective=kto")
    policy = PolicyModel(tiny.model(spread=0.15), layout=layout)
    reference = score_pairs(policy, pairs, batch_size=3, pad_id=tiny.PAD, processes=Processes(), objective=objective)
    probe = Probe(policy, objective, pairs, batch_size=1, pad_id=tiny.PAD, processes=Processes(), reference=reference)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    now = probe.measure(policy)
    row = metrics(now, probe.start)
    good = [i for i in range(ROWS) if len(pairs.chosen[i])]
    bad = [i for i in range(ROWS) if len(pairs.rejected[i])]
    after = score_pairs(policy, pairs, batch_size=3, pad_id=tiny.PAD, processes=Processes())
    for side, (key, rows) in enumerate((("chosen", good), ("rejected", bad))):
        change = (after - reference[:2])[side, rows]
        lengths = pairs.answers[side].lengths[rows]
        assert row[f"displacement/{key}"] == pytest.approx(np.mean(change / lengths), rel=1e-4)
        assert row[f"logps/{key}_sum"] == pytest.approx(np.mean(after[side, rows]), rel=1e-5)
        assert row[f"rewards/{key}"] == pytest.approx(0.1 * np.mean(change), rel=1e-4)
        assert row[f"gradient_weight/{key}"] is not None
    assert row["displacement/share_chosen_down"] == np.mean((after - reference[:2])[0, good] < 0)
    assert row["kl/reference"] is not None
    assert row["entropy/chosen"] == pytest.approx(float(now.entropy[good].mean()))
    for key in (
        "rewards/margins",
        "rewards/accuracies",
        "ranking/flipped",
        "displacement/quadrant/up_up",
        "displacement/margin_from_chosen",
    ):
        assert row[key] is None, key
    for i, one in enumerate(per_pair(now, probe.start, 4)):
        absent = "rejected" if i in good else "chosen"
        assert one[f"tokens/{absent}"] == 0
        assert one[f"displacement/{absent}"] is None
        assert one.pop("rewards/accuracies") is None  # there is nothing to compare
        assert None not in [v for k, v in one.items() if not k.endswith(absent) and not k.endswith(f"{absent}_sum")]
    json.dumps([row, *per_pair(now, probe.start, 4)], allow_nan=False)


# ------------------------------------------------------------------------------------------------ by the command line


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.saved_start` with lists and unpaired rows beside its pairs."""
    return tiny.other_rows(tiny.saved_start(tmp_path_factory.mktemp("start"), 21, 7))


def line(start: Path, kind: str, *more: str) -> list[str]:
    common = [x for x in tiny.line_from(start) if not x.startswith(("data.path", "data.eval_path"))]
    return [*common, f"data.path={start}/train-{kind}.jsonl", f"data.eval_path={start}/eval-{kind}.jsonl", *more]


KINDS = {"lists": ("objective=infonca", "objective.link.temperature=0.5"), "unpaired": ("objective=kto",)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lists", pytest.param("unpaired", marks=pytest.mark.slow)])
def test_whole_runs_are_the_same_for_every_split_and_layout(
    kind: str, start: Path, alphapo: Callable[..., Any], rows: Callable[[Path], list[dict[str, Any]]]
) -> None:
    made = []
    for micro, layout in ((8, "packed"), (4, "padded")):
        ran = alphapo(
            "train", *line(start, kind, *KINDS[kind]), f"layout={layout}", f"trainer.per_device_train_batch_size={micro}",
            f"trainer.gradient_accumulation_steps={8 // micro}",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        made.append(rows(ran.path / "metrics.jsonl"))
    assert [row["step"] for row in made[0]] == [0, 1, 2, 3]
    for a, b in zip(*made, strict=True):
        if a["step"] == 1 and kind == "lists":  # the policy is its reference
            assert a["train/rewards/accuracies"] == 0.5
        tiny.assert_same_row(a, b, 1e-5)
    assert made[0][3]["displacement/chosen"] not in (None, 0)
    assert (made[0][2]["rewards/margins"] is None) == (kind == "unpaired")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_killed_run_ends_as_an_undisturbed_one(kind: str, start: Path, alphapo: Callable[..., Any]) -> None:
    from tests.stages.test_resume import assert_same, killed_at

    words = line(
        start, kind, *KINDS[kind], "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2",
        "trainer.save_steps=1", "trainer.logging_steps=3",
    )  # fmt: skip
    whole = alphapo("train", *words, "run.name=whole")
    assert whole.code == 0, whole.err
    with killed_at(2):
        assert alphapo("train", *words, "run.name=broken").code == 1
    again = alphapo("train", *words, "run.name=broken")
    assert "continues at step 2 of 6" in again.err
    assert_same(whole.path, again.path)


@pytest.mark.slow
def test_a_pair_objective_trains_best_against_worst(start: Path, alphapo: Callable[..., Any], tmp_path: Path) -> None:
    """The same run as on the pairs that a list's best and worst answers make."""
    for name in ("train", "eval"):
        lists = [json.loads(row) for row in (start / f"{name}-lists.jsonl").read_text().splitlines()]
        out = []
        for row in lists:
            order = sorted(row["responses"], key=lambda a: -a["score"])
            best, worst = ([{"role": "assistant", "content": a["content"]}] for a in (order[0], order[-1]))
            out.append({"prompt": row["prompt"], "chosen": best, "rejected": worst})
        (tmp_path / f"{name}-pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in out))
    files = [f"{x}_path={tmp_path}/{n}-pairs.jsonl" for x, n in (("data.eval", "eval"),)] + [
        f"data.path={tmp_path}/train-pairs.jsonl"
    ]
    one = alphapo("train", *line(start, "lists", "objective=dpo", "run.name=lists"))
    other = alphapo("train", *line(start, "lists", "objective=dpo", "run.name=pairs"), *files)
    assert (one.code, other.code) == (0, 0), one.err + other.err
    assert (one.path / "metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("kind", "words", "fault"),
    [
        ("unpaired", ("objective=dpo",), "objective 'dpo' reads pairs (link 'logistic'); methods that take unpaired rows: "),
        ("unpaired", ("objective=infonca",), "reads pairs (link 'infonca')"),
        ("lists", ("objective=triple_po", "data.answers=2"), "objective 'triple_po' reads 3 answers of a row, which has 2"),
        ("lists", ("objective=triple_po",), "the third of scored answers is their second best"),
        ("lists", ("objective=infonca", "data.answers=5"), "21 of 21 rows have fewer than data.answers=5 answers"),
        ("pairs", ("objective=infonca",), "no column 'score_chosen', which objective 'infonca' needs"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_read_are_refused_before_a_model_is(
    kind: str, words: tuple[str, ...], fault: str, start: Path, alphapo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    from alphapo_cli.stages.training import inputs

    monkeypatch.setattr(inputs, "load_model", lambda *_: pytest.fail("a model was loaded"))
    used = line(start, kind, *words)
    if kind == "pairs":
        used = [*tiny.line_from(start), *words]
    ran = alphapo("train", *used)
    assert ran.code == 2
    assert fault in ran.err.splitlines()[-1]
    assert not list(tmp_path.glob("runs/*/config.yaml"))


@pytest.mark.slow
def test_a_sweep_shares_no_reading_of_other_answers(
    start: Path, alphapo: Callable[..., Any], rows: Callable[[Path], list[dict[str, Any]]]
) -> None:
    """InfoNCA reads a list's third answer, KTO puts one to another prompt in its place: three answers, not the same."""
    words = line(start, "lists", "data.answers=3", "trainer.max_steps=2", "trainer.learning_rate=1e-2")
    swept = alphapo("sweep", "objective=infonca,kto", *words, "launcher.workers=0")
    assert swept.code == 0, swept.err
    single = alphapo("train", "objective=kto", *words)
    assert single.code == 0, single.err
    (cell,) = (path for path in (swept.path / "cells").iterdir() if "name: kto\n" in (path / "config.yaml").read_text())
    assert rows(cell / "metrics.jsonl") == rows(single.path / "metrics.jsonl")
