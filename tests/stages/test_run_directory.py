"""What `alphapo train` leaves behind, and what the same line does a second time."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from alphapo_cli.errors import UsageError
from alphapo_cli.tracking import metrics
from tests import wandb_file

PROBED = (0, 2, 4)


def probe_keys():
    """Every key that a probe reading writes, by the catalogue."""
    # With quantiles of some. DPO's optimum is known to objectives with a reference, of pairs with win probabilities.
    by_request = ("samples/refusals", "foretold/", "ranking/idealised", *metrics.MEASURE)
    every = metrics.keys()
    return {k for k in every if not k.startswith(("train/", "eval/", *by_request))}


class TestFiles:
    def test_every_file_of_a_run_is_there_and_nothing_else(self, trained):
        names = {p.name for p in trained.path.iterdir()}
        assert names == {
            "config.yaml", "manifest.json", "metrics.jsonl", "probe.jsonl", "prompts.json", "samples", "curves.png",
            "reward_shape.json", "reward_shape.png", "report.html", "model", "summary.json", "wandb", ".claim",
        }  # fmt: skip
        for picture in ("curves.png", "reward_shape.png"):
            assert (trained.path / picture).read_bytes().startswith(b"\x89PNG")

    def test_the_first_line_on_stdout_is_the_absolute_directory(self, trained):
        assert trained.path.is_absolute()
        assert trained.path.parent.name == "runs"
        assert re.fullmatch(r"alphapo-[0-9a-f]{8}", trained.path.name)
        assert trained.out == f"{trained.path}\n"

    def test_summary(self, trained):
        summary = json.loads((trained.path / "summary.json").read_text())
        assert list(summary) == ["state", "reason", "step", "metrics", "cost", "data", "verdict", "files", "checksum"]
        assert (summary["state"], summary["reason"], summary["step"]) == ("complete", None, 4)
        assert set(summary["metrics"]) == probe_keys()
        assert all(v is None or isinstance(v, int | float) for v in summary["metrics"].values())
        assert summary["cost"]["seconds"] > 0

    def test_the_result_object_is_the_summary_with_the_path(self, trained):
        result = json.loads((trained.path.parent.parent / "result.json").read_text())
        summary = json.loads((trained.path / "summary.json").read_text())
        assert result == {"path": str(trained.path), **summary}

    def test_config_is_the_whole_configuration(self, trained):
        config = yaml.safe_load((trained.path / "config.yaml").read_text())
        assert config["objective"]["shape"] == {"name": "power", "alpha": 0.25, "convention": "paper"}
        assert (config["trainer"]["max_steps"], config["trainer"]["adam_beta1"], config["seed"]) == (4, 0.9, 0)

    def test_manifest(self, trained):
        manifest = json.loads((trained.path / "manifest.json").read_text())
        assert manifest["command"][:2] == ["alphapo", "train"]
        assert "probe.samples=8" in manifest["command"]
        assert manifest["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
        assert {"alphapo", "python", "torch", "transformers"} <= set(manifest["versions"])
        assert manifest["threads"] == 1
        assert manifest["hardware"]["cores"] >= 1
        assert manifest["data"]["train_pairs"] == 64
        for key in (manifest["data"]["key"], manifest["tokenizer"], manifest["template"]):
            assert re.fullmatch(r"[0-9a-f]{64}", key)

    def test_samples_are_in_the_format_of_alpacaeval(self, trained):
        files = {p.name for p in (trained.path / "samples").iterdir()}
        assert files == {"reference.json", *(f"step-{n}.json" for n in PROBED)}
        for file in files:
            answers = json.loads((trained.path / "samples" / file).read_text())
            assert len(answers) == 8
            assert all({"instruction", "output", "generator"} <= set(a) for a in answers)
        asked = [
            [a["instruction"] for a in json.loads((trained.path / "samples" / f).read_text())] for f in sorted(files)
        ]
        assert all(a == asked[0] for a in asked)


class TestMetrics:
    def test_steps_increase_and_no_value_is_nan(self, trained, rows):
        steps = [row["step"] for row in rows(trained.path / "metrics.jsonl")]
        assert steps == [0, 1, 2, 3, 4]

    def test_every_probe_key_of_the_catalogue_at_every_probe_step(self, trained, rows):
        for row in rows(trained.path / "metrics.jsonl"):
            probed = {k for k in row if k != "step" and not k.startswith("train/")}
            assert probed == (probe_keys() if row["step"] in PROBED else set())

    def test_every_key_is_explained(self, trained, rows):
        for row in rows(trained.path / "metrics.jsonl"):
            for key in row.keys() - {"step"}:
                assert metrics.explain(key)

    def test_training_values_at_every_step_but_the_start(self, trained, rows):
        for row in rows(trained.path / "metrics.jsonl")[1:]:
            assert {"train/loss", "train/grad_norm", "train/learning_rate", "train/rewards/margins"} <= set(row)
            assert row["train/epoch"] == pytest.approx(row["step"] / 8)

    def test_displacement_starts_at_zero_and_then_moves(self, trained, rows):
        first, *_, last = rows(trained.path / "metrics.jsonl")
        for key, value in first.items():
            if key.startswith("displacement/") and "quadrant" not in key and "margin_from" not in key:
                assert value == (None if key == "displacement/rejected_to_chosen" else 0), key
        assert last["displacement/chosen"] != 0
        assert last["kl/reference"] > 0

    def test_means_are_those_of_the_pairs(self, trained, rows):
        """metrics.jsonl against probe.jsonl, by plain arithmetic."""
        pairs = rows(trained.path / "probe.jsonl")
        for row in rows(trained.path / "metrics.jsonl"):
            mine = [p for p in pairs if p["step"] == row["step"]]
            if row["step"] not in PROBED:
                assert mine == []
                continue
            assert len(mine) == 8

            def mean(values, mine=mine):
                return sum(map(values, mine)) / len(mine)

            for key in ("displacement/chosen", "displacement/rejected", "rewards/chosen", "gradient_weight/rejected"):
                assert row[key] == pytest.approx(mean(lambda p, k=key: p[k]), rel=1e-12, abs=1e-15)
            assert row["logps/chosen_sum"] == pytest.approx(mean(lambda p: p["logps/chosen_sum"]), rel=1e-12)
            assert row["displacement/share_chosen_down"] == mean(lambda p: p["displacement/chosen"] < 0)
            assert row["rewards/accuracies"] == mean(lambda p: p["rewards/chosen"] > p["rewards/rejected"])
            quadrants = [v for k, v in row.items() if k.startswith("displacement/quadrant/")]
            assert sum(quadrants) == pytest.approx(1)

    def test_rewards_are_alphapos(self, trained, rows):
        """beta (1 - e^{-alpha a}) / alpha of the mean log-prob a, in plain floats."""
        for pair in rows(trained.path / "probe.jsonl"):
            a = pair["logps/chosen_sum"] / pair["tokens/chosen"]
            assert pair["rewards/chosen"] == pytest.approx(2.5 * (1 - math.exp(-0.25 * a)) / 0.25, rel=1e-6)

    def test_the_summary_is_the_last_probe(self, trained, rows):
        summary = json.loads((trained.path / "summary.json").read_text())
        last = rows(trained.path / "metrics.jsonl")[-1]
        assert summary["metrics"] == {k: v for k, v in last.items() if k in probe_keys()}


class TestRewardShape:
    def test_it_is_what_the_probe_measured(self, trained, rows):
        """alpha = 0.25, by plain floats, at the last step of the probe."""
        found = json.loads((trained.path / "reward_shape.json").read_text())
        last = [r for r in rows(trained.path / "probe.jsonl") if r["step"] == PROBED[-1]]
        assert found["steps"] == list(PROBED)
        for side in ("chosen", "rejected"):
            scores = [r[f"logps/{side}_sum"] / r[f"tokens/{side}"] for r in last]
            assert found["end"]["scores"][side] == pytest.approx(scores, rel=1e-6)
            assert found["means"][side][-1] == pytest.approx(sum(scores) / len(scores), rel=1e-6)
            assert found["end"]["weights"][side] == pytest.approx(
                [r[f"gradient_weight/{side}"] for r in last], rel=1e-6
            )
        for s, slope in zip(found["curve"]["score"], found["curve"]["slope"], strict=True):
            assert slope == pytest.approx(math.exp(-0.25 * s), rel=1e-6)

    def test_the_report_makes_it_again(self, trained, alphapo, tmp_path):
        run = shutil.copytree(trained.path, tmp_path / "run")
        files = ("reward_shape.json", "reward_shape.png")
        for file in files:
            (run / file).unlink()
        assert alphapo("report", str(run)).code == 0
        for file in files:
            assert (run / file).read_bytes() == (trained.path / file).read_bytes(), file

    def test_wandb_has_the_picture(self, trained):
        (file,) = wandb_file.live_files(trained.path)
        logged = {key for row in wandb_file.read(file).history for key in row}
        assert {"curves", "reward_shape"} <= logged


def test_wandb_holds_every_displacement_key_at_every_probe_step(trained, rows):
    (file,) = wandb_file.live_files(trained.path)
    found = wandb_file.read(file)
    assert (found.exit_code, found.project, found.config["objective.shape.alpha"]) == (0, "alphapo", 0.25)
    history = {row["_step"]: row for row in found.history if "displacement/chosen" in row}
    assert sorted(history) == list(PROBED)
    for row in rows(trained.path / "metrics.jsonl"):
        if row["step"] in PROBED:
            for key, value in row.items():
                if value is not None and key != "step":  # W&B has no null
                    assert history[row["step"]][key] == pytest.approx(value)
    assert found.summary["state"] == "complete"


class TestModel:
    def test_it_loads_in_plain_transformers_and_gives_the_log_probs_of_the_trained_policy(self, trained, rows):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = trained.path / "model"
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        assert model.generation_config.eos_token_id is not None
        assert model.generation_config.pad_token_id is not None
        recorded = [r for r in rows(trained.path / "probe.jsonl") if r["step"] == 4]
        pairs = held_out(8, tokenizer)
        sums = [[answer_log_prob(model, tokenizer, *pair[i]) for i in range(2)] for pair in pairs]
        ours = sorted((r["logps/chosen_sum"], r["logps/rejected_sum"]) for r in recorded)
        assert sorted(map(tuple, sums)) == [pytest.approx(pair, abs=1e-4) for pair in ours]

    def test_it_generates(self, trained):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = trained.path / "model"
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": "name three fruits ."}], add_generation_prompt=True, return_tensors="pt",
            return_dict=True,
        )  # fmt: skip
        out = model.generate(**ids, max_new_tokens=4, do_sample=False)
        assert out.shape[1] > ids["input_ids"].shape[1]

    def test_prompts_are_the_ids_that_training_conditioned_on(self, trained):
        """prompts.json serves to compare what a serving engine is fed."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(trained.path / "model")
        for sample in json.loads((trained.path / "prompts.json").read_text()):
            encoded = tokenizer.apply_chat_template(sample["prompt"], add_generation_prompt=True, return_dict=True)
            assert encoded["input_ids"] == sample["ids"]


def held_out(count, tokenizer):
    """The embedded world's probe pairs as ((prompt text, whole text), ...) of chosen and rejected."""
    from alphapo_cli.config.schema import GlassboxConfig
    from alphapo_cli.data.glassbox import world

    found = []
    for pair in world.probe_pairs(count, GlassboxConfig(pairs=64)):
        turns = list(pair.prompt)
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        whole = [tokenizer.apply_chat_template([*turns, *a], tokenize=False) for a in (pair.chosen, pair.rejected)]
        found.append([(prompt, text) for text in whole])
    return found


@torch.no_grad()
def answer_log_prob(model, tokenizer, prompt, whole):
    """Summed log-prob of what follows `prompt` in `whole`, up to its end token, by the model's own logits."""
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = tokenizer(whole.rstrip(), add_special_tokens=False, return_tensors="pt")["input_ids"]
    logps = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    return float(logps.gather(1, ids[0, 1:, None])[start - 1 :].sum())


def warnings_of(ran):
    return [text for text in ran.err.splitlines() if text.startswith("alphapo: warning: ")]


class TestTheSameLineAgain:
    def test_a_complete_run_is_left_as_it_is(self, alphapo, trained, snapshot):
        line = json.loads((trained.path / "manifest.json").read_text())["command"][1:-2]
        before = snapshot(trained.path)
        ran = alphapo(*line, "--json", "-", cwd=trained.path.parent.parent)
        assert ran.code == 0
        directory, word, result = ran.out.splitlines()
        assert (directory, word) == (str(trained.path), "complete")
        assert json.loads(result)["state"] == "complete"
        assert snapshot(trained.path) == before

    def test_watching_differently_is_the_same_run(self, alphapo, trained, snapshot):
        line = json.loads((trained.path / "manifest.json").read_text())["command"][1:-2]
        before = snapshot(trained.path)
        ran = alphapo(*line, "tracking.mode=disabled", "data.workers=2", cwd=trained.path.parent.parent)
        assert (ran.code, ran.out.splitlines()) == (0, [str(trained.path), "complete"])
        assert snapshot(trained.path) == before

    def test_data_that_has_changed_is_said(self, alphapo, scratch_line, pairs, snapshot, tmp_path):
        """The run stays as it is: whether the old or the new data are meant is the user's to say."""
        data, evaluation = tmp_path / "own.jsonl", tmp_path / "eval.jsonl"
        for file in (data, evaluation):
            shutil.copy(pairs["dialogue"], file)
        line = ("train", *scratch_line, f"data.path={data}", f"data.eval_path={evaluation}", "run.name=x")
        assert alphapo(*line).code == 0
        before = snapshot(tmp_path / "runs")
        data.touch()  # the same content at another time
        again = alphapo(*line)
        assert (again.code, again.out.splitlines()[1], "warning" in again.err) == (0, "complete", False)
        data.write_text(data.read_text().replace("carpet", "engine"))
        changed = alphapo(*line)
        assert (changed.code, changed.out.splitlines()[1]) == (0, "complete")
        (warning,) = warnings_of(changed)
        assert warning.startswith("alphapo: warning: data.path holds other data")
        assert "--replace" in warning
        evaluation.write_text(evaluation.read_text().replace("carpet", "engine"))
        assert len(warnings_of(alphapo(*line))) == 2
        assert snapshot(tmp_path / "runs") == before
        data.unlink()
        assert [w.split()[2] for w in warnings_of(alphapo(*line))] == ["data.eval_path"]

    @pytest.mark.parametrize(
        ("file", "left"),
        [
            ("summary.json", ""),
            ("summary.json", '{"state": "comp'),
            ("summary.json", "null"),
            ("config.yaml", "- objective"),
        ],
    )
    def test_what_is_damaged_may_have_been_a_complete_run(self, file, left, alphapo, trained, snapshot, tmp_path):
        line = json.loads((trained.path / "manifest.json").read_text())["command"][1:-2]
        folder = tmp_path / "runs" / trained.path.name
        shutil.copytree(trained.path, folder)
        (folder / file).write_text(left)
        before = snapshot(folder)
        ran = alphapo(*line)
        assert ran.code == 2
        assert f"runs/{folder.name}/{file} is damaged" in ran.fault
        assert snapshot(folder) == before

    @pytest.mark.slow
    def test_replace_starts_over_with_another_configuration(self, alphapo, tiny, tmp_path):
        first = alphapo("train", *tiny, "run.name=x", "trainer.max_steps=1")
        (first.path / "samples" / "old.json").write_text("from the first attempt")
        (first.path / "notes.txt").write_text("the user's own")
        second = alphapo("train", *tiny, "run.name=x", "trainer.max_steps=2", "--replace")
        assert (first.code, second.code, second.path) == (0, 0, first.path)
        assert json.loads((second.path / "summary.json").read_text())["step"] == 2
        assert not (second.path / "samples" / "old.json").exists()
        assert (second.path / "notes.txt").read_text() == "the user's own"

    def test_replace_never_touches_what_alphapo_did_not_make(self, alphapo, tiny, tmp_path):
        project = tmp_path / "runs" / "project"
        project.mkdir(parents=True)
        (project / "config.yaml").write_text("lr: 1")
        (project / "precious.py").write_text("x = 1")
        ran = alphapo("train", *tiny, "run.name=project", "--replace")
        assert ran.code == 2
        assert "not a run directory" in ran.fault
        assert sorted(p.name for p in project.iterdir()) == ["config.yaml", "precious.py"]


def test_a_directory_is_one_run_in_wandb_however_it_is_named(tmp_path, monkeypatch):
    from alphapo_cli.config.compose import compose
    from alphapo_cli.config.overrides import Sources, read_line
    from alphapo_cli.config.schema import TrainConfig
    from alphapo_cli.runs.directory import RunDirectory
    from alphapo_cli.stages.training import tracker

    monkeypatch.setattr(tracker, "open_tracker", lambda *args, run_id, **kwargs: run_id)
    cfg = compose("train", TrainConfig, [read_line([], Sources())], Sources())
    ids = []
    for here in ("one", "other"):
        (tmp_path / here).mkdir()
        monkeypatch.chdir(tmp_path / here)
        for name in (Path("runs/x"), tmp_path / here / "runs" / "x"):
            ids.append(tracker.run_tracker(cfg, RunDirectory(name), None))
    assert ids[0] == ids[1] != ids[2] == ids[3]


@pytest.mark.slow
def test_a_run_that_starts_over_is_another_one_in_wandb(alphapo, tiny, monkeypatch):
    """W&B goes on above the last step that it has of an id, so that it would keep the rows of the run before."""
    from alphapo_cli.stages.training import tracker
    from alphapo_cli.tracking.tracker import NullTracker

    ids = []
    monkeypatch.setattr(tracker, "open_tracker", lambda *_, run_id, **__: ids.append(run_id) or NullTracker())
    line = ["train", *tiny, "run.name=x", "trainer.max_steps=2", "trainer.save_steps=1", "probe.samples=0"]
    first = alphapo(*line)
    summary = json.loads((first.path / "summary.json").read_text())
    (first.path / "summary.json").write_text(json.dumps({**summary, "state": "interrupted"}))
    assert alphapo(*line).code == 0
    assert alphapo(*line, "--replace").code == 0
    assert len(ids) == 3
    assert ids[1] != ids[2]


def test_a_complete_run_that_can_be_read_only_once_is_complete(trained, tmp_path, monkeypatch):
    """A network file system answers with an error now and then: what was read stands."""
    from alphapo_cli.runs.directory import RunDirectory

    path = shutil.copytree(trained.path, tmp_path / "runs" / trained.path.name)
    read, reads = Path.read_bytes, []

    def once(self):
        if self.name == "summary.json":
            reads.append(self)
            if len(reads) > 1:
                raise OSError(errno.EIO, "Input/output error")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", once)
    monkeypatch.setattr(RunDirectory, "differing", lambda *_: [])
    assert RunDirectory(path).check(None, replace=False) == "complete"


class TestSameNumbers:
    """`metrics` is fully determined by configuration and seed."""

    def test_in_another_directory_without_tracking_with_a_cold_cache(
        self, alphapo, trained, tiny, tmp_path, shared_cache
    ):
        cold = tmp_path / "cold"
        shutil.copytree(shared_cache / "base", cold / "base")
        again = alphapo("train", *tiny, "run.name=again", "run.dir=elsewhere", cache=cold)
        assert again.code == 0
        for file in ("metrics.jsonl", "probe.jsonl"):
            ours, theirs = ((run.path / file).read_bytes() for run in (again, trained))
            assert ours == theirs
        ours, theirs = (json.loads((run.path / "samples" / "step-4.json").read_text()) for run in (again, trained))
        assert [a["output"] for a in ours] == [a["output"] for a in theirs]
        ours, theirs = (json.loads((run.path / "summary.json").read_text())["metrics"] for run in (again, trained))
        assert ours == theirs
        weights = [(run.path / "model" / "model.safetensors").read_bytes() for run in (again, trained)]
        assert weights[0] == weights[1]

    def test_another_seed_gives_others(self, alphapo, trained, tiny):
        other = alphapo("train", *tiny, "seed=1")
        ours, theirs = (json.loads((run.path / "summary.json").read_text())["metrics"] for run in (other, trained))
        assert ours["displacement/chosen"] != theirs["displacement/chosen"]

    def test_the_probe_is_the_same_for_every_seed_and_objective(self, alphapo, trained, tiny, rows):
        other = alphapo("train", *tiny, "seed=1", "objective=simpo", "trainer.max_steps=1", "probe.samples=0")
        start, ours = (rows(run.path / "metrics.jsonl")[0] for run in (trained, other))
        for key in ("logps/chosen", "logps/rejected_sum", "entropy/chosen", "ranking/accuracy"):
            assert ours[key] == start[key]

    @pytest.mark.slow
    def test_two_processes_of_their_own(self, cli, shared_cache, tiny, tmp_path):
        runs = [cli("train", *tiny, f"run.dir={name}", cache=shared_cache) for name in ("a", "b")]
        assert [r.code for r in runs] == [0, 0]
        first, second = ((r.path / "metrics.jsonl").read_bytes() for r in runs)
        assert first == second


def test_json_to_stdout_is_the_last_line(alphapo, tiny):
    ran = alphapo("train", *tiny, "trainer.max_steps=1", "probe.samples=0", "--json", "-")
    first, last = ran.out.splitlines()
    assert json.loads(last)["path"] == first
    assert json.loads(last)["metrics"]["displacement/chosen"] is not None


def test_limit_takes_the_first_pairs(alphapo, scratch_line, scratch):
    ran = alphapo("train", "objective=sft", *scratch_line, "data.limit=10")
    manifest = json.loads((ran.path / "manifest.json").read_text())["data"]
    assert (manifest["pairs_read"], manifest["train_pairs"] + manifest["probe_pairs"]) == (10, 10)
    assert json.loads((scratch.path / "manifest.json").read_text())["data"]["pairs_read"] == 40


def test_a_run_without_a_model_cannot_be_started_from(alphapo, tmp_path, tiny):
    from alphapo_cli.modeling.locations import locate

    run = tmp_path / "runs" / "half"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    (run / "summary.json").write_text('{"state": "interrupted"}')
    with pytest.raises(UsageError, match="has no model/"):
        locate(str(run))


def test_peak_memory_is_that_of_the_run(alphapo, tiny):
    """And not of what the process held before, such as another cell of the sweep."""
    resident = int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
    before = b"\1" * (600 << 20)
    del before
    ran = alphapo("train", *tiny, "probe.samples=0", "trainer.max_steps=1")
    assert ran.code == 0, ran.err
    peak = json.loads((ran.path / "summary.json").read_text())["cost"]["peak_rss_mib"]
    assert 100 < peak < resident + 500
