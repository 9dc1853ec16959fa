"""Where a run can start from: a run, a model directory, random weights, adapters; and the reference it is held to."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# A model that is not the embedded world's base, on its pairs all the same and with the settings of the world.
ON = ("data=glassbox", "trainer=glassbox", "probe=glassbox")


def metrics(run):
    return json.loads((run.path / "summary.json").read_text())["metrics"]


def logits(model, seed=0):
    ids = torch.randint(3, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def start_of(run, rows):
    return rows(run.path / "metrics.jsonl")[0]


class TestFromScratch:
    def test_it_trains_a_tokenizer_with_a_chat_template(self, scratch):
        tokenizer = AutoTokenizer.from_pretrained(scratch.path / "model")
        assert len(tokenizer) <= 320
        assert tokenizer.chat_template
        text = "Say something about the apple, 42 £ \U0001f34e"
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text

    @pytest.mark.parametrize("form", ["plain", "dialogue", "message"])
    def test_every_form_of_data(self, form, alphapo, scratch_line, pairs, rows):
        ran = alphapo("train", *scratch_line, f"data.path={pairs[form]}")
        assert ran.code == 0, ran.err
        assert json.loads((ran.path / "manifest.json").read_text())["data"]["probe_pairs"] == 4
        # Nothing of the embedded world where its answers are not known.
        assert not any(key.startswith("glassbox/") for row in rows(ran.path / "metrics.jsonl") for key in row)
        assert not (ran.path / "samples").exists()

    @pytest.mark.parametrize("objective", ["alphapo", "alphapo_ratio", "simpo", "dpo", "ipo", "cpo", "sft"])
    @pytest.mark.slow
    def test_every_objective_from_a_run_as_it_was_printed(self, objective, alphapo, scratch, scratch_line, rows):
        line = [text for text in scratch_line if not text.startswith("model")]
        ran = alphapo("train", f"objective={objective}", *line, f"model.path={scratch.path}")
        assert ran.code == 0, ran.err
        first, *_, last = rows(ran.path / "metrics.jsonl")
        assert first["displacement/chosen"] == 0
        assert last["displacement/chosen"] != 0
        # The policy starts where the run before it ended, on the same held-out pairs.
        assert first["logps/chosen"] == pytest.approx(metrics(scratch)["logps/chosen"], rel=1e-6)
        if objective in ("alphapo_ratio", "dpo", "ipo"):
            assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
            assert first["rewards/chosen"] == pytest.approx(0, abs=1e-6)

    def test_sft_lowers_its_loss(self, alphapo, scratch_line, rows):
        ran = alphapo("train", "objective=sft", *scratch_line, "trainer.max_steps=12", "trainer.learning_rate=0.01")
        losses = [row["train/loss"] for row in rows(ran.path / "metrics.jsonl")[1:]]
        assert losses[-1] < losses[0] - 0.3
        assert metrics(ran)["displacement/chosen"] > 0.3
        assert metrics(ran)["gradient_weight/chosen"] == 0  # there is no preference term

    @pytest.mark.slow
    def test_the_seed_decides_the_weights(self, alphapo, scratch_line, rows):
        line = [*scratch_line, "trainer.max_steps=1"]
        runs = [
            alphapo("train", *line, f"seed={seed}", f"run.dir={name}") for seed, name in ((1, "a"), (1, "b"), (2, "c"))
        ]
        a, b, c = (start_of(run, rows)["logps/chosen"] for run in runs)
        assert a == b != c


class TestModelPath:
    @pytest.mark.parametrize("form", ["run", "model", "relative", "group"])
    def test_forms(self, form, alphapo, scratch, scratch_line, tmp_path, rows):
        line = [text for text in scratch_line if not text.startswith("model")]
        (tmp_path / "link").symlink_to(scratch.path)
        said = {
            "run": [f"model.path={scratch.path}"],
            "model": [f"model.path={scratch.path}/model"],
            "relative": ["model.path=link"],
            # The model group does not matter once there is a path.
            "group": [f"model.path={scratch.path}", "model=from_scratch"],
        }[form]
        ran = alphapo("train", *line, *said, "trainer.max_steps=1")
        assert ran.code == 0, ran.err
        assert start_of(ran, rows)["logps/chosen"] == pytest.approx(metrics(scratch)["logps/chosen"], rel=1e-6)

    def test_a_model_without_chat_template_takes_text(self, alphapo, scratch, scratch_line, pairs, tmp_path):
        shutil.copytree(scratch.path / "model", tmp_path / "bare")
        (tmp_path / "bare" / "chat_template.jinja").unlink()
        line = [text for text in scratch_line if not text.startswith("model")]
        for form in ("plain", "dialogue"):
            ran = alphapo("train", *line, "model.path=bare", f"data.path={pairs[form]}", f"run.name={form}")
            assert ran.code == 0, ran.err
            assert json.loads((ran.path / "manifest.json").read_text())["data"]["template"] == "plain"


def test_a_group_that_shares_a_cache_can_read_the_embedded_base(tmp_path, monkeypatch):
    from alphapo_cli.stages.training import glassbox_base

    monkeypatch.setattr(glassbox_base, "_train", lambda folder: (folder / "model.safetensors").write_bytes(b"weights"))
    (tmp_path / "other").mkdir()
    folder = glassbox_base.ensure(tmp_path, verbose=False)
    assert folder.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


class TestReference:
    @pytest.mark.slow
    def test_it_is_computed_once_and_changes_nothing(self, alphapo, tiny, shared_cache, tmp_path, rows):
        cache = tmp_path / "cache"
        shutil.copytree(shared_cache / "base", cache / "base")
        line = [*tiny, "objective=dpo", "trainer.max_steps=2"]
        cold = alphapo("train", *line, "run.dir=cold", cache=cache)
        stored = {p: p.stat().st_mtime_ns for p in (cache / "reference").iterdir()}
        assert len(stored) == 2  # of the training and of the probe pairs
        warm = alphapo("train", *line, "run.dir=warm", cache=cache)
        assert {p: p.stat().st_mtime_ns for p in (cache / "reference").iterdir()} == stored
        assert (cold.path / "metrics.jsonl").read_bytes() == (warm.path / "metrics.jsonl").read_bytes()

    @pytest.mark.slow
    def test_what_another_number_of_threads_computed_is_not_taken(self, alphapo, tiny, shared_cache, tmp_path):
        """A cold and a warm cache give the same bits; sums of many terms depend on how threads share them."""
        cache = tmp_path / "cache"
        shutil.copytree(shared_cache / "base", cache / "base")
        line = [*tiny, "objective=dpo", "trainer.max_steps=1", "probe.samples=0"]
        cold = alphapo("train", *line, "trainer.threads=1", "run.name=cold", cache=cache)
        for stored in (cache / "reference").iterdir():
            np.save(stored, np.load(stored) + np.array([[1.0], [0.0]]))  # far more than round-off: it would show
        warm = alphapo("train", *line, "trainer.threads=2", "run.name=warm", cache=cache)
        assert warm.code == 0, warm.err
        ends = [json.loads((ran.path / "summary.json").read_text())["metrics"] for ran in (cold, warm)]
        assert ends[0]["rewards/margins"] == pytest.approx(ends[1]["rewards/margins"], abs=1e-6)

    @pytest.mark.slow
    def test_of_several_processes_all_take_it_or_none(self, tmp_path):
        """Another command may write it, or a node's own cache lack it, between the looks of two processes."""
        from alphapo_cli.config.compose import compose
        from alphapo_cli.config.overrides import Sources, read_line
        from alphapo_cli.config.schema import TrainConfig
        from alphapo_cli.modeling.policy import policy_of
        from alphapo_cli.objective.build import build
        from alphapo_cli.runtime.distributed import Processes
        from alphapo_cli.stages.training.inputs import InputsBuilder

        line = ["objective=dpo", "model=from_scratch", "data=glassbox", "data.limit=8", "probe.pairs=4"]
        cfg = compose("train", TrainConfig, [read_line(line, Sources())], Sources())
        objective = build(cfg.objective)
        found = []

        class First(Processes):
            def first(self, make):
                found.append(make())
                return found[-1]

        class Second(Processes):
            def first(self, make):
                return found.pop(0)

        def reference(cache, processes):
            builder = InputsBuilder(cache=cache, processes=processes)
            start = builder.model_and_data(cfg)
            return builder.reference(cfg, start, policy_of(start.policy(), cfg), objective)

        made = reference(tmp_path / "one", Processes())
        reference(tmp_path / "one", First())
        for ours, theirs in zip(reference(tmp_path / "other", Second()), made, strict=True):
            assert (ours == theirs).all()
        assert not found
        assert not (tmp_path / "other" / "reference").exists()  # nothing was scored

    @pytest.mark.slow
    def test_a_damaged_cache_entry_is_made_again(self, alphapo, tiny, shared_cache, tmp_path):
        cache = tmp_path / "cache"
        shutil.copytree(shared_cache / "base", cache / "base")
        line = [*tiny, "objective=dpo", "trainer.max_steps=1", "probe.samples=0"]
        first = alphapo("train", *line, "run.dir=a", cache=cache)
        for file in (*(cache / "reference").iterdir(), *(cache / "tokens").glob("*/tokens.npz")):
            file.write_bytes(file.read_bytes()[:40])
        second = alphapo("train", *line, "run.dir=b", cache=cache)
        assert second.code == 0, second.err
        assert (first.path / "metrics.jsonl").read_bytes() == (second.path / "metrics.jsonl").read_bytes()

    def test_of_its_own(self, alphapo, tiny, trained, rows):
        """DPO's margin at step 0 against the trained run instead of against itself."""
        ran = alphapo("train", *tiny, "objective=dpo", f"model.reference={trained.path}", "trainer.max_steps=1")
        assert ran.code == 0, ran.err
        expected = -0.1 * metrics(trained)["displacement/chosen_sum"]
        assert start_of(ran, rows)["rewards/chosen"] == pytest.approx(expected, abs=2e-5)

    @pytest.mark.slow
    def test_alpha_zero_of_the_ratio_convention_is_dpo(self, alphapo, tiny):
        line = [*tiny, "objective.beta=0.1", "trainer.max_steps=2"]
        dpo = alphapo("train", *line, "objective=dpo")
        zero = alphapo("train", *line, "objective=alphapo_ratio", "objective.shape.alpha=0")
        assert (dpo.path / "metrics.jsonl").read_bytes() == (zero.path / "metrics.jsonl").read_bytes()

    @pytest.mark.slow
    def test_alpha_zero_of_the_papers_convention_is_simpo(self, alphapo, tiny):
        line = [*tiny, "objective.beta=2.5", "objective.gamma=0.5", "trainer.max_steps=2"]
        simpo = alphapo("train", *line, "objective=simpo")
        zero = alphapo("train", *line, "objective=alphapo", "objective.shape.alpha=-0.0")
        assert (simpo.path / "metrics.jsonl").read_bytes() == (zero.path / "metrics.jsonl").read_bytes()


class TestLora:
    @pytest.fixture
    def line(self, tiny):
        return (*tiny, "objective=dpo", "model.lora.r=2", "trainer.learning_rate=0.01", "trainer.max_steps=2")

    def test_an_adapter_is_written_and_its_base_named(self, alphapo, line, shared_cache, rows):
        ran = alphapo("train", *line)
        assert ran.code == 0, ran.err
        names = {p.name for p in (ran.path / "model").iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
        assert "model.safetensors" not in names
        base = json.loads((ran.path / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert str(base).startswith(str(shared_cache))
        first, *_, last = rows(ran.path / "metrics.jsonl")
        assert first["rewards/margins"] == 0  # fresh adapters change nothing: the policy is the reference
        assert last["displacement/chosen"] != 0

    @pytest.mark.slow
    def test_merged_and_unmerged_are_the_same_model(self, alphapo, line):
        kept, merged = (alphapo("train", *line, f"model.merge={m}", f"run.dir={m}") for m in ("false", "true"))
        assert (kept.code, merged.code) == (0, 0)
        assert metrics(kept) == metrics(merged)
        assert not (merged.path / "model" / "adapter_config.json").exists()
        adapted = AutoModelForCausalLM.from_pretrained(kept.path / "model")
        plain = AutoModelForCausalLM.from_pretrained(merged.path / "model")
        assert "PeftModel" not in type(plain).__name__
        torch.testing.assert_close(logits(adapted), logits(plain), rtol=1e-4, atol=1e-4)
        assert AutoTokenizer.from_pretrained(kept.path / "model").chat_template

    @pytest.mark.slow
    def test_the_base_is_frozen(self, alphapo, line, trained):
        from peft import PeftModel

        ran = alphapo("train", *line)
        where = json.loads((ran.path / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
        base = AutoModelForCausalLM.from_pretrained(where)
        before = logits(base)
        adapted = PeftModel.from_pretrained(base, ran.path / "model")
        assert not torch.allclose(logits(adapted), before)
        with adapted.disable_adapter():
            torch.testing.assert_close(logits(adapted), before)

    @pytest.mark.slow
    def test_a_lora_run_as_the_start_of_another(self, alphapo, line, tiny, rows):
        first = alphapo("train", *line)
        second = alphapo("train", *tiny, *ON, f"model.path={first.path}", "trainer.max_steps=1")
        assert second.code == 0, second.err
        expected = metrics(first)["logps/chosen_sum"]
        assert start_of(second, rows)["logps/chosen_sum"] == pytest.approx(expected, abs=1e-4)
        # What it writes stands on its own.
        assert (second.path / "model" / "model.safetensors").is_file()
        assert not (second.path / "model" / "adapter_config.json").exists()

    @pytest.mark.slow
    def test_adapters_on_top_of_adapters_need_merging(self, alphapo, line, rows):
        """The first adapter becomes part of the weights, so that the second has no saved base."""
        first = alphapo("train", *line)
        refused = alphapo("train", *line, *ON, f"model.path={first.path}")
        assert refused.code == 2
        assert "model.merge=true" in refused.fault
        second = alphapo("train", *line, *ON, f"model.path={first.path}", "model.merge=true")
        assert second.code == 0, second.err
        again = alphapo("train", *line[:-3], *ON, f"model.path={second.path}", "trainer.max_steps=1")
        assert start_of(again, rows)["logps/chosen_sum"] == pytest.approx(metrics(second)["logps/chosen_sum"], abs=1e-4)

    def test_an_adapter_is_found_from_another_directory(
        self, alphapo, line, scratch, scratch_line, tmp_path, monkeypatch
    ):
        (tmp_path / "base").symlink_to(scratch.path)
        rest = [text for text in scratch_line if not text.startswith("model")]
        ran = alphapo("train", *rest, "model.path=base", "model.lora.r=2")
        assert ran.code == 0, ran.err
        monkeypatch.chdir("/")
        assert AutoModelForCausalLM.from_pretrained(ran.path / "model").config.use_cache


class TestMisfits:
    """Model, tokenizer and data that do not belong together are refused before anything is written."""

    @pytest.fixture
    def copied(self, scratch, tmp_path):
        shutil.copytree(scratch.path / "model", tmp_path / "m")
        return tmp_path / "m"

    def test_more_tokens_than_embeddings(self, alphapo, scratch_line, copied, tmp_path):
        tokenizer = AutoTokenizer.from_pretrained(copied)
        tokenizer.add_tokens(["fruit", "apple", "pear", "Human", "the", "a", "is", "one", "e"])
        tokenizer.save_pretrained(copied)
        line = [text for text in scratch_line if not text.startswith("model")]
        ran = alphapo("train", *line, "model.path=m")
        assert ran.code == 2
        assert "the model has embeddings for" in ran.fault
        assert not (tmp_path / "runs").exists()

    def test_longer_pairs_than_positions(self, alphapo, scratch_line, copied, tmp_path):
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 24}))
        line = [text for text in scratch_line if not text.startswith("model")]
        ran = alphapo("train", *line, "model.path=m")
        assert ran.code == 2
        assert "data.max_length=24" in ran.fault
        assert not (tmp_path / "runs").exists()
        assert alphapo("train", *line, "model.path=m", "data.max_length=24").code == 0

    def test_a_reference_with_another_tokenizer(self, alphapo, tiny, scratch, tmp_path):
        ran = alphapo("train", *tiny, "objective=dpo", f"model.reference={scratch.path}")
        assert ran.code == 2
        assert "its tokenizer differs from the policy's" in ran.fault
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize(
        ("setting", "more"), [("trainer.optim=adamw_bnb_8bit", ()), ("model.quantization=nf4", ("model.lora.r=4",))]
    )
    def test_a_package_that_is_missing(self, setting, more, alphapo, tiny, tmp_path, monkeypatch):
        real = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else real(name, *a)
        )
        ran = alphapo("train", *tiny, setting, *more)
        assert ran.code == 2
        assert "bitsandbytes is not installed: type pip install 'alphapo[quant]'" in ran.fault
        assert setting in ran.fault or "optim" not in setting
        assert not (tmp_path / "runs").exists()
