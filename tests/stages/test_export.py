"""`alphapo export`: the weights are the trained ones, a merge is peft's own, and the hub reads the card."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alphapo_cli.stages.export import Exported, beyond_gguf, next_lines
from alphapo_cli.stages.model_card import CardFacts, card


def weights(folder):
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, shared_cache, scratch, pairs):
    """A LoRA run on the model of the run from scratch."""
    from tests.conftest import BARE, run_here

    folder = tmp_path_factory.mktemp("adapter")
    line = ("train", "objective=dpo", f"model.path={scratch.path}", "model.lora.r=2", "probe.samples=0", "data=jsonl",
            f"data.path={pairs['dialogue']}", "trainer.max_steps=3", "trainer.learning_rate=0.01", "probe.pairs=4",
            *BARE)  # fmt: skip
    ran = run_here(line, folder, shared_cache)
    assert ran.code == 0, ran.err
    return ran.path


def test_a_run(alphapo, trained, tmp_path):
    ran = alphapo("export", str(trained.path), "--to", "out", "--license", "apache-2.0")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[0] == str(tmp_path / "out")
    found, expected = weights(tmp_path / "out"), weights(trained.path / "model")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in found)
    assert "convert_hf_to_gguf.py out --outtype f32" in ran.err
    assert "upload OWNER/NAME out" in ran.err
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    judged = json.loads((trained.path / "summary.json").read_text())
    assert card.data.eval_results[0].metric_value == pytest.approx(judged["verdict"]["win_rate"], abs=1e-6)
    text = card.content
    assert judged["data"]["key"] in text
    for sentence in judged["verdict"]["sentences"]:
        assert sentence in text
    assert str(trained.path.parent) not in text  # no path of this machine


def test_a_card_names_the_confidence_of_its_intervals_and_what_they_are_over():
    judged = {"eval/win_rate": 0.31, "eval/n_total": 256}
    facts = CardFacts("base", False, None, {"objective.beta": 1.0}, judged=judged)
    found = card(dataclasses.replace(facts, judged_interval=(0.27, 0.35, "90 % over instructions")), "name")
    assert "- win rate 31 % [27, 35], n = 256, as judged" in found
    assert "that of the win rate by the judge 90 % over instructions" in found
    assert "- Intervals are 95 %, over prompts or pairs: they do not allow for another seed" in card(facts, "name")


@pytest.mark.slow
def test_an_adapter_has_a_card_of_its_own(alphapo, adapter, tmp_path):
    assert alphapo("export", str(adapter), "--to", "out").code == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "peft"
    assert "More Information Needed" not in card.content  # peft's template
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == (
        adapter / "model" / "adapter_model.safetensors"
    ).read_bytes()


def test_merged_weights_are_those_of_peft(alphapo, adapter, scratch, tmp_path):
    from peft import PeftModel

    assert alphapo("export", str(adapter), "--to", "out", "--merge").code == 0
    base = AutoModelForCausalLM.from_pretrained(scratch.path / "model", dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, adapter / "model").merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in found)
    before = AutoModelForCausalLM.from_pretrained(scratch.path / "model", dtype=torch.float32).state_dict()
    assert any(not torch.equal(found[k], before[k]) for k in found)


def test_another_dtype(alphapo, trained, tmp_path):
    assert alphapo("export", str(trained.path), "--to", "out", "--dtype", "bfloat16").code == 0
    found, expected = weights(tmp_path / "out"), weights(trained.path / "model")
    assert all(torch.equal(found[k], expected[k].bfloat16()) for k in found)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("gone", "--to", "out"), "gone"),
        (("RUN", "--to", "full"), "--to full: is not empty"),
        (("RUN", "--to", "out", "--merge"), "is whole already"),
        (("RUN", "--to", "out", "--license", "Apache 2.0"), "not a name of the hub's"),
        (("RUN", "--to", "out", "--license", ""), "not a name of the hub's"),
        (("RUN", "--to", "out", "--dtype", "bf16"), "did you mean 'bfloat16'?"),
        (("ADAPTER", "--to", "out", "--dtype", "float16"), "add --merge"),
        (("./half", "--to", "out"), "no config.json"),
    ],
)
def test_what_is_refused(line, said, alphapo, trained, adapter, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("x")
    shutil.copytree(trained.path / "model", tmp_path / "half", ignore=shutil.ignore_patterns("config.json"))
    named = {"RUN": str(trained.path), "ADAPTER": str(adapter)}
    ran = alphapo("export", *(named.get(word, word) for word in line))
    assert ran.code == 2
    assert said in ran.fault
    assert not (tmp_path / "out").exists()


def test_a_link_that_leads_out_is_not_handed_on(alphapo, trained, tmp_path):
    model = shutil.copytree(trained.path / "model", tmp_path / "model")
    (tmp_path / "private").write_text("nobody may see this")
    (model / "notes.txt").symlink_to(tmp_path / "private")
    ran = alphapo("export", "model", "--to", "out")
    assert ran.code == 2
    assert "notes.txt: a link out of its directory" in ran.fault
    assert not (tmp_path / "out").exists()


def test_links_of_the_hubs_cache_are_followed(alphapo, trained, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1234"
    shutil.copytree(trained.path / "model", blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert alphapo("export", str(snapshot), "--to", "out").code == 0
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())


def test_the_card_has_settings_on_one_line(alphapo, trained, tmp_path):
    run = shutil.copytree(trained.path, tmp_path / "x")
    (run / "manifest.json").unlink()  # with its checksum of config.yaml, as somebody else's directory may come
    config = run / "config.yaml"
    text = config.read_text()
    assert "  path: null" in text
    config.write_text(text.replace("  path: null", '  path: "a\\n---\\nlicense: mit \\u001b[31m"', 1))
    assert alphapo("export", "x", "--to", "out").code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\nlicense: mit" not in card
    assert "\x1b" not in card


def test_a_disk_that_fills_up_leaves_no_half(alphapo, trained, tmp_path):
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        ran = alphapo("export", str(trained.path), "--to", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert ran.code == 1
    assert "File too large" in ran.fault
    assert not list((tmp_path / "out").iterdir())
    assert alphapo("export", str(trained.path), "--to", "out").code == 0


def test_a_half_that_a_killed_process_left_is_written_anew(alphapo, trained, tmp_path):
    from alphapo_cli.stages import export

    (tmp_path / "out" / "additional_chat_templates").mkdir(parents=True)
    (tmp_path / "out" / export._HALF).touch()
    (tmp_path / "out" / "model-00001-of-00002.safetensors").write_bytes(b"half")
    assert alphapo("export", str(trained.path), "--to", "out").code == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *(p.name for p in (trained.path / "model").iterdir()), "README.md"
    }  # fmt: skip


def test_the_card_says_which_step_the_weights_are_of_and_that_training_was_stopped():
    from alphapo_cli.stages.model_card import _weights

    best = {"step": 6, "metric": "entropy/chosen", "value": 1.0}
    assert _weights({"state": "complete", "step": 9}) == ""
    found = _weights({"state": "stopped", "step": 9, "best": best, "reason": "it forgets"})
    assert found == (
        "The weights are those of step 6 of 9, the best by `entropy/chosen`. Training was stopped at step 9: it forgets."
    )
    assert found in card(CardFacts("base", False, None, {"objective.beta": 1.0}, weights=found), "name")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_rslora": False, "bias": "none", "modules_to_save": None, "rank_pattern": {"q_proj": 2}}, None),
        ({"use_rslora": True}, "rsLoRA's scale"),
        ({"use_dora": True}, "DoRA's magnitudes"),
        ({"modules_to_save": ["lm_head"]}, "whole layers"),
        ({"alpha_pattern": {"q_proj": 9}}, "scales of single layers"),
        ({"bias": "lora_only"}, "biases"),
    ],
)
def test_what_a_gguf_adapter_cannot_hold_is_merged_instead(settings, said, tmp_path):
    """convert_lora_to_gguf.py writes A, B and lora_alpha; llama.cpp scales by lora_alpha over the rank of each pair."""
    found = beyond_gguf(settings)
    assert (found is None) == (said is None)
    _, (line, why) = next_lines(Exported(tmp_path, True, "float32", "a/b", beyond_gguf=found))
    assert line.startswith("alphapo export" if said else "python convert_lora_to_gguf.py")
    assert said is None or said in why


def test_the_converter_is_told_of_a_base_in_a_directory(tmp_path):
    """It asks the hub for a name in adapter_config.json, and huggingface_hub refuses a path there."""
    _, (line, _) = next_lines(Exported(tmp_path / "out", True, "float32", str(tmp_path)))
    assert shlex.split(line)[2:] == [str(tmp_path / "out"), "--base", str(tmp_path)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_dtype_is_merged_in_float32(dtype, alphapo, scratch, tmp_path):
    """A bfloat16 base: its sum with the adapter is rounded once, to the dtype that is written."""
    from peft import LoraConfig, PeftModel, get_peft_model

    shutil.copytree(scratch.path / "model", tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    lora = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    lora.save_pretrained(tmp_path / "adapter")
    ran = alphapo("export", "adapter", "--to", "out", "--merge", "--dtype", dtype)
    assert ran.code == 0, ran.err
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=getattr(torch, dtype))
    expected = PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize(
    ("adapter", "dtype", "converter"),
    [
        (True, "float32", "convert_lora_to_gguf.py '{}'"),
        (False, "bfloat16", "convert_hf_to_gguf.py '{}' --outtype bf16"),
    ],
)
def test_the_lines_that_upload_and_convert_can_be_typed(adapter, dtype, converter, tmp_path):
    """A command that is installed beside us, and a path that the shell takes as one word."""
    folder = tmp_path / "my model"
    (upload, _), (convert, _) = next_lines(Exported(folder, adapter, dtype, None))
    program, *words = shlex.split(upload)
    assert (Path(sys.executable).with_name(program)).is_file()
    assert words == ["upload", "OWNER/NAME", str(folder)]
    assert convert == f"python {converter.format(folder)}"
