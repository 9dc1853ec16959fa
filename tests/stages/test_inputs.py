"""What the cells of a sweep share is made once, and let go when the cells that share it are over."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from alphapo_cli.config.compose import compose
from alphapo_cli.config.overrides import Sources, read_line
from alphapo_cli.config.schema import LoraConfig, ModelConfig, TrainConfig
from alphapo_cli.launch.cell_order import together
from alphapo_cli.modeling.adapters import add_lora
from alphapo_cli.modeling.loading import load_model
from alphapo_cli.modeling.policy import policy_of
from alphapo_cli.modeling.weight_hashes import state_hash
from alphapo_cli.objective.build import build
from alphapo_cli.runtime.memo import LRUMemo
from alphapo_cli.stages.training import inputs as module
from alphapo_cli.stages.training.inputs import InputsBuilder
from tests import tiny


def another_model(start: Path, seed: int) -> Path:
    """Other weights under the same tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(start / "model")
    folder = start / f"model-{seed}"
    tokenizer.save_pretrained(folder)
    tiny.model(vocab=len(tokenizer), seed=seed).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.saved_start(tmp_path_factory.mktemp("start"), 21, 7)


def config(start: Path, *overrides: str) -> TrainConfig:
    line = [*tiny.line_from(start), "objective=dpo", *overrides]
    return compose("train", TrainConfig, [read_line(line, Sources())], Sources())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the slow things were done."""
    counted: Counter[str] = Counter()

    def count(name: str) -> None:
        real = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)

    for name in ("load_model", "load_text", "prepare", "score_pairs"):
        count(name)
    return counted


def a_cell(builder: InputsBuilder, cfg: TrainConfig) -> tuple[Any, Any]:
    """(the policy before its first step, reference log-probs of the training pairs)."""
    start_ = builder.model_and_data(cfg)
    policy = policy_of(start_.policy(), cfg)
    return policy, builder.reference(cfg, start_, policy, build(cfg.objective))[0]


@pytest.mark.parametrize("reference", [False, True], ids=["of its own", "a model of its own"])
def test_cells_of_a_sweep_read_and_score_once(
    reference: bool, start: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    more = [f"model.reference={another_model(start, 1)}"] if reference else []
    builder = InputsBuilder(warm=True, cache=tmp_path)
    made = [a_cell(builder, config(start, f"objective.beta={beta}", *more)) for beta in (0.1, 0.2, 0.3)]
    # training and probe pairs are scored; the policy is read, and the reference that is not the policy
    assert calls == {"load_model": 1 + reference, "load_text": 1, "prepare": 1, "score_pairs": 2}
    assert len({id(policy.lm) for policy, _ in made}) == 3  # each trains its own
    assert all((sums == made[0][1]).all() for _, sums in made)
    alone = a_cell(InputsBuilder(cache=tmp_path / "another"), config(start, *more))[1]
    assert (alone == made[0][1]).all()


def test_adapters_that_change_nothing_yet_share_the_reference(start: Path, tmp_path: Path, calls: Counter[str]) -> None:
    lines = [
        ("model.lora.r=2",),
        ("model.lora.r=4", "seed=3"),
        ("model.lora.r=2", "model.lora.target_modules=[q_proj]"),
    ]
    for line in ((), *lines):
        a_cell(InputsBuilder(cache=tmp_path), config(start, *line))  # a process for each: the cache on disk
    assert calls["score_pairs"] == 2


def test_a_trained_adapter_is_another_model() -> None:
    lm = tiny.model("llama tied")
    bare = state_hash(lm)
    adapted = add_lora(lm, ModelConfig(lora=LoraConfig(r=2)), seed=0)
    assert state_hash(adapted) == bare
    with torch.no_grad():
        next(p for name, p in adapted.named_parameters() if "lora_B" in name)[0, 0] = 1e-6
    assert state_hash(adapted) != bare
    assert state_hash(adapted) != state_hash(tiny.model("llama tied", seed=1))


@pytest.mark.slow
def test_models_of_cells_that_are_over_are_let_go(start: Path, tmp_path: Path) -> None:
    masters = []

    def load(*args: Any, **named: Any) -> Any:
        lm = load_model(*args, **named)
        masters.append(weakref.ref(lm))
        return lm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_model", load)
        builder = InputsBuilder(warm=True, cache=tmp_path)
        for seed in range(module.KEPT + 1):
            a_cell(builder, config(start, f"model.path={another_model(start, seed)}"))
    gc.collect()
    assert [master() is None for master in masters] == [True] + [False] * module.KEPT


@pytest.mark.slow
def test_cells_of_the_same_model_run_one_after_the_other(start: Path) -> None:
    """Else five models in turns would push each other off the shelf at every cell."""
    line = ("model.path=null", "model=from_scratch")
    cells = [config(start, *line, f"objective.beta={beta}", f"seed={seed}") for beta in (0.1, 0.2) for seed in range(5)]
    ran = [(cfg.seed, cfg.objective.beta) for cfg in together(cells, lambda cfg: cfg)]
    assert ran == [(seed, beta) for seed in range(5) for beta in (0.1, 0.2)]
    weights = [config(start, f"objective.beta={beta}", f"seed={seed}") for beta in (0.1, 0.2) for seed in range(5)]
    assert together(weights, lambda cfg: cfg) == weights  # a saved model is the same for every seed


def test_a_shelf_keeps_what_one_of_its_latest_owners_asked_for() -> None:
    shelf, made = LRUMemo(2), []

    def ask(owner: str, *keys: str) -> None:
        shelf.open(owner)
        for key in keys:
            shelf.keep(key, lambda key=key: made.append(key))  # type: ignore[misc]

    ask("a", "common", "of a")
    ask("b", "common", "of b")
    ask("c", "common", "of c")  # a is over
    ask("b", "of b", "common")
    assert made == ["common", "of a", "of b", "of c"]
    ask("a", "of a", "common")
    assert made == ["common", "of a", "of b", "of c", "of a"]
