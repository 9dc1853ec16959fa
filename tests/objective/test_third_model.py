"""What is read of models beside the policy: the reference's whole distributions (TDPO), a guide's tokens (TGDPO) and a
second reference (MRPO). Oracles take the models' own logits, all of them at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.layout.registry import LAYOUTS
from alphapo_cli.modeling.lm_head import Head, kl_from
from alphapo_cli.modeling.logprobs import AnswerLogProbs
from alphapo_cli.modeling.policy import PolicyModel, Wanted
from alphapo_cli.probe.scoring import score_tokens
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.stages.training.compatibility import check_vocabulary
from tests import tiny as small
from tests.conftest import Ran, strict_rows

PAIRS = small.token_pairs(5, seed=4)


def log_softmax_of(lm: Any, pairs: TokenPairs, side: int, i: int) -> Tensor:
    """[tokens of the answer, V] log-probs at each of its positions, from the model's own forward."""
    pair = pairs[i]
    ids = torch.from_numpy(np.concatenate([pair.prompt, pair.answers[side]]).astype(np.int64))
    logits = lm(input_ids=ids.unsqueeze(0)).logits[0]
    return logits[len(pair.prompt) - 1 : -1].log_softmax(-1)


def answers(policy: PolicyModel, pairs: TokenPairs, layout: str, kl_from: PolicyModel | None = None) -> AnswerLogProbs:
    batch = LAYOUTS[layout].collate(list(pairs), pad_id=small.PAD)
    return policy.answers(batch, Wanted(kl_from=kl_from))


# ------------------------------------------------------------------------------------------------------------- TDPO


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("chunk", [1, 4 * 11 * 2 * 3, 1 << 20])
def test_the_kl_of_the_head(rows: int, chunk: int) -> None:
    """Chunks of one row, of three rows and of all rows; float64, in which nothing but the order of sums differs."""
    generator = torch.Generator().manual_seed(rows)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    linear = nn.Linear(5, 11, bias=False, dtype=torch.float64)
    hidden, start = random(rows, 5).requires_grad_(True), random(rows, 3)
    before = nn.Linear(3, 11, bias=False, dtype=torch.float64)  # a reference of another width
    found = kl_from(start, Head(before), hidden, Head(linear, 0.5, 2.0), chunk_bytes=chunk)
    now = (2.0 * torch.tanh(0.5 * linear(hidden) / 2.0)).log_softmax(-1)
    expected = F.kl_div(now, before(start).log_softmax(-1).detach(), reduction="none", log_target=True).sum(-1)
    assert torch.allclose(found.double(), expected, rtol=1e-12, atol=1e-13)
    if rows:
        weights = random(rows)
        for a, b in zip(*(torch.autograd.grad((x * weights).sum(), [hidden, linear.weight], retain_graph=True)
                          for x in (found, expected)), strict=True):  # fmt: skip
            assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)
        (none,) = torch.autograd.grad(found.sum(), before.weight, allow_unused=True)
        assert none is None


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_tdpos_loss_and_every_gradient(layout: str, stop: bool) -> None:
    """Against the formula on whole logits. float32: round-off of sums over about 50 tokens, a few 1e-7 each."""
    lm = small.model(seed=1)
    reference = small.perturbed(lm, seed=2)
    policy = PolicyModel(lm, layout=layout)
    kl_from = PolicyModel(small.perturbed(small.model(seed=1), seed=2), layout=layout).requires_grad_(False)
    objective = small.objective("objective=tdpo", f"objective.margin.stop={str(stop).lower()}")
    given = answers(policy, PAIRS, layout, kl_from)
    with torch.no_grad():
        refs = [[log_softmax_of(reference, PAIRS, side, i) for i in range(len(PAIRS))] for side in range(2)]
    targets = [[torch.from_numpy(p.answers[side].astype(np.int64)) for p in PAIRS] for side in range(2)]

    def summed(logp: Tensor, side: int, i: int) -> Tensor:
        return logp.gather(1, targets[side][i].unsqueeze(1)).sum()

    given = replace(
        given, reference=torch.tensor([[summed(x, s, i) for i, x in enumerate(r)] for s, r in enumerate(refs)])
    )
    ours = objective(given).loss.mean()
    trained = [p for p in lm.parameters() if p.requires_grad]
    mine = torch.autograd.grad(ours, trained)

    lm = small.model(seed=1)  # anew, with its own attention
    trained = [p for p in lm.parameters() if p.requires_grad]
    losses = []
    for i in range(len(PAIRS)):
        ratio, kl = [], []
        for side in range(2):
            logp = log_softmax_of(lm, PAIRS, side, i)
            ratio.append(summed(logp, side, i) - summed(refs[side][i], side, i))
            kl.append((refs[side][i].exp() * (refs[side][i] - logp)).sum())
        k_w = kl[0].detach() if stop else kl[0]
        losses.append(-F.logsigmoid(0.1 * (ratio[0] - ratio[1] - 0.5 * (kl[1] - k_w))))
    theirs = torch.stack(losses).mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for a, b in zip(mine, torch.autograd.grad(theirs, trained), strict=True):
        assert small.relative_error(a, b) < 2e-5


def losses(ran: Ran) -> list[float]:
    assert ran.code == 0, ran.err
    return [row["train/loss"] for row in strict_rows(ran.path / "metrics.jsonl") if "train/loss" in row]


@pytest.mark.slow
def test_training_by_tdpo(alphapo: Callable[..., Ran], tiny: tuple[str, ...]) -> None:
    """At the start there is no KL, and with alpha = 0 it is DPO; two micro-batches a step, the probe has it, too."""
    line = ("train", *tiny, "trainer.learning_rate=1e-3", "trainer.gradient_accumulation_steps=2")
    tdpo, none, dpo = (
        alphapo(*line, *more)
        for more in (["objective=tdpo"], ["objective=tdpo", "objective.margin.alpha=0"], ["objective=dpo"])
    )
    assert losses(tdpo)[0] == pytest.approx(losses(dpo)[0], abs=1e-6)
    assert losses(tdpo)[-1] != pytest.approx(losses(dpo)[-1], abs=1e-6)
    assert losses(none) == pytest.approx(losses(dpo), abs=1e-6)
    again = alphapo(*line, "objective=tdpo", "run.name=again")
    assert (again.path / "metrics.jsonl").read_bytes() == (tdpo.path / "metrics.jsonl").read_bytes()


def test_a_reference_of_another_vocabulary_has_no_kl() -> None:
    with pytest.raises(UsageError, match=r"model\.reference: it gives 89 logits and the policy 97"):
        check_vocabulary(PolicyModel(small.model()), PolicyModel(small.model(vocab=89)))


# ------------------------------------------------------------------------------------------------- TGDPO and MRPO


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_token_log_probs_stand_as_the_data_do(layout: str) -> None:
    lm = small.model(seed=3)
    found = score_tokens(
        PolicyModel(lm, layout=layout), PAIRS, batch_size=2, pad_id=small.PAD, processes=Processes(), sides=2
    )
    lm = small.model(seed=3)
    for side, ragged in enumerate(PAIRS.answers):
        for i in range(len(PAIRS)):
            ids = torch.from_numpy(ragged[i].astype(np.int64)).unsqueeze(1)
            with torch.no_grad():
                expected = log_softmax_of(lm, PAIRS, side, i).gather(1, ids).squeeze(1).numpy()
            here = found[side][ragged.offsets[i] : ragged.offsets[i + 1]]
            assert np.allclose(here, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_batch_carries_each_tokens_own(layout: str) -> None:
    """What is given to a token is the token's id itself: so it must stand beside the same id in any batch."""
    marked = replace(PAIRS, guide=tuple(side.ids.astype(np.float32) for side in PAIRS.answers))
    batch = LAYOUTS[layout].collate([marked[i] for i in (3, 0, 4)], pad_id=small.PAD)
    assert batch.tokens.guide is not None
    assert torch.equal(batch.tokens.guide, batch.tokens.ids.float())


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    from tests.conftest import TINY, run_here

    ran = run_here(
        ("train", *TINY, "objective=dpo", "trainer.learning_rate=1e-3", "trainer.max_steps=3", "run.name=guide"),
        tmp_path_factory.mktemp("guide"), shared_cache,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return ran.path


@pytest.mark.slow
def test_a_second_reference_reads_every_answer_that_the_link_does(
    guide: Path, alphapo: Callable[..., Ran], tiny: tuple[str, ...]
) -> None:
    """KTO's third answer, one to another prompt, under two references that are one: KTO itself."""
    both = (f"model.reference={guide}", "trainer.learning_rate=1e-3")
    kto = alphapo("train", *tiny, "objective=kto", *both)
    mixed = alphapo(
        "train",
        *tiny,
        "objective=mrpo",
        "objective/link=kto_mismatched",
        *both,
        f"model.guide={guide}",
        "run.name=mixed",
    )
    assert (kto.code, mixed.code) == (0, 0), kto.err + mixed.err
    assert losses(mixed) == pytest.approx(losses(kto), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tgdpo", "mrpo"])
def test_training_beside_a_third_model(
    name: str, guide: Path, alphapo: Callable[..., Ran], tiny: tuple[str, ...]
) -> None:
    line = ("train", *tiny, "trainer.learning_rate=1e-3", "trainer.gradient_accumulation_steps=2")
    dpo = alphapo(*line, "objective=dpo", f"model.reference={guide}")
    same = alphapo(*line, f"objective={name}", f"model.reference={guide}", f"model.guide={guide}")
    other = alphapo(*line, f"objective={name}", f"model.guide={guide}")
    assert losses(same) == pytest.approx(losses(dpo), abs=1e-6)  # guide and reference are one
    assert losses(other)[-1] != pytest.approx(losses(same)[-1], abs=1e-4)
    again = alphapo(*line, f"objective={name}", f"model.guide={guide}", "run.name=again")
    assert (again.path / "metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()
    assert set(json.loads((other.path / "manifest.json").read_text())["weights"]) == {"model.guide"}


@pytest.mark.slow
def test_what_has_no_third_model_says_so(guide: Path, alphapo: Callable[..., Ran], tiny: tuple[str, ...]) -> None:
    ran = alphapo("train", *tiny, "objective=tgdpo")
    assert ran.code == 2
    assert "objective 'tgdpo' weighs tokens by a guide model: name one in model.guide" in ran.fault
    ran = alphapo("train", *tiny, "objective=mrpo")
    assert ran.code == 2
    assert "no column 'guide_chosen_logp', which objective 'mrpo' needs" in ran.fault
    assert "model.guide" in ran.fault
    ran = alphapo("train", *tiny, "objective=dpo", f"model.guide={guide}")
    assert f"note: not read: model.guide={guide}: objective 'dpo' reads no third model" in ran.err


def test_loss_of_rows(alphapo: Callable[..., Ran], tmp_path: Path) -> None:
    row = {"chosen_logp": -8.0, "rejected_logp": -9.0, "chosen_tokens": 3, "rejected_tokens": 4,
           "ref_chosen_logp": -8.5, "ref_rejected_logp": -8.0, "kl_chosen": 0.25, "kl_rejected": 0.75,
           "guide_chosen_logp": -8.5, "guide_rejected_logp": -8.0}  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))

    def loss(*overrides: str) -> float:
        ran = alphapo("loss", "rows.jsonl", *overrides)
        assert ran.code == 0, ran.err
        return float(json.loads(ran.out)["loss"])

    assert loss("objective=mrpo") == pytest.approx(loss("objective=dpo"), rel=1e-14)  # equal references
    expected = float(F.softplus(torch.tensor(-0.1 * (1.5 - 0.5 * 0.5), dtype=torch.float64)))
    assert loss("objective=tdpo") == pytest.approx(expected, rel=1e-12)
    first = float(F.softplus(torch.tensor(-0.1 * (1.5 + 0.25 - 0.75), dtype=torch.float64)))  # TDPO1: K_w - K_l in full
    assert loss("objective=tdpo", "objective.margin.stop=false", "objective.margin.alpha=1") == pytest.approx(first)
    del row["kl_chosen"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    ran = alphapo("loss", "rows.jsonl", "objective=tdpo")
    assert "no 'kl_chosen', which objective 'tdpo' needs" in ran.fault
