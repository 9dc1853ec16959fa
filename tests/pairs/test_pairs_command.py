"""`alphapo pairs` and `alphapo score` as commands, in the embedded world and on files."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.glassbox import world
from alphapo_cli.data.load import load_pairs
from tests.conftest import BARE, Ran, entry_point, environment, run_here, write_rows
from tests.fork_server import Server
from tests.pairs.scoring.test_scorers import classifier

SMALL = ("recipe=simpo", "generation=transformers", "generation.samples=4", "data.limit=24")
Alphapo = Callable[..., Ran]
CONF = Path(__file__).parents[2] / "conf"
# Recipes that sample and score, and that the embedded world feeds.
FED = (
    "simpo_pairrm", "online_rlhf", "online_rlhf_random", "online_rlhf_best_best", "online_rlhf_length", "dice",
    "iterative_dpo_vp", "dno", "sppo", "rso",
)  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Path, Ran]:
    """(a directory with runs/, what the line did). Read it, never write to it."""
    folder = tmp_path_factory.mktemp("pairs")
    ran = run_here(("pairs", *SMALL), folder, shared_cache)
    assert ran.code == 0, ran.err
    return folder, ran


def check_pairs(folder: Path, prompts: int) -> None:
    """Plain Python on the answers: best against worst by the true reward, and nobody is lost."""
    (answers_file,) = folder.parent.glob("generate-*/answers.jsonl")
    texts: dict[str, list[str]] = {}
    for row in lines(answers_file):
        texts.setdefault(row["prompt"], []).append(row["output"])
    instructions = {row["prompt"]: row["instruction"] for row in lines(answers_file.with_name("prompts.jsonl"))}
    expected, tied = {}, set()
    for key, found in texts.items():
        found = [text for text in found if text.strip()]  # no training takes an empty answer
        rewards = [world.true_reward(instructions[key], text) for text in found]
        if max(rewards) == min(rewards):
            tied.add(instructions[key])
            continue
        high, low = max(rewards), min(rewards)
        expected[instructions[key]] = (found[rewards.index(high)], found[rewards.index(low)], high, low)
    pairs = {row["prompt"][0]["content"]: row for row in lines(folder / "pairs.jsonl")}
    assert {
        text: (r["chosen"][0]["content"], r["rejected"][0]["content"], r["score_chosen"], r["score_rejected"])
        for text, r in pairs.items()
    } == expected
    dropped = {row["prompt"][0]["content"]: row["reason"] for row in lines(folder / "dropped.jsonl")}
    # Prompts whose answers are all equal have fewer than two different texts, others the same reward.
    assert set(dropped) == tied
    assert all(reason.startswith(("tied", "fewer than 2 answers: equal texts")) for reason in dropped.values())
    metrics = summary(folder)["metrics"]
    assert metrics["prompts"] == prompts == metrics["pairs"] + sum(metrics["dropped"].values())


def test_the_recipe_pairs_best_with_worst_and_a_second_run_changes_nothing(
    made: tuple[Path, Ran], shared_cache: Path
) -> None:
    folder, ran = made
    assert ran.path.name.startswith("pairs-simpo-")
    assert "the embedded world's true reward stands for scorer=reward_model" in ran.err
    check_pairs(ran.path, 24)
    # What it says to type next is typed: without a model the line was refused.
    typed = [line.partition("#")[0].split()[2:] for line in ran.err.splitlines() if line.startswith("next: ")]
    assert [words[0] for words in typed] == ["inspect", "train"]
    assert run_here(("validate", *typed[0][1:]), folder, shared_cache).code == 0
    before = hashes(ran.path)
    again = run_here(("pairs", *SMALL), folder, shared_cache)
    assert (again.code, again.out.splitlines()) == (0, [str(ran.path), "complete"])
    assert hashes(ran.path) == before
    # Another directory is made of the same answers: the same bytes, and no model was called.
    other = run_here(("pairs", *SMALL, "--out", "other"), folder, shared_cache)
    assert other.code == 0, other.err
    assert {k: v for k, v in hashes(other.path).items() if k.endswith((".jsonl", ".png"))} == {
        k: v for k, v in before.items() if k.endswith((".jsonl", ".png"))
    }
    assert summary(other.path)["cost"]["generated"] == 0
    # As after a kill in the middle of writing.
    (other.path / "summary.json").unlink()
    (other.path / "pairs.jsonl").write_text('{"prompt": ')
    assert run_here(("pairs", *SMALL, "--out", "other"), folder, shared_cache).code == 0
    assert hashes(other.path)["pairs.jsonl"] == before["pairs.jsonl"]


def test_another_rule_costs_no_model_call(made: tuple[Path, Ran], shared_cache: Path) -> None:
    folder, ran = made
    more = ("pair.rejected=rank:2", "select=[{by: margin, keep: highest, share: 0.5}]")
    other = run_here(("pairs", *SMALL, *more), folder, shared_cache)
    assert other.code == 0, other.err
    assert other.path != ran.path
    assert len(list(folder.glob("runs/generate-*"))) == 1
    assert summary(other.path)["cost"]["generated"] == 0
    metrics = summary(other.path)["metrics"]
    assert metrics["prompts"] == metrics["prompts_with_pairs"] + sum(metrics["dropped"].values())


@pytest.mark.slow
def test_pairs_are_selected_by_scores_under_the_start_model(
    made: tuple[Path, Ran], shared_cache: Path, tmp_path: Path
) -> None:
    """CHES as `alphapo measure` has it of the same pairs; another rule asks the model for nothing twice."""
    _, all_pairs = made
    base = str(next((shared_cache / "base").iterdir()))
    measured = run_here(
        ("measure", base, "data=jsonl", f"data.path={all_pairs.path}", "data.on_template_loss=keep"),
        tmp_path,
        shared_cache,
    )
    assert measured.code == 0, measured.err
    everything = lines(all_pairs.path / "pairs.jsonl")
    rows = sorted(lines(measured.path / "measured.jsonl"), key=lambda row: row["row"])
    assert [row["row"] for row in rows] == list(range(1, len(everything) + 1))
    ches = [row["ches_normalised"] for row in rows]
    cache = shutil.copytree(shared_cache, tmp_path / "cache")
    shutil.rmtree(cache / "scores", ignore_errors=True)
    half = ("pairs", *SMALL, "order.by=ches_normalised", "select=[{by: ches_normalised, keep: lowest, share: 0.5}]")
    folder = all_pairs.path.parent.parent
    ran = run_here((*half, "--out", str(tmp_path / "half")), folder, cache)
    assert ran.code == 0, ran.err
    wanted = sorted(zip(ches, [row["chosen"] for row in everything], strict=True), key=lambda one: one[0])
    count = math.floor(0.5 * len(wanted) + 0.5)
    # None are equal to round-off, which batches change.
    assert all(b[0] - a[0] > 1e-5 for a, b in itertools.pairwise(wanted))
    assert [row["chosen"] for row in lines(ran.path / "pairs.jsonl")] == [chosen for _, chosen in wanted[:count]]
    assert summary(ran.path)["cost"]["pairs_measured"] == len(everything)
    quarter = (
        "pairs",
        *SMALL,
        "select=[{by: reference_gap, min: 0}]",
        f"start.model={base}",
        "--out",
        str(tmp_path / "q"),
    )
    again = run_here(quarter, folder, cache)
    assert again.code == 0, again.err
    assert summary(again.path)["cost"]["pairs_measured"] == 0


@pytest.mark.slow
def test_train_takes_the_directory(made: tuple[Path, Ran], shared_cache: Path, tmp_path: Path) -> None:
    _, ran = made
    pairs = load_pairs(DataConfig(source="files", path=str(ran.path)))
    assert len(pairs) == summary(ran.path)["metrics"]["pairs"]
    lists = load_pairs(DataConfig(source="files", path=str(ran.path / "scored.jsonl")))
    assert lists.form == "answers"
    line = ("train", "data=jsonl", f"data.path={ran.path}", "model=glassbox", "trainer=small", "trainer.max_steps=2")
    trained = run_here(
        (*line, *BARE, "trainer.order=given", "probe.pairs=4", "probe.samples=0", "trainer.per_device_train_batch_size=4"),
        tmp_path, shared_cache,
    )  # fmt: skip
    assert trained.code == 0, trained.err
    copy = shutil.copytree(ran.path, tmp_path / "copy")
    (copy / "summary.json").unlink()
    refused = run_here((*line, f"data.path={copy}"), tmp_path, shared_cache)
    assert refused.code == 2
    assert "its pairs are not all there; type its alphapo pairs line again" in refused.fault


@pytest.mark.slow
def test_answers_are_scored_once(made: tuple[Path, Ran], shared_cache: Path, tmp_path: Path) -> None:
    """A rule's numbers are kept: what it has scored is not asked again, in whatever order the answers come."""
    folder, _ = made
    (answers,) = folder.glob("runs/generate-*")
    log = tmp_path / "asked"
    rule = tmp_path / "rule.py"
    rule.write_text(
        "import json, sys\n"
        f"rows = [json.loads(line) for line in sys.stdin]\nopen({str(log)!r}, 'a').write('x' * len(rows))\n"
        "print(*(len(row['response']) for row in rows), sep='\\n')\n"
    )
    line = ("score", str(answers), "scorer=rule", f"scorer.rule=python {rule}")
    ran = run_here(line, tmp_path, shared_cache)
    assert ran.code == 0, ran.err
    scores = lines(ran.path / "scores.jsonl")
    assert [row["rule"] for row in scores] == [len(row["output"]) for row in scores]
    assert len(log.read_text()) == len(scores) == 96
    before = hashes(ran.path)
    assert run_here((*line, "--replace"), tmp_path, shared_cache).code == 0
    assert {k: v for k, v in hashes(ran.path).items() if "scor" in k} == {
        k: v for k, v in before.items() if "scor" in k
    }
    assert len(log.read_text()) == 96
    # Scored answers are answers, and their scores rank them: the longest against the shortest.
    paired = run_here(("pairs", "--answers", str(ran.path / "scored.jsonl")), tmp_path, shared_cache)
    assert paired.code == 0, paired.err
    for row in lines(paired.path / "scored.jsonl"):
        assert row["scores"] == [len(text) for text in row["responses"]]


def test_a_judge_scores_by_its_wins(made: tuple[Path, Ran], shared_cache: Path, tmp_path: Path) -> None:
    folder, _ = made
    (answers,) = folder.glob("runs/generate-*")
    ran = run_here(("score", str(answers), "scorer=judge"), tmp_path, shared_cache)
    assert ran.code == 0, ran.err
    for row in lines(ran.path / "scored.jsonl"):
        rewards = [world.true_reward(row["prompt"][0]["content"], text) for text in row["responses"]]
        for i, mine in enumerate(rewards):
            wins = [0.5 if mine == other else float(mine > other) for other in rewards]
            assert row["scores"][i] == pytest.approx(sum(wins) / len(wins))
    again = run_here(("score", str(answers), "scorer=judge"), tmp_path, shared_cache)
    assert again.out.splitlines() == [str(ran.path), "complete"]


@pytest.mark.slow
def test_recipes_that_the_embedded_world_can_feed(made: tuple[Path, Ran], shared_cache: Path, tmp_path: Path) -> None:
    """On the four answers that exist, ranked by the true reward, with what a recipe wants of more answers made smaller."""
    folder, _ = made
    (answers,) = folder.glob("runs/generate-*")
    gold = [
        {"prompt": row["content"], "responses": [f"my pleasure , {row['instruction']}"]}
        for row in lines(answers / "prompts.jsonl")
    ]
    file = write_rows(tmp_path / "gold.jsonl", gold)
    fewer = {
        "dice": ["thin.min_answers=2"],
        "dno": ["pair.min_chosen=1"],  # the stand-in of the base model is a weak one
        "rso": ["thin.rejection_keep=4"],
        "online_rlhf_length": ["pair.length_weight=0.1"],
    }
    for name in (*FED, "sprec"):
        scorer = ("--answers", str(file)) if name == "sprec" else ("scorer=glassbox",)
        line = ("pairs", f"recipe={name}", "--answers", str(answers), *scorer, *fewer.get(name, ()))
        ran = run_here(line, tmp_path, shared_cache)
        assert ran.code == 0, (name, ran.err)
        metrics = summary(ran.path)["metrics"]
        assert metrics["prompts_with_pairs"] + sum(metrics["dropped"].values()) == 24, name
        for row in lines(ran.path / "pairs.jsonl"):
            assert row["margin"] > 0
            if name == "sprec":
                assert row["sources"] == ["gold", "self"]
            if name == "dno":
                assert row["score_chosen"] >= 1
                assert row["margin"] >= 1
            if name == "online_rlhf_best_best":
                rewards = sorted(world.true_reward(row["prompt"][0]["content"], t) for t in _answers(answers, row))
                assert row["score_chosen"] == rewards[-1]


@pytest.mark.slow
def test_recipes_for_scored_answers_and_given_pairs(made: tuple[Path, Ran], shared_cache: Path, tmp_path: Path) -> None:
    """Those that read answers or pairs made elsewhere, and those "after" a paper with what they ask for."""
    folder, ran = made
    (answers,) = folder.glob("runs/generate-*")
    base = str(next((shared_cache / "base").iterdir()))
    scored, given = lines(ran.path / "scored.jsonl"), lines(ran.path / "pairs.jsonl")
    listed = str(ran.path / "scored.jsonl")
    first = [{key: row[key][:2] for key in ("responses", "scores")} | {"prompt": row["prompt"]} for row in scored]
    files = {
        "steps": [{**row, "scores": [float(n == 0) for n in range(len(row["responses"]))]} for row in scored],
        "vectors": [{**row, "features": [[float(n), 1.0], [0.0, 2.0]]} for n, row in enumerate(first)],
        "two": [
            {
                "prompt": row["prompt"],
                "responses": [row["chosen"], row["rejected"]],
                "scores": [row["score_chosen"], row["score_rejected"]],
            }
            for row in given
        ],
    }
    steps, vectors, two = (str(write_rows(tmp_path / f"{name}.jsonl", rows)) for name, rows in files.items())
    pairs = str(ran.path / "pairs.jsonl")
    true, likely = "scorer=glassbox", f"scorers.implicit.model={base}"
    more: dict[str, tuple[str, ...]] = {
        "curry": (listed,),
        "reward_augmented": (two,),
        "scdpo": (steps,),
        "rrm": (pairs,),
        "egida": (pairs, "select.few.count=5"),
        "active_dpo": (vectors, "measures.design.gamma=1", "select.design.count=5"),
        "clear_preferences": (pairs, f"scorer.model={base}", "scorer.column=ref", "scorer=logprob", "select.clear.share=0.4"),
        "sera": (str(answers), "scorer=logprob", f"scorer.model={base}", "generation.samples=4", "select.margin.share=0.5"),
        "beess": (
            str(answers), true, "scorer.column=rm", likely, f"scorers.implicit.reference={base}",
            "measures.dual.low=[-2,-2]", "measures.dual.high=[2,2]",
        ),
        "not_all_pairs": (
            str(answers), true, "scorer.column=rm", likely, f"scorers.implicit.reference={base}",
            "select.unsure.share=0.5",
        ),
        "sweet_spot": (str(answers), true, "generation.samples=4"),
        "codellm": (str(answers), true, "generation.samples=4"),
        "more_is_less": (str(answers), true, "generation.samples=4"),
    }  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (file, *settings) in more.items():
        made_of = run_here(("pairs", f"recipe={name}", "--answers", file, *settings), tmp_path, shared_cache)
        assert made_of.code == 0, (name, made_of.err)
        metrics = summary(made_of.path)["metrics"]
        assert metrics["prompts_with_pairs"] + sum(metrics["dropped"].values()) == metrics["prompts"], name
        found[name] = lines(made_of.path / "pairs.jsonl")
    assert {row["stage"] for row in found["curry"]} == {1, 2, 3}
    assert len(found["reward_augmented"]) == 2 * len(given)
    assert len(found["rrm"]) == (1 + 8 + 6) * len(given)
    assert len(found["egida"]) == len(found["active_dpo"]) == 5
    assert len(found["clear_preferences"]) == math.floor(0.4 * len(given) + 0.5)
    assert all(row["score_chosen"] == 1 and row["score_rejected"] == 0 for row in found["scdpo"])
    assert {*more} | {*FED, "simpo", "sprec"} == {path.stem for path in (CONF / "pairs").glob("*.yaml")}


def _answers(folder: Path, row: dict[str, Any]) -> list[str]:
    """All answers to the prompt of a pair that have a text."""
    keys = {one["instruction"]: one["prompt"] for one in lines(folder / "prompts.jsonl")}
    found = [
        one["output"] for one in lines(folder / "answers.jsonl") if one["prompt"] == keys[row["prompt"][0]["content"]]
    ]
    return [text for text in found if text.strip()]


ROWS = [
    {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1.0, 3.0, 2.0]},
    {"prompt": "q", "responses": ["d", "e", "f"], "scores": [1.0, 1.0, 1.0]},
]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pairs recipe=simpoo", "recipe=simpoo: no such recipe; did you mean 'simpo'?"),
        ("pairs generation.samples=1", "a pair needs two answers to a prompt"),
        ("pairs generation.temperature=0", "greedy answers to a prompt are all the same"),
        ("pairs recipe=rso scorer=glassbox generation.samples=4", "thin.rejection_keep=8: there are only 4 answers"),
        ("pairs pair.rejected=rank:6", "there are only 5 answers to a prompt"),
        ("pairs recipe=sera", "select.margin.share is required and has no default; type select.margin.share=VALUE"),
        ("pairs recipe=beess --answers ROWS measures.dual.low=[0,0]", "measures.dual.high is required"),
        ("score ROWS scorer=logprob", "scorer.model is missing"),
        ("pairs recipe=curry", "recipe=curry: is for answers or pairs made elsewhere; give --answers FILE"),
        ("pairs --answers nowhere.jsonl", "nowhere.jsonl: no such file or directory"),
        ("pairs --answers ROWS pair.rejected=rank:4", "there are only 3 answers to a prompt"),
        ("pairs --answers ROWS pair.rank_by=scor", "did you mean 'score'?"),
        ("pairs --answers ROWS scorer=glassbox", "not an instruction of the embedded world"),
        ("score ROWS", "which scorer? type scorer=NAME"),
        ("score scorer=length", "which answers?"),
        ("score ROWS scorer=rule", "which rule? type scorer.rule="),
        ("score ROWS scorer=rule scorer.rule=no-such-command", "no such command"),
        ("score ROWS scorer=reward_model", "type scorer.model=DIRECTORY or a hub name"),
        ("score ROWS scorer=implicit scorer.model=m", "scorer.reference is missing"),
        ("score ROWS scorer=length scorer.unit=tokens", "their token ids are not known"),
        ("score ROWS scorer=mean", "give scorer.of=[NAME,NAME]"),
        ("pairs --answers ROWS select=[{by:ches,max:0}]", "ches: under which model? type start.model=RUN or MODEL"),
        ("pairs --answers ROWS select=[{by:chess,max:0}]", "did you mean 'ches'?"),
    ],
)
def test_bad_input_is_refused_in_a_line(line: str, words: str, alphapo: Alphapo, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", ROWS)
    ran = alphapo(*line.replace("ROWS", str(file)).split())
    assert ran.code == 2, ran.err
    assert words in ran.fault


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("several", "", "has 3 labels; which one is the reward? type scorer.label=N (0 to 2)"),
        ("bare", "", "its tokenizer has no chat template, and 1 of 1 prompts are messages"),
        ("base", "", "is a language model (LlamaForCausalLM), not a sequence classifier"),
        ("several", "scorer.label=3", "has 3 label(s), numbered from 0"),
    ],
)
def test_what_is_no_reward_model_ends_with_one_line_before_it_loads(
    kind: str, more: str, words: str, alphapo: Alphapo, tmp_path: Path, shared_cache: Path
) -> None:
    """What is in its file cannot be loaded."""
    folder = next((shared_cache / "base").iterdir())
    if kind != "base":
        folder = classifier(tmp_path / "rm", labels=3 if kind == "several" else 1)
        (folder / "model.safetensors").write_bytes(b"no weights")
    if kind == "bare":
        (folder / "chat_template.jinja").unlink()
    rows = [{"prompt": [{"role": "user", "content": "p"}], "responses": ["a", "b"]}]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    for line in (("score", str(file)), ("pairs", "--answers", str(file))):
        ran = alphapo(*line, "scorer=reward_model", f"scorer.model={folder}", *more.split())
        assert ran.code == 2, ran.err
        assert words in ran.fault
        assert len(ran.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_rules_that_do_not_do_what_they_should(alphapo: Alphapo, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", ROWS)
    line = ("score", str(file), "scorer=rule")
    assert "wrote 1 lines for 6 answers" in alphapo(*line, "scorer.rule=echo 1").fault
    nan = "print(*['nan'] * 6, sep='\\n')"
    (tmp_path / "nan.py").write_text(nan)
    assert "line 1 is nan, not a number between" in alphapo(*line, "scorer.rule=python nan.py").fault
    slow = alphapo(*line, "scorer.rule=sleep 60", "scorer.timeout=0.2")
    assert slow.code == 1
    assert "took longer than 0.2 seconds for" in slow.err
    (tmp_path / "mine.py").write_text("def lengths(rows):\n    return [len(row['response']) for row in rows]\n")
    assert alphapo(*line, "scorer.rule=mine:lengths").code == 0
    # A YAML cannot make it run.
    own = tmp_path / "conf" / "scorer"
    own.mkdir(parents=True)
    (own / "theirs.yaml").write_text("name: rule\nrule: echo 1\n")
    (own / "code.yaml").write_text("name: reward_model\nmodel: m\ntrust_remote_code: true\n")
    for name, key in (("theirs", "rule"), ("code", "trust_remote_code")):
        refused = alphapo("score", str(file), f"scorer={name}", "--config-dir", str(tmp_path / "conf"))
        assert refused.code == 2
        assert f"scorer.{key}: code that runs is named on the command line, not in a YAML" in refused.fault


def test_no_pair_left_is_a_failure_with_its_reasons(alphapo: Alphapo, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", ROWS)
    ran = alphapo("pairs", "--answers", str(file), "pair.min_margin=5")
    assert ran.code == 1
    assert "no pair is left of 2 prompts" in ran.err
    assert "1 x a margin below 5" in ran.err
    assert "1 x tied: all scores are equal" in ran.err
    table = [line.strip("│ ").split("│") for line in ran.err.splitlines() if line.startswith("│")]
    assert {name.strip(): count.strip() for name, count in table} == {
        "prompts with pairs": "0", "pairs": "0", "without: a margin below 5": "1",
        "without: tied: all scores are equal": "1",
    }  # fmt: skip
    good = alphapo("pairs", "--answers", str(file))
    assert [(r["chosen"], r["rejected"], r["margin"]) for r in lines(good.path / "pairs.jsonl")] == [("b", "a", 2.0)]


@pytest.mark.slow
def test_five_hundred_and_twelve_prompts(real_cache: Path, tmp_path: Path) -> None:
    line = ("pairs", "recipe=simpo", "generation=transformers", "generation.samples=8", "generation.batch_size=256")
    ran = run_here(line, tmp_path, real_cache)
    assert ran.code == 0, ran.err
    check_pairs(ran.path, 512)
    before = hashes(ran.path)
    again = run_here(line, tmp_path, real_cache)
    assert "complete" in again.out
    assert hashes(ran.path) == before


@pytest.mark.slow
def test_kills_leave_the_same_bytes(fork_server: Server, shared_cache: Path, tmp_path: Path) -> None:
    """SIGKILL while answers are sampled, while they are scored, and while files are written: the same line, the same bytes."""
    cache = shutil.copytree(shared_cache, tmp_path / "cache")
    base = next((cache / "base").iterdir())
    line = (
        "pairs", "generation=transformers", "generation.samples=4", "data.limit=48", "generation.batch_size=8",
        "scorer=logprob", f"scorer.model={base}", "scorer.batch_size=8", "seed=3",
    )  # fmt: skip
    (tmp_path / "whole").mkdir()
    whole = run_here(line, tmp_path / "whole", cache)
    assert whole.code == 0, whole.err
    shutil.rmtree(cache / "scores")
    folder = tmp_path / "killed"
    folder.mkdir()

    def size(pattern: str, root: Path) -> int:
        return sum(path.stat().st_size for path in root.glob(pattern))

    moments: list[Callable[[], bool]] = [
        lambda: size("runs/generate-*/partial.jsonl", folder) > 2_000,
        lambda: size("runs/generate-*/partial.jsonl", folder) > 6_000,
        lambda: size("scores/*.jsonl", cache) > 2_000,
        lambda: size("scores/*.jsonl", cache) > 8_000,
        lambda: size("runs/pairs-*/dropped.jsonl", folder) >= 0 and any(folder.glob("runs/pairs-*/pairs.jsonl")),
    ]
    for moment in moments:
        with fork_server.popen(
            [entry_point()[0], *line], env=environment(cache), cwd=folder, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            while process.poll() is None and not moment():
                time.sleep(0.002)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
    ran = run_here(line, folder, cache)
    assert ran.code == 0, ran.err
    assert ran.path.name == whole.path.name
    for name in ("pairs.jsonl", "scored.jsonl", "dropped.jsonl", "pairs.png"):
        assert (ran.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    (ours,), (theirs,) = (place.glob("runs/generate-*") for place in (folder, tmp_path / "whole"))
    for name in ("answers.jsonl", "prompts.jsonl", "model_outputs.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"responses": ["a\ud800", "b"]}, "half a character"),
        ({"prompt": "x\udfff"}, "half a character"),
        ({"features": ["x", "y"]}, "features[0]"),
        ({"features": [1, 2]}, "features[0]"),
        ({"features": [[1.0], {"a": 1}]}, "features[1]"),
        ({"scores": [1e308, -1e308]}, "not a number between"),
        ({"responses": [], "scores": []}, "no scores"),
    ],
)
def test_odd_rows_of_answers_are_named(row: dict[str, Any], words: str, alphapo: Alphapo, tmp_path: Path) -> None:
    good = {"prompt": "say hi", "responses": ["a", "b"], "scores": [1, 2]}
    (tmp_path / "a.jsonl").write_text(json.dumps({**good, **row}) + "\n")
    ran = alphapo("pairs", "--answers", "a.jsonl", "--out", "p")
    assert ran.code in (1, 2)
    assert words in ran.fault
    assert "--debug" not in ran.err


@pytest.mark.parametrize("key", ["output", "ids", "number", "logprob"])
def test_a_row_that_is_no_answer_is_named(key: str, made: tuple[Path, Ran], alphapo: Alphapo, tmp_path: Path) -> None:
    (source,) = (made[0] / "runs").glob("generate-*")
    folder = shutil.copytree(source, tmp_path / "g")
    found = summary(folder)
    del found["checksum"], found["files"]  # somebody else's directory
    (folder / "summary.json").write_text(json.dumps(found))
    rows = lines(folder / "answers.jsonl")
    rows[1][key] = {"a": []}
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for line in (("pairs", "--answers", "g", "--out", "p"), ("score", "g", "scorer=length", "--out", "s")):
        ran = alphapo(*line)
        assert ran.code == 2
        assert "holds a row that is none of alphapo generate's" in ran.fault


def test_pairs_that_have_changed_are_not_trained_on(
    made: tuple[Path, Ran], alphapo: Alphapo, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    folder = shutil.copytree(made[1].path, tmp_path / "p")
    file = folder / "pairs.jsonl"
    file.write_text(file.read_text().replace("a", "e", 1))
    for path in ("p", "p/pairs.jsonl"):
        ran = alphapo("train", *tiny, "model=from_scratch", "data=jsonl", f"data.path={path}")
        assert ran.code == 2
        assert "pairs.jsonl: its content has changed" in ran.fault
    assert alphapo("pairs", "--answers", "p/pairs.jsonl", "--out", "q").code == 2


def test_what_a_rule_writes_need_not_be_text(alphapo: Alphapo, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "x", "responses": ["a"]}) + "\n")
    (tmp_path / "r.py").write_text("import sys; sys.stdout.buffer.write(b'\\xff\\n')")
    ran = alphapo("score", "a.jsonl", "scorer=rule", f"scorer.rule={sys.executable} r.py")
    assert ran.code == 2
    assert "line 1 is" in ran.fault
    (tmp_path / "r.py").write_text("import sys; sys.stderr.buffer.write(b'\\xff\\x1b[31m'); sys.exit(3)")
    ran = alphapo("score", "a.jsonl", "scorer=rule", f"scorer.rule={sys.executable} r.py")
    assert ran.code == 1
    assert "ended with code 3" in ran.fault
    assert "\x1b" not in ran.err


class TestScoresOfOneFile:
    """Scored twice by different scorers, and read as one."""

    @pytest.fixture
    def scored(self, alphapo: Alphapo, tmp_path: Path) -> Path:
        file = write_rows(
            tmp_path / "answers.jsonl",
            [{"prompt": "p", "responses": ["aa bb", "cccc"]}, {"prompt": "q", "responses": ["d", "eee e"]}],
        )
        assert alphapo("score", str(file), "scorer=length", "--out", "chars").code == 0
        assert (
            alphapo(
                "score", str(file), "scorer=length", "scorer.unit=words", "scorer.column=words", "--out", "words"
            ).code
            == 0
        )
        return tmp_path

    def test_their_mean_ranks(self, scored: Path, alphapo: Alphapo) -> None:
        both = ("--answers", "chars/scored.jsonl", "--answers", "words/scored.jsonl")
        ran = alphapo("pairs", *both, "scorer=mean", "scorer.of=[length,words]", "pair.rank_by=mean")
        assert ran.code == 0, ran.err
        found = {
            row["prompt"]: (row["chosen"], row["score_chosen"], row["score_rejected"])
            for row in lines(ran.path / "pairs.jsonl")
        }
        assert found == {"p": ("aa bb", (5 + 2) / 2, (4 + 1) / 2), "q": ("eee e", (5 + 2) / 2, (1 + 1) / 2)}

    def test_other_answers_are_refused(self, scored: Path, alphapo: Alphapo) -> None:
        whole = (scored / "words" / "scored.jsonl").read_text()
        (scored / "part.jsonl").write_text(whole.splitlines(keepends=True)[0])
        both = ("--answers", "chars/scored.jsonl", "--answers", "part.jsonl")
        ran = alphapo("pairs", *both, "scorer=mean", "scorer.of=[length,words]")
        assert ran.code == 2
        assert "have scores of 2 answers in common, but 2 and 0 more" in ran.fault
        assert "scorer=mean" in ran.fault

    def test_given_pairs_stay_given(self, alphapo: Alphapo, tmp_path: Path) -> None:
        file = write_rows(tmp_path / "given.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "bbb"}])
        scored = alphapo("score", str(file), "scorer=length")
        assert scored.code == 0, scored.err
        ran = alphapo(
            "pairs", "--answers", str(scored.path / "scored.jsonl"), "pair.chosen=given", "pair.rejected=given"
        )
        assert ran.code == 0, ran.err
        (row,) = lines(ran.path / "pairs.jsonl")
        assert (row["chosen"], row["rejected"], row["score_chosen"], row["score_rejected"]) == ("a", "bbb", 1.0, 3.0)
        (kept,) = lines(scored.path / "scored.jsonl")
        assert kept["given"] == ["chosen", "rejected"]
        write_rows(tmp_path / "wrong.jsonl", [kept | {"given": ["chosen", "chosen"]}])
        assert "'given' must be a list" in alphapo("pairs", "--answers", "wrong.jsonl").fault


def test_a_recipe_that_needs_given_answers_says_how_to_give_them(alphapo: Alphapo) -> None:
    assert "recipe=sprec: pairs the model's own answer with one that is given; name these by --answers FILE" in (
        alphapo("pairs", "recipe=sprec").fault
    )
