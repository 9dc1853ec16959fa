"""The catalogue of metrics: every key has one sentence, and a mistyped key gets the nearest name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import alphapo_cli
from alphapo_cli.errors import UsageError
from alphapo_cli.tracking import metrics

KEYS = metrics.keys()
KEY = re.compile(r"[a-z]+(/[a-z0-9_]+)+")


def test_every_key_of_the_catalogue_is_one_sentence() -> None:
    assert len(KEYS) == len(set(KEYS))
    for key in KEYS:
        sentence = metrics.explain(key)
        assert sentence.endswith("."), key
        assert sentence.count(". ") == 0, key
        assert sentence[0] == sentence[0].upper(), key


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("displacement/chosen", ["Mean over the probe pairs", "step 0", "nats per token"]),
        ("displacement/chosen_sum", ["summed over its tokens", "in nats."]),
        ("displacement/rejected/p10", ["10th percentile", "rejected completion", "nats per token"]),
        ("logps/chosen/p50", ["Median"]),
        ("train/rewards/margins", ["training batch", "gamma"]),
        ("train/gradient_weight/chosen/p90", ["90th percentile", "training batch"]),
        ("gradient_weight/chosen", ["the preference term of the loss", "NLL term left out"]),
        ("gradient_weight/rejected", ["the preference term of the loss", "NLL term left out"]),
        ("train/loss", ["loss"]),
        ("glassbox/true_win_rate", ["tie counting half"]),
    ],
)
def test_explanations(key: str, parts: list[str]) -> None:
    assert key in KEYS
    for part in parts:
        assert part in metrics.explain(key)


def test_keys_of_single_pairs_are_explained_and_are_no_metric_of_a_run() -> None:
    assert "score s" in metrics.explain("scores/rejected")
    assert not set(metrics.PER_PAIR) & set(KEYS)


@pytest.mark.parametrize(
    "key", ["scores/choosen", "displacement/chosn", "kl/reference/p10", "train/train/loss", "train/glassbox/length"]
)
def test_a_key_that_no_run_writes(key: str) -> None:
    with pytest.raises(UsageError, match=f"no metric is called '{key}'; did you mean"):
        metrics.explain(key)


def test_the_probes_keys_of_the_design_are_all_there() -> None:
    quadrants = [f"displacement/quadrant/{name}" for name in ("up_up", "up_down", "down_up", "down_down")]
    rewards = [f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")]
    glassbox = [f"glassbox/{name}" for name in ("true_reward", "true_win_rate", "length")]
    sides = [
        f"{what}/{side}" for what in ("displacement", "logps", "gradient_weight") for side in ("chosen", "rejected")
    ]
    others = ["displacement/share_chosen_down", "displacement/margin_from_chosen", "ranking/accuracy",
              "ranking/accuracy_length_normalised", "ranking/flipped", "kl/reference", "entropy/chosen"]  # fmt: skip
    train = [f"train/{name}" for name in ("loss", "grad_norm", "learning_rate", "epoch", *rewards, "logps/chosen")]
    assert {*quadrants, *rewards, *glassbox, *sides, *others, *train} <= set(KEYS)


def test_what_bad_looks_like_goes_along_with_the_batchs_key() -> None:
    assert "likelihood displacement" in str(metrics.lookup("displacement/chosen").bad)
    assert metrics.lookup("train/rewards/margins").bad == metrics.lookup("rewards/margins").bad


@pytest.mark.slow
def test_every_metric_that_the_code_names_is_in_the_catalogue() -> None:
    # Keys are written out where they are read, so that what W&B shows can be searched for; this catches misspelt ones.
    families = {key.split("/")[0] for key in KEYS}
    named = {
        (path.name, node.lineno, node.value)
        for path in Path(alphapo_cli.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and KEY.fullmatch(node.value)
    }
    named = {entry for entry in named if entry[2].split("/")[0] in families}
    assert len(named) > 50
    assert {entry for entry in named if entry[2] not in KEYS} == set()
