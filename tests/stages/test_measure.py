"""`alphapo measure`: the probe on a run, a saved model and an adapter, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alphapo_cli.probe.score_names import NAMES
from tests import tiny
from tests.conftest import BARE, TINY, strict_rows

# Keys of a run that are not of its weights, start and pairs alone: what it sampled.
SAMPLED = ("glassbox/", "samples/")


def assert_equals_the_last_row(run, measured, tolerance):
    """Every key of the run's last probe row that measuring gives."""
    last = json.loads((run.path / "summary.json").read_text())["metrics"]
    ours = json.loads((measured.path / "metrics.json").read_text())
    for key, value in last.items():
        if key.startswith(SAMPLED):
            continue
        if key in ours["unknown"]:
            assert ours["metrics"][key] is None
        else:
            assert ours["metrics"][key] == (
                None if value is None else pytest.approx(value, rel=tolerance, abs=tolerance)
            ), key


def test_a_run_is_measured_as_its_last_probe_was(alphapo, trained, tmp_path):
    ran = alphapo("measure", str(trained.path), "--tokens", "--json", "-")
    assert ran.code == 0, ran.err
    assert ran.path.parent.name == "runs"
    # To float32 round-off: the saved weights are the trained ones.
    assert_equals_the_last_row(trained, ran, 1e-5)
    result = json.loads(ran.out.splitlines()[-1])
    assert {"directory", "model", "start", "pairs", "metrics"} <= result.keys()
    assert (result["directory"], result["pairs"]) == (str(ran.path), 8)

    rows, probed = strict_rows(ran.path / "measured.jsonl"), strict_rows(trained.path / "probe.jsonl")[-8:]
    for ours, theirs in zip(rows, probed, strict=True):
        assert theirs.keys() <= ours.keys()
        for key, value in theirs.items():
            assert ours[key] == (None if value is None else pytest.approx(value, rel=1e-5, abs=1e-5)), key
        assert set(NAMES) <= ours.keys()
        ways = [ours[f"displacement/{side}"] < 0 for side in ("chosen", "rejected")]
        assert ours["quadrant"] == "_".join("down" if way else "up" for way in ways)

    for row in strict_rows(ran.path / "tokens.jsonl"):
        pair = rows[row["pair"]]
        assert math.fsum(row["now"]) == pytest.approx(pair[f"logps/{row['side']}_sum"], rel=1e-5)
        moved = math.fsum(row["now"]) - math.fsum(row["before"])
        assert moved / len(row["ids"]) == pytest.approx(pair[f"displacement/{row['side']}"], abs=1e-5)
        # AlphaPO's score is a mean, so a token has an n-th of its answer's gradient.
        expected = pair[f"gradient_weight/{row['side']}"] / len(row["ids"])
        assert row["gradient_weight"] == pytest.approx(expected, rel=1e-5)
    mass = result["metrics"]
    parts = (mass[f"mass/falls/to_{what}"] for what in ("rejected", "end", "other"))
    assert mass["mass/falls/moved"] == pytest.approx(math.fsum(parts), abs=1e-9)
    assert mass["mass/falls/moved"] > 0

    again = alphapo("measure", str(trained.path), "--tokens", "--json", "-")
    assert again.out.splitlines()[:2] == [str(ran.path), "complete"]
    assert json.loads(again.out.splitlines()[-1]) == result
    assert (ran.path / "tokens.html").is_file()

    (ran.path / "metrics.json").rename(ran.path / "kept.json")  # as a kill before the last file leaves it
    anew = alphapo("measure", str(trained.path), "--tokens", "--json", "-")
    assert json.loads(anew.out.splitlines()[-1])["metrics"] == result["metrics"]
    assert alphapo("verify", str(ran.path)).code == 0
    (ran.path / "measured.jsonl").write_text("")
    assert alphapo("verify", str(ran.path)).code == 1
    damaged = alphapo("measure", str(trained.path))
    assert "the model is measured again" in damaged.err
    assert len(strict_rows(ran.path / "measured.jsonl")) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "tolerance"),
    [
        (("objective=dpo",), 1e-5),
        (("objective=dpo", "model.path=START", "model.lora.r=2", "data=glassbox", "trainer=glassbox", "probe=glassbox"), 1e-4),
        (("objective=tr_dpo", "objective.reference_every=2"), 1e-5),
        (("objective/schedule=linear", "objective.schedule.start=-0.5", "objective.schedule.end=1"), 1e-5),
        (("layout=padded",), 1e-5),
        # The least KL is that of step 2 of 4, where alpha was another than at the end.
        (("objective/schedule=linear", "objective.schedule.start=-0.5", "objective.schedule.end=1",
          "trainer.load_best_model_at_end=true", "trainer.metric_for_best_model=kl/reference",
          "trainer.greater_is_better=false"), 1e-5),
    ],
    ids=["reference", "adapter", "moved reference", "schedule", "padded", "best of a schedule"],
)  # fmt: skip
def test_runs_of_every_kind(line, tolerance, alphapo, shared_cache):
    start = next((shared_cache / "base").iterdir())
    run = alphapo("train", *TINY, *BARE, "probe.samples=0", *(text.replace("START", str(start)) for text in line))
    assert run.code == 0, run.err
    measured = alphapo("measure", str(run.path))
    assert measured.code == 0, measured.err
    assert_equals_the_last_row(run, measured, tolerance)
    unknown = json.loads((measured.path / "metrics.json").read_text())["unknown"]
    assert ("rewards/chosen" in unknown) == ("objective=tr_dpo" in line)


@pytest.fixture
def saved(tmp_path):
    """A small model with its pairs, and another that differs from it in every weight, as plain transformers saves it."""
    start = tiny.saved_start(tmp_path / "start", 30, 6)
    lm = AutoModelForCausalLM.from_pretrained(start / "model")
    tiny.perturbed(lm, 3, 0.05).save_pretrained(tmp_path / "moved")
    AutoTokenizer.from_pretrained(start / "model").save_pretrained(tmp_path / "moved")
    return start, tmp_path / "moved"


def plain_logps(folder, prompt, answer):
    """Log-prob of an answer's ids by the model's own forward pass, in float64."""
    lm = AutoModelForCausalLM.from_pretrained(folder).double()
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad(), tiny.Wide():
        table = lm(input_ids=ids).logits[0].log_softmax(-1)
    places = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
    return float(table[places, ids[0, len(prompt) :]].sum())


@pytest.mark.slow
def test_models_of_others_against_any_start(saved, alphapo):
    start, moved = saved
    data = ("data=jsonl", f"data.path={start / 'eval.jsonl'}")
    ran = alphapo("measure", str(moved), "--start", str(start / "model"), "objective=simpo", *data, "--tokens")
    assert ran.code == 0, ran.err
    rows = strict_rows(ran.path / "measured.jsonl")
    assert len(rows) == 6  # all pairs of the file
    assert sorted(row["row"] for row in rows) == [1, 2, 3, 4, 5, 6]
    tokenizer = AutoTokenizer.from_pretrained(moved)
    for row in strict_rows(ran.path / "tokens.jsonl")[:4]:
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        pair = rows[row["pair"]]
        before, now = (plain_logps(folder, prompt, row["ids"]) for folder in (start / "model", moved))
        assert pair[f"logps/{row['side']}_sum"] == pytest.approx(now, rel=1e-4)
        assert pair[f"displacement/{row['side']}"] == pytest.approx((now - before) / len(row["ids"]), abs=1e-4)
        assert "".join(row["tokens"]) == tokenizer.decode(row["ids"])

    alone = alphapo("measure", str(start / "model"), *data)
    assert json.loads((alone.path / "metrics.json").read_text())["metrics"]["displacement/chosen"] == 0
    both = alphapo("measure", str(moved), str(start / "model"), "--start", str(start / "model"), *data, "--json", "-")
    models = json.loads(both.out.splitlines()[-1])["models"]
    assert [m["metrics"]["displacement/chosen"] == 0 for m in models] == [False, True]
    assert both.out.splitlines()[:2] == [m["directory"] for m in models]


@pytest.mark.slow
def test_an_adapter_is_compared_with_its_base(saved, alphapo, tmp_path):
    from peft import LoraConfig, get_peft_model

    start, _ = saved
    lm = AutoModelForCausalLM.from_pretrained(start / "model")
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(lm, config).save_pretrained(tmp_path / "adapter")
    ran = alphapo(
        "measure", str(tmp_path / "adapter"), "data=jsonl", f"data.path={start / 'eval.jsonl'}", "--json", "-"
    )
    assert ran.code == 0, ran.err
    result = json.loads(ran.out.splitlines()[-1])
    assert result["start"] == str(start / "model")
    assert result["metrics"]["displacement/chosen"] != 0


@pytest.mark.slow
def test_the_pairs_that_are_measured(saved, alphapo):
    start, moved = saved
    line = ("measure", str(moved), "--start", str(start / "model"), "data=jsonl", f"data.path={start / 'train.jsonl'}")
    counts = {}
    for which in ("probe", "train", "all"):
        ran = alphapo(*line, "--pairs", which, "probe.pairs=5")
        rows = strict_rows(ran.path / "measured.jsonl")
        counts[which] = len(rows)
        assert {row["set"] for row in rows} == ({"probe", "train"} if which == "all" else {which})
    assert counts == {"probe": 5, "train": 25, "all": 30}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("nowhere/at/all",), "MODEL=nowhere/at/all: no such directory"),
        (("MOVED",), "on which data? give data=... too"),
        (("MOVED", "data=jsonl", "data.path=EVAL", "--pairs", "some"), "--pairs some: no such choice"),
        (("MOVED", "data=jsonl", "data.path=EVAL", "model.path=MOVED"), "what it is compared with --start"),
        (("MOVED", "data=jsonl", "data.path=EVAL", "objective.bta=1"), "did you mean 'objective.beta'?"),
        (("MOVED", "MOVED", "data=jsonl", "data.path=EVAL", "--out", "x"), "one directory for 2 models"),
        (("MOVED", "--start", "OTHER", "data=jsonl", "data.path=EVAL"), "its tokenizer differs from the start's"),
        (("MOVED", "data=jsonl", "data.path=EVAL", "objective=odpo"), "no column 'score_chosen'"),
    ],
)
def test_what_is_refused_in_one_line(line, said, saved, alphapo, scratch, tmp_path, monkeypatch):
    from alphapo_cli.modeling import loading

    def read(*_):
        raise AssertionError("weights are read")

    monkeypatch.setattr(loading, "load_model", read)
    start, moved = saved
    names = {"MOVED": str(moved), "EVAL": str(start / "eval.jsonl"), "OTHER": str(scratch.path)}
    words = []
    for word in line:
        key, equals, value = word.rpartition("=")
        words.append(f"{key}{equals}{names.get(value, value)}")
    ran = alphapo("measure", *words)
    assert ran.code == 2, (ran.out, ran.err)
    assert said in ran.fault
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_every_metric_that_it_writes_is_explained(alphapo, trained):
    from alphapo_cli.tracking.metrics import explain

    ran = alphapo("measure", str(trained.path), "--json", "-")
    for key in json.loads(ran.out.splitlines()[-1])["metrics"]:
        assert explain(key)
    assert np.isfinite(json.loads(ran.out.splitlines()[-1])["pairs"])


def test_settings_that_have_changed_are_not_believed(alphapo, trained, tmp_path):
    run = shutil.copytree(trained.path, tmp_path / "x")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("  beta: 2.5", "  beta: 2.4"))
    for command in (("measure", "x"), ("export", "x", "--to", "out")):
        ran = alphapo(*command)
        assert ran.code == 2
        assert "config.yaml is damaged" in ran.fault


def test_somebody_elses_run_names_no_file_of_settings(alphapo, trained, tmp_path):
    run = shutil.copytree(trained.path, tmp_path / "x")
    (tmp_path / "evil.yaml").write_text("name: ${oc.env:OPENAI_API_KEY}\n")
    config = run / "config.yaml"
    config.write_text(
        config.read_text().replace("  name: alphapo\n", f"  name: '../../../../../../..{tmp_path}/evil'\n")
    )
    (run / "manifest.json").unlink()
    ran = alphapo("measure", "x", env={"OPENAI_API_KEY": "sk-nobody-may-see-this"})
    assert ran.code == 2
    assert "none of the shipped ones" in ran.fault
    assert "sk-nobody" not in ran.out + ran.err


def test_measuring_leaves_what_a_training_has_cached(alphapo, tiny, shared_cache, tmp_path):
    cache = shutil.copytree(shared_cache, tmp_path / "cache")
    line = ("train", "objective=dpo", *tiny, "trainer.max_steps=1")
    trained = alphapo(*line, cache=cache)
    assert trained.code == 0, trained.err
    before = {file: file.read_bytes() for file in (cache / "reference").iterdir()}
    measured = alphapo("measure", str(trained.path), cache=cache)
    assert measured.code == 0, measured.err
    assert "damaged" not in measured.err
    assert before == {file: file.read_bytes() for file in before}
