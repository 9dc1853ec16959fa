"""`alphapo generate` as a command, by transformers: what it writes, and what happens when it is typed again."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alphapo_cli.data.glassbox import world
from alphapo_cli.evaluation.formats import read_outputs
from tests.conftest import Ran, write_rows
from tests.generation.generate_world import load, merge, outputs, train_lora

HERE = ("generation=transformers", "data.limit=12")
Alphapo = Callable[..., Ran]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """Read it, never write to it."""
    return train_lora(tmp_path_factory.mktemp("lora"), shared_cache)


def test_writes_alpacaevals_format_and_prints_the_directory_first(
    trained: Ran, alphapo: Alphapo, tmp_path: Path
) -> None:
    ran = alphapo("generate", str(trained.path), *HERE, "--json", "-")
    assert ran.code == 0, ran.err
    assert ran.path.parent == tmp_path / "runs"
    assert ran.path.name.startswith(f"generate-{trained.path.name}-")
    rows = load(ran.path / "model_outputs.json")
    assert [list(row) for row in rows] == [["dataset", "instruction", "output", "generator"]] * 12
    assert [row["instruction"] for row in rows] == world.instructions(12)
    assert {(row["dataset"], row["generator"]) for row in rows} == {("glassbox", trained.path.name)}
    assert {p.name for p in ran.path.iterdir()} == {
        "manifest.json", "config.yaml", "prompts.jsonl", "answers.jsonl", "model_outputs.json", "summary.json"
    }  # fmt: skip
    assert json.loads(ran.out.splitlines()[-1]) == {"path": str(ran.path), **load(ran.path / "summary.json")}


def test_says_what_the_answers_are_like(alphapo: Alphapo) -> None:
    """One token a word in this world, so that lengths and 4-grams can be counted on the texts."""
    ran = alphapo("generate", *HERE, "generation.temperature=0")
    words = [text.split() for text in outputs(ran.path)]
    grams = [[tuple(w[i : i + 4]) for i in range(len(w) - 3)] for w in words]
    repeated = [1 - len(set(g)) / len(g) for g in grams if g]
    summary = load(ran.path / "summary.json")
    metrics = summary["metrics"]
    assert metrics["mean_length"] == pytest.approx(sum(map(len, words)) / 12)
    assert metrics["repetition_rate"] == pytest.approx(sum(repeated) / len(repeated))
    assert (metrics["share_cut"], metrics["share_empty"]) == (0, 0)
    assert summary["cost"]["tokens"] == sum(map(len, words)) + 12
    for said in (f"{metrics['mean_length']:.1f} tokens", "cut by the token limit", "repetition rate", "tokens/s"):
        assert said in ran.err


def test_the_same_line_again_is_complete_and_changes_nothing(
    alphapo: Alphapo, snapshot: Callable[[Path], Any], tmp_path: Path
) -> None:
    first = alphapo("generate", *HERE)  # without a model: the embedded base
    assert first.path.name.startswith("generate-glassbox-base-")
    before = snapshot(first.path)
    again = alphapo("generate", *HERE, "generation.batch_size=3", "--json", "-")  # changes no answer
    assert again.out.splitlines()[:2] == [str(first.path), "complete"]
    assert json.loads(again.out.splitlines()[-1])["metrics"]["answers"] == 12
    assert snapshot(first.path) == before
    # An equal model elsewhere makes equal answers: what counts is the content.
    base = load(first.path / "manifest.json")["model"]
    copy = shutil.copytree(base, tmp_path / "copy")
    same = alphapo("generate", str(copy), "data=glassbox", *HERE, "generation.generator=glassbox-base")
    assert same.out.splitlines()[:2] == [str(first.path), "complete"]


def test_a_damaged_summary_is_not_taken_for_unfinished_work(alphapo: Alphapo) -> None:
    first = alphapo("generate", *HERE)
    answers = (first.path / "model_outputs.json").read_bytes()
    (first.path / "model_outputs.json").write_bytes(answers + b"\n")  # to see whether it is written anew
    (first.path / "summary.json").write_text('{"state": "comp')
    again = alphapo("generate", *HERE)
    assert again.code == 2
    assert "summary.json is damaged" in again.fault
    assert (first.path / "model_outputs.json").read_bytes() == answers + b"\n"
    (first.path / "summary.json").unlink()
    assert alphapo("generate", *HERE).code == 0
    assert (first.path / "model_outputs.json").read_bytes() == answers


def test_another_configuration_needs_another_directory(alphapo: Alphapo, tmp_path: Path) -> None:
    line = ("generate", *HERE, "--out", str(tmp_path / "out"))
    assert alphapo(*line).code == 0
    first = outputs(tmp_path / "out")
    refused = alphapo(*line, "seed=1", "generation.top_p=0.9")
    assert refused.code == 2
    assert "holds another generation (differs in: generation.seed, generation.top_p)" in refused.fault
    assert outputs(tmp_path / "out") == first
    assert alphapo(*line, "seed=1", "--replace").code == 0
    assert outputs(tmp_path / "out") != first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused = alphapo("generate", *HERE, "--out", str(tmp_path / "mine"), "--replace")
    assert (refused.code, (tmp_path / "mine" / "notes.txt").read_text()) == (2, "mine")
    assert "is not a generation" in refused.fault


@torch.no_grad()
def test_greedy_answers_are_the_models_own(alphapo: Alphapo) -> None:
    """Against a plain loop over argmax, one prompt at a time, fed with the ids of the tokenizer's own template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ran = alphapo("generate", *HERE, "generation.temperature=0")
    base = load(ran.path / "manifest.json")["model"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    for text, found in zip(world.instructions(12), outputs(ran.path), strict=True):
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        start = len(ids)
        while ids[-1] != tokenizer.eos_token_id and len(ids) < 128:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert found == " ".join(tokenizer.convert_ids_to_tokens(ids[start:-1]))


@pytest.mark.slow
def test_an_answer_depends_on_its_prompt_and_seed_alone(alphapo: Alphapo, tmp_path: Path) -> None:
    whole = alphapo("generate", *HERE).path
    answers = dict(zip(world.instructions(12), outputs(whole), strict=True))
    backwards = [{"instruction": text} for text in reversed(world.instructions(12)[3:])]
    file = write_rows(tmp_path / "prompts.jsonl", backwards)
    part = alphapo("generate", "generation=transformers", f"data.path={file}", "generation.batch_size=2").path
    assert {row["instruction"]: row["output"] for row in load(part / "model_outputs.json")} == {
        row["instruction"]: answers[row["instruction"]] for row in backwards
    }
    assert outputs(alphapo("generate", *HERE, "seed=1").path) != list(answers.values())


def test_several_samples_are_several_files_that_eval_takes(alphapo: Alphapo) -> None:
    one, two = (alphapo("generate", *HERE, f"generation.samples={n}").path for n in (1, 2))
    first, second = (read_outputs(two / name) for name in ("model_outputs.json", "model_outputs-1.json"))
    assert [row.output for row in first.rows] == outputs(one)
    assert [row.instruction for row in first.rows] == [row.instruction for row in second.rows]
    assert [row.output for row in first.rows] != [row.output for row in second.rows]
    assert load(two / "summary.json")["metrics"]["answers"] == 24


def test_eval_judges_the_outputs(trained: Ran, alphapo: Alphapo, tmp_path: Path) -> None:
    ours, base = alphapo("generate", str(trained.path), *HERE).path, alphapo("generate", *HERE, "seed=1").path
    ran = alphapo("eval", str(ours), "--reference", str(base), "--judge", "glassbox", "--out", str(tmp_path / "eval"))
    assert ran.code == 0, ran.err
    found = load(tmp_path / "eval" / "results.json")
    rewards = [
        [world.true_reward(t, o) for t, o in zip(world.instructions(12), outputs(p), strict=True)] for p in (ours, base)
    ]
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(*rewards, strict=True))
    assert (found["n_total"], found["generator"]) == (12, trained.path.name)
    assert found["true_win_rate"] == wins / 12


@pytest.mark.slow
def test_an_interrupted_generation_keeps_what_it_has_and_goes_on(
    alphapo: Alphapo, interrupt: Callable[..., None], tmp_path: Path
) -> None:
    line = ("generate", "generation=transformers", "data.limit=40", "generation.batch_size=1")
    whole = alphapo(*line).path
    out = tmp_path / "stopped"
    partial = out / "partial.jsonl"
    interrupt(lambda: partial.is_file() and partial.read_bytes().count(b"\n") >= 3)
    stopped = alphapo(*line, "--out", str(out))
    assert stopped.code == 130
    kept = partial.read_bytes().count(b"\n")
    assert 3 <= kept < 40
    assert f"{kept} of 40 answers are kept" in stopped.err
    assert not (out / "model_outputs.json").exists()
    with partial.open("ab") as file:
        file.write(b'{"row": 39, "sam')  # what a kill leaves
    ran = alphapo(*line, "--out", str(out))
    assert ran.code == 0, ran.err
    assert outputs(out) == outputs(whole)
    assert load(out / "summary.json")["cost"]["answers_from_earlier_starts"] == kept
    assert not partial.exists()


@pytest.mark.slow
def test_a_lora_run_generates_what_its_merged_model_does(lora: Path, alphapo: Alphapo, tmp_path: Path) -> None:
    line = (*HERE, "generation.temperature=0")
    adapted = outputs(alphapo("generate", str(lora), *line).path)
    merged = str(merge(lora, tmp_path / "merged"))
    assert adapted == outputs(alphapo("generate", merged, "data=glassbox", *line).path)
    assert adapted != outputs(alphapo("generate", *line).path), "the adapter must matter for this to say anything"


def test_every_stop_id_of_the_generation_config_ends_an_answer(alphapo: Alphapo, tmp_path: Path) -> None:
    line = (*HERE, "generation.temperature=0")
    base = alphapo("generate", *line).path
    plain, model = outputs(base), shutil.copytree(load(base / "manifest.json")["model"], tmp_path / "model")
    settings = load(model / "generation_config.json")
    stop = load(model / "tokenizer.json")["model"]["vocab"]["."]
    eos = settings["eos_token_id"]
    (model / "generation_config.json").write_text(
        json.dumps(settings | {"eos_token_id": [*(eos if isinstance(eos, list) else [eos]), stop]})
    )
    ended = outputs(alphapo("generate", str(model), "data=glassbox", *line).path)
    assert ended == [" ".join(itertools.takewhile(lambda word: word != ".", text.split())) for text in plain]
    assert ended != plain


def test_a_limit_cuts_and_is_said(alphapo: Alphapo) -> None:
    line = (*HERE, "generation.temperature=0")
    whole = outputs(alphapo("generate", *line).path)
    ran = alphapo("generate", *line, "generation.max_new_tokens=4")
    assert outputs(ran.path) == [" ".join(text.split()[:4]) for text in whole]
    # An answer of exactly four words has no room left for its end token, and so counts as cut.
    cut = sum(len(text.split()) >= 4 for text in whole) / 12
    assert load(ran.path / "summary.json")["metrics"]["share_cut"] == cut
    assert f"cut by the token limit    │ {100 * cut:.0f} % [" in ran.err


def test_prompts_of_pairs_and_repeated_ones(scratch: Ran, pairs: dict[str, Path], alphapo: Alphapo) -> None:
    """The dialogues that a run trained on are prompts, too; one that comes twice is answered once."""
    rows = [json.loads(line) for line in pairs["dialogue"].read_text().splitlines()]
    file = write_rows(pairs["dialogue"].parent / "twice.jsonl", [*rows[:5], rows[2]])
    line = ("generate", str(scratch.path), "generation=transformers", "generation.max_new_tokens=3", "data=jsonl")
    ran = alphapo(*line, f"data.path={file}")
    assert ran.code == 0, ran.err
    found = [row["instruction"] for row in load(ran.path / "model_outputs.json")]
    assert found == [row["chosen"].rsplit("Assistant:", 1)[0] + "Assistant:" for row in rows[:5]]
    assert "1 of 6 rows repeat a prompt" in ran.err


def test_without_vllm_auto_is_transformers_and_vllm_is_refused(
    alphapo: Alphapo, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else real(name, *a))
    assert load(alphapo("generate", "data.limit=1").path / "summary.json")["backend"] == "transformers"
    refused = alphapo("generate", "data.limit=1", "generation=vllm")
    assert (refused.code, refused.out) == (2, "")
    assert "pip install 'alphapo[vllm]'" in refused.fault


def test_print_config_shows_what_a_run_hands_on(alphapo: Alphapo, trained: Ran) -> None:
    ran = alphapo("generate", str(trained.path), "generation.samples=3", "--print-config")
    assert ran.code == 0
    assert "samples: 3" in ran.out
    assert "dtype: float32" in ran.out  # the run's own; `auto` otherwise
