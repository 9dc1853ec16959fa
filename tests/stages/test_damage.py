"""Every kind of stored file, damaged at random: what comes out is what would have, or the damage is named.

A kind is the files of one role in one situation, and the line that reads them. A damaged file counts as healed where the
line ends with the undisturbed result, as named where stdout and stderr say which file or directory is wrong, and as
silent otherwise. Deleting what can be made again is no damage: then the result must be the same.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BARE, TINY, Ran, run_here
from tests.evaluation.eval_world import outputs, write
from tests.evaluation.judge_server import Answer, judged, serve
from tests.stages.test_integrity import DAMAGE
from tests.stages.test_resume import killed_at, record, weights

DPO = (*TINY, *BARE, "objective=dpo", "trainer.save_steps=1", "trainer.save_total_limit=2", "probe.every=1")
ANSWERS = ("generation.backend=transformers", "data.limit=4", "generation.max_new_tokens=4")
SWEEP = ("objective.shape.alpha=0,1", *TINY, *BARE, "trainer.max_steps=1", "launcher.workers=0")
Result = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """The files that `glob` finds in a situation, the line that reads them, and what it must make of them."""

    situation: str
    glob: str
    line: tuple[str, ...]
    result: Result


def trained(place: Path) -> Any:
    run = place / "runs" / "x"
    summary = json.loads((run / "summary.json").read_bytes())
    tensors = {name: tensor.numpy().tobytes() for name, tensor in weights(run).items()}
    return record(run), tensors, summary["state"], summary["metrics"]


def answers(place: Path) -> Any:
    return (place / "out" / "model_outputs.json").read_bytes()


def evaluated(place: Path) -> Any:
    found = json.loads((place / "out" / "results.json").read_bytes())
    rows = json.loads((place / "out" / "annotations.json").read_bytes())
    return found["win_rate"], found["n_total"], [(row["instruction"], row["preference"]) for row in rows]


def swept(place: Path) -> Any:
    summary = json.loads((place / "s" / "summary.json").read_bytes())
    return [(c["id"], c["state"], c["metrics"]) for c in summary["cells"]], summary["best"]


def more_answers(place: Path) -> Any:
    return [(place / "out" / f"model_outputs{n}.json").read_bytes() for n in ("", "-1", "-2")]


def scores(place: Path) -> Any:
    return (place / "sc" / "scores.jsonl").read_bytes(), (place / "sc" / "scored.jsonl").read_bytes()


def paired(place: Path) -> Any:
    return (place / "p" / "pairs.jsonl").read_bytes()


def measured(place: Path) -> Any:
    found = json.loads((place / "m" / "metrics.json").read_bytes())
    return found["metrics"], found["correlations"], (place / "m" / "measured.jsonl").read_bytes()


TRAIN = ("train", *DPO, "run.name=x")
GENERATE = ("generate", "runs/x", *ANSWERS, "--out", "out")
SAMPLE = ("generate", "generation.backend=transformers", "data.limit=4", "generation.max_new_tokens=12", "--out", "out")
RULE = "import json, sys; [print(len(json.loads(line)['response'])) for line in sys.stdin]"
SCORE = ("score", "out", "scorer=rule", f"scorer.rule={sys.executable} rule.py", "--out", "sc")
PAIR = ("pairs", "--out", "p", "--answers")
MEASURE = ("measure", "runs/x", "--out", "m")
KINDS = {
    "checkpoint": Kind("interrupted", "runs/x/checkpoints/*/*", TRAIN, trained),
    "record of metrics": Kind("interrupted", "runs/x/*.jsonl", TRAIN, trained),
    "sampled answers": Kind("interrupted", "runs/x/samples/*.json", TRAIN, trained),
    "settings of an interrupted run": Kind("interrupted", "runs/x/config.yaml", TRAIN, trained),
    "manifest of an interrupted run": Kind("interrupted", "runs/x/manifest.json", TRAIN, trained),
    "summary of an interrupted run": Kind("interrupted", "runs/x/summary.json", TRAIN, trained),
    "prompts of an interrupted run": Kind("interrupted", "runs/x/prompts.json", TRAIN, trained),
    "tokens": Kind("cached", "cache/tokens/*/*", TRAIN, trained),
    "reference log-probs": Kind("cached", "cache/reference/*", TRAIN, trained),
    "base model": Kind("cached", "cache/base/*/*", TRAIN, trained),
    "model": Kind("complete", "runs/x/model/*", GENERATE, answers),
    "prompts": Kind("complete", "runs/x/prompts.json", GENERATE, answers),
    "settings": Kind("complete", "runs/x/config.yaml", GENERATE, answers),
    "manifest": Kind("complete", "runs/x/manifest.json", GENERATE, answers),
    "summary": Kind("complete", "runs/x/summary.json", TRAIN, trained),
    "journal of answers": Kind("generating", "out/partial.jsonl", GENERATE, answers),
    "manifest of answers": Kind("generating", "out/manifest.json", GENERATE, answers),
    "answers that are added to": Kind("scored", "out/answers.jsonl", (*SAMPLE, "generation.samples=3"), more_answers),
    "answers that are paired": Kind("scored", "out/*.jsonl", (*PAIR, "out", "scorer=length"), paired),
    "manifest of scores": Kind("scored", "sc/manifest.json", SCORE, scores),
    "scores": Kind("scored", "sc/s*", SCORE, scores),
    "scores in the cache": Kind("scored", "cache/scores/*", (*SCORE, "--replace"), scores),
    "scores that are paired": Kind("scored", "sc/scored.jsonl", (*PAIR, "sc/scored.jsonl"), paired),
    "measurement": Kind("measured", "m/*.json*", MEASURE, measured),
    "settings of a measured run": Kind("measured", "runs/x/config.yaml", (*MEASURE, "--replace"), measured),
    "journal of judgements": Kind("judging", "out/judgements.jsonl", ("eval",), evaluated),
    "manifest of judgements": Kind("judging", "out/manifest.json", ("eval",), evaluated),
    "results": Kind("judged", "out/results.json", ("eval",), evaluated),
    "annotations": Kind("judged", "out/annotations.json", ("eval",), evaluated),
    "sweep": Kind("swept", "s/*.json", ("sweep", *SWEEP, "--out", "s"), swept),
    "summaries of cells": Kind("swept", "s/cells/*/summary.json", ("sweep", *SWEEP, "--out", "s"), swept),
}


def judge_line(place: Path, url: str) -> tuple[str, ...]:
    return (
        "eval", str(place / "outputs.json"), "--reference", str(place / "reference.json"), "--judge", "openai",
        f"judge.base_url={url}", "judge.model=a-judge", "judge.wait=0.01", "judge.timeout=5", "statistics.bootstrap=50",
        "--out", "out",
    )  # fmt: skip


def likes(number: int, body: dict[str, Any]) -> Answer:
    """A judge whose answer depends on the question alone."""
    liking = random.Random(json.dumps(body["messages"])).random()
    return judged(-0.1 - liking, -0.9)


def good(ran: Ran) -> None:
    assert ran.code == 0, ran.err


@pytest.fixture(scope="module", autouse=True)
def _small_base() -> Iterator[None]:
    """A base model that is made again is the one in the shared cache: a tenth of the demonstrations, the same name."""
    from alphapo_cli.stages.training import glassbox_base

    key = glassbox_base.base_key()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glassbox_base, "DEMONSTRATIONS", glassbox_base.DEMONSTRATIONS // 10)
        patch.setattr(glassbox_base, "base_key", lambda: key)
        yield


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "a-key")
        patch.setenv("NO_PROXY", "127.0.0.1")
        with serve(likes) as server:
            yield server.url


@pytest.fixture(scope="module")
def situations(
    tmp_path_factory: pytest.TempPathFactory, shared_cache: Path, url: str
) -> Callable[[str], tuple[Path, Any]]:
    """Name of a situation -> (a directory to copy, what each result function finds in the undisturbed end)."""
    made: dict[str, tuple[Path, Any]] = {}

    def begin(name: str) -> Path:
        place = tmp_path_factory.mktemp(name)
        shutil.copytree(shared_cache, place / "cache")
        return place

    def make(name: str) -> tuple[Path, Any]:
        place = begin(name)

        def run(*line: str) -> Ran:
            return run_here(line, place, place / "cache")

        if name in ("interrupted", "cached"):
            whole = begin("whole")
            good(run_here(TRAIN, whole, whole / "cache"))
            if name == "interrupted":
                with killed_at(3):
                    run(*TRAIN)
            else:
                good(run(*TRAIN))
                shutil.rmtree(place / "runs")
            return place, trained(whole)
        if name in ("complete", "generating"):
            good(run(*TRAIN))
            whole = Path(shutil.copytree(place, place.with_name(f"{place.name}-whole")))
            good(run_here(GENERATE, whole, whole / "cache"))
            if name == "generating":
                from alphapo_cli.stages.directories.generation import GenerateDirectory

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(GenerateDirectory, "outputs", lambda *_: place)  # a directory: killed before writing
                    assert run(*GENERATE).code != 0
                assert (place / "out" / "partial.jsonl").is_file()
            return place, {answers: answers(whole), trained: trained(whole)}
        if name == "scored":
            (place / "rule.py").write_text(RULE)
            good(run(*SAMPLE, "generation.samples=2"))
            good(run(*SCORE))
            ends: dict[Result, Any] = {}
            for result, line in {
                more_answers: (*SAMPLE, "generation.samples=3"), scores: SCORE,
                paired: (*PAIR, "out", "scorer=length"),
            }.items():  # fmt: skip
                whole = Path(shutil.copytree(place, place.with_name(f"{place.name}-{result.__name__}")))
                good(run_here(line, whole, whole / "cache"))
                ends[result] = result(whole)
            return place, ends
        if name == "measured":
            good(run(*TRAIN))
            good(run(*MEASURE))
            return place, measured(place)
        if name in ("judging", "judged"):
            write(place / "outputs.json", outputs(12, "tuned"))
            write(place / "reference.json", outputs(12, "base"))
            good(run(*judge_line(place, url)))
            end = evaluated(place)
            if name == "judging":
                (place / "out" / "results.json").unlink()
            return place, end
        good(run("sweep", *SWEEP, "--out", "s"))
        return place, swept(place)

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            made[name] = make(name)
        return made[name]

    return get


def outcome(kind: Kind, damage: str, seed: int, situation: tuple[Path, Any], place: Path, url: str) -> str:
    """What became of one damage: same, named, or what went wrong in silence."""
    shutil.copytree(situation[0], place)
    if kind.line == ("eval",):  # the same files at the same place: paths are told in the results
        line = judge_line(situation[0], url)
    else:
        line = kind.line
    rng = random.Random(f"{kind.glob} {damage} {seed}")
    files = sorted(f for f in place.glob(kind.glob) if f.is_file())
    file = rng.choice(files)
    if file.stat().st_size == 0:
        return "same"
    DAMAGE[damage](file, rng)
    ran = run_here(line, place, place / "cache")
    what = f"{damage} of {file.relative_to(place)} ({seed})"
    if ran.code not in (0, 1, 2) or "Traceback" in ran.err or "weights_only" in ran.err or "--debug" in ran.err:
        return f"{what}: a bad end: {ran.code} {ran.err[-300:]}"
    if ran.code:
        last = ran.err.splitlines()[-1]
        named = any(part in last for part in (file.name, file.parent.name, file.parent.parent.name))
        return "named" if named else f"{what}: unnamed: {last}"
    expected = situation[1][kind.result] if isinstance(situation[1], dict) else situation[1]
    return "same" if kind.result(place) == expected else f"{what}: silent: {ran.err[-300:]}"


def count(name: str, seeds: range, situations: Any, tmp_path: Path, url: str) -> Counter[str]:
    kind, found = KINDS[name], Counter[str]()
    for damage in DAMAGE:
        for seed in seeds:
            place = tmp_path / f"{damage}-{seed}".replace(" ", "-")
            found[outcome(kind, damage, seed, situations(kind.situation), place, url)] += 1
            shutil.rmtree(place)
    return found


# A tenth in the slow tests, the whole in the night; the seeds are fixed.
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "times"),
    [pytest.param(n, 2, marks=pytest.mark.slow) for n in KINDS]
    + [pytest.param(n, 20, marks=pytest.mark.nightly) for n in KINDS],
)
def test_no_damage_is_silent(name, times, situations, tmp_path, url, record_property):
    found = count(name, range(times), situations, tmp_path, url)
    print(name, dict(found))
    assert set(found) <= {"same", "named"}, found
    assert sum(found.values()) == 3 * times
