"""Scores of pairs against plain transformers, which runs each answer alone, and against plain Python."""

from __future__ import annotations

import copy
import math
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from alphapo_cli.data.token_pairs import Ragged, TokenPairs
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.probe.pair_scores import edit_distance, idealised_margin, model_scores, token_scores
from alphapo_cli.probe.score_names import NAMES, OF_STATES
from alphapo_cli.runtime.distributed import Processes
from tests import tiny

FAMILIES = ["llama", "qwen2", "gemma2, soft-capped", "llama tied"]


def pairs_of(*rows: tuple[list[int], list[int], list[int]]) -> TokenPairs:
    prompt, chosen, rejected = (Ragged.from_lists([row[side] for row in rows]) for side in range(3))
    return TokenPairs(prompt, chosen, rejected, tuple(f"{i:064x}" for i in range(len(rows))), np.arange(len(rows)))


def pairs() -> TokenPairs:
    """Random pairs; two that begin alike; a prompt and answers of one token."""
    drawn = tiny.token_pairs(5, seed=1, scale=0.2)
    rows = [(drawn.prompt[i].tolist(), drawn.chosen[i].tolist(), drawn.rejected[i].tolist()) for i in range(5)]
    alike = ([tiny.BOS, 7, 8], [5, 6, 7, 8, tiny.EOS], [5, 6, 9, tiny.EOS])
    return pairs_of(*rows, alike, ([tiny.BOS, 3], [4], [5]))


def lora(lm: Any) -> Any:
    """The model under adapters that are not idle."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(lm, config).eval()


def oracle(lm: Any, data: TokenPairs) -> dict[str, list[float]]:
    """Plain transformers: each answer alone behind its prompt, hidden states of the output, sums in float64."""
    found: dict[str, list[float]] = {name: [] for name in (*OF_STATES, "square", "gap", "mean_gap")}
    for i in range(len(data)):
        sums, logps, lengths = [], [], []
        for answer in (data.chosen[i], data.rejected[i]):
            ids = torch.tensor([[*data.prompt[i].tolist(), *answer.tolist()]])
            output = lm(input_ids=ids, output_hidden_states=True, use_cache=False)
            first = len(data.prompt[i]) - 1
            places = range(first, first + len(answer))  # the prompt's last position predicts the first token
            states = output.hidden_states[-1][0].double()
            table = output.logits[0].double().log_softmax(-1)
            sums.append(sum(states[place] for place in places))
            logps.append(math.fsum(float(table[place, ids[0, place + 1]]) for place in places))
            lengths.append(len(answer))
        chosen, rejected = sums
        square, product = float(chosen @ chosen), float(chosen @ rejected)
        found["ches"].append(product - square)
        found["inner_product"].append(product)
        found["ches_normalised"].append(product / (lengths[0] * lengths[1]) - square / lengths[0] ** 2)
        found["square"].append(square)
        found["gap"].append(logps[0] - logps[1])
        found["mean_gap"].append(logps[0] / lengths[0] - logps[1] / lengths[1])
    return found


def scores(lm: Any, layout: str, data: TokenPairs) -> dict[str, np.ndarray]:
    policy = PolicyModel(copy.deepcopy(lm), layout=layout)
    return dict(model_scores(policy, data, batch_size=3, pad_id=tiny.PAD, processes=Processes()))


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "LoRA"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_plain_transformers(family: str, layout: str, adapted: bool) -> None:
    """Relative to |S_w|^2: in float64 throughout what sums in another order lose, in float32 what its products lose."""
    lm = tiny.model(family, attn_implementation="eager")
    lm = lora(lm) if adapted else lm
    data = pairs()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        lm = lm.to(dtype)
        with torch.no_grad(), tiny.Wide():
            theirs, ours = oracle(lm, data), scores(lm, layout, data)
        square = np.array(theirs["square"])
        lengths = data.chosen.lengths
        assert (np.abs(ours["ches"] - theirs["ches"]) <= tolerance * square).all()
        assert (np.abs(ours["inner_product"] - theirs["inner_product"]) <= tolerance * square).all()
        assert (np.abs(ours["ches_normalised"] - theirs["ches_normalised"]) <= tolerance * square / lengths**2).all()
        assert ours["reference_gap"] == pytest.approx(theirs["gap"], rel=tolerance, abs=tolerance)
        assert ours["reference_gap_per_token"] == pytest.approx(theirs["mean_gap"], rel=tolerance, abs=tolerance)
        assert ours["start_prefers_chosen"].tolist() == [float(gap > 0) for gap in theirs["gap"]]


def test_the_same_answer_twice_has_no_ches_and_an_absent_one_has_no_score() -> None:
    lm = tiny.model()
    data = pairs_of(([1, 5], [6, 7, 2], [6, 7, 2]), ([1, 5], [6, 2], []))
    found = {**token_scores(data), **scores(lm, "padded", data)}
    assert set(found) == set(NAMES)
    assert all(math.isnan(values[1]) for values in found.values())
    assert (found["ches"][0], found["edit_distance"][0], found["common_prefix"][0]) == (0.0, 0.0, 1.0)
    assert found["start_prefers_chosen"][0] == 0.5


def levenshtein(a: list[int], b: list[int]) -> int:
    """The textbook's table."""
    table = [[i + j if not i * j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            swap = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, swap)
    return table[-1][-1]


def test_edit_distance_is_the_textbooks() -> None:
    draw = Random(0)
    for _ in range(200):
        a, b = ([draw.randrange(4) for _ in range(draw.randrange(12))] for _ in range(2))
        ids = [np.array(x, np.int32) for x in (a, b)]
        assert edit_distance(*ids) == levenshtein(a, b)


def test_scores_of_token_ids() -> None:
    found = token_scores(pairs_of(([1], [5, 6, 7, 2], [5, 6, 9, 9, 7, 2]), ([1], [5], [6, 7])))
    assert found["edit_distance"].tolist() == [2 / 6, 1.0]
    assert found["common_prefix"].tolist() == [2 / 6, 0.0]
    assert found["length_ratio"].tolist() == [4 / 6, 0.5]


def test_only_trained_tokens_count() -> None:
    data = pairs_of(([1], [5, 6, 7, 2], [5, 8, 7, 2]))
    turns = tuple(Ragged.from_lists([[0, -1, 1, 1]]) for _ in range(2))
    found = token_scores(TokenPairs(**{**vars(data), "turns": turns}))
    assert (found["edit_distance"][0], found["common_prefix"][0]) == (0.0, 1.0)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_idealised_margin_is_that_of_dpos_optimum(beta: float) -> None:
    """DPO's population loss p softplus(-m) + (1 - p) softplus(m), m = beta (margin - gap), is least at the margin."""
    gap, p = np.array([-3.0, 0.5, 2.0]), np.array([0.6, 0.9, 0.3])
    margin = idealised_margin(gap, p, beta)
    for i in range(3):
        slope = p[i] - 1 / (1 + math.exp(-beta * (margin[i] - gap[i])))  # of the loss by m, times -1
        assert slope == pytest.approx(0.0, abs=1e-12)
    assert idealised_margin(gap, np.ones(3), beta).tolist() == [math.inf] * 3
