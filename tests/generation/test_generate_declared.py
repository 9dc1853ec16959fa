"""What a model's files declare: stop ids, dtype and context, read once for both backends, the probe and judges."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from alphapo_cli.modeling.declared import context_length, model_stop_ids, stop_ids, weights_dtype
from alphapo_cli.modeling.loading import load_tokenizer
from alphapo_cli.modeling.locations import locate
from tests.conftest import BARE, Ran, write_rows
from tests.data import data_tokenizers as kinds
from tests.fork_server import Server
from tests.generation.generate_world import change, chat_model, load, outputs

Alphapo = Callable[..., Ran]
GREEDY = ("generation=transformers", "generation.temperature=0", "generation.max_new_tokens=24")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    texts = ("Name three fruits", "How do I sort a list", "What is the capital of France", "The quick brown fox")
    return f"data.path={write_rows(tmp_path / 'prompts.jsonl', [{'instruction': text} for text in texts])}"


def a_word_of(text: str, tokenizer: Any) -> int:
    """The id of a token that an answer holds; words are drawn whole, unlike the bytes around them."""
    words = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    return max((token for token, word in words.items() if word in text), key=lambda token: len(words[token]))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_stop_id_of_either_file_ends_an_answer_and_is_no_cut(
    file: str, alphapo: Alphapo, tmp_path: Path, prompts: str
) -> None:
    """The other file names none, or is not there."""
    model = chat_model(tmp_path / "model")
    (model / "generation_config.json").unlink()
    line = ("generate", str(model), "data=jsonl", prompts, *GREEDY)
    plain = outputs(alphapo(*line).path)
    tokenizer = load_tokenizer(locate(str(model)))
    stop = a_word_of(plain[0], tokenizer)  # ends all answers from now on
    if file == "config.json":
        change(model / file, eos_token_id=[tokenizer.eos_token_id, stop])
    else:
        change(model / "config.json", eos_token_id=None)
        (model / file).write_text("{}")
        change(model / file, eos_token_id=[stop])
    ran = alphapo(*line)
    assert ran.code == 0, ran.err
    stopped = outputs(ran.path)
    assert plain[0].startswith(stopped[0])
    assert len(stopped[0]) < len(plain[0])
    assert stop in load(ran.path / "manifest.json")["identity"]["generation"]["stop_ids"]
    whole = sum(a == b for a, b in zip(plain, stopped, strict=True))
    assert load(ran.path / "summary.json")["metrics"]["share_cut"] == whole / 4


def test_an_id_of_the_text_configuration_is_one_of_them_and_a_default_of_the_class_is_none(tmp_path: Path) -> None:
    tokenizer = kinds.chatml()
    model = chat_model(tmp_path / "plain")
    change(model / "config.json", eos_token_id=None)
    config = transformers.AutoConfig.from_pretrained(model)
    assert config.eos_token_id == 2  # of LlamaConfig, which the file does not say
    assert 2 not in {tokenizer.eos_token_id, 7}
    assert stop_ids(tokenizer, 7, [], [config]) == (7, tokenizer.eos_token_id)
    whole = transformers.Gemma3Config(text_config={"eos_token_id": [40, 41], "hidden_size": 64}, eos_token_id=42)
    assert stop_ids(tokenizer, 7, [], [whole]) == (7, tokenizer.eos_token_id, 42, 40, 41)


@pytest.mark.slow
def test_no_stop_id_is_minus_one() -> None:
    """Which old files have where they mean none, and engines refuse."""
    assert stop_ids(kinds.chatml(), 2, [], [transformers.LlamaConfig(eos_token_id=-1)]) == (2, 0)


def test_vllm_stops_at_those_ids_alone(alphapo: Alphapo, tmp_path: Path, prompts: str) -> None:
    """It would add what a configuration's class has by default, such as 2, an ordinary token of another tokenizer."""
    model = chat_model(tmp_path / "model")
    line = ("generate", str(model), "data=jsonl", prompts, "generation=vllm", "generation.max_new_tokens=8")
    fake = {"PYTHONPATH": str(Path(__file__).parent / "fake")}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent / "fake")
        plain, own = (
            alphapo(*line, "--out", str(tmp_path / f"out{f}"), env={**fake, "FAKE_VLLM": f}) for f in ("", "eos-201")
        )
    assert own.code == 0, own.err
    rows = [json.loads(line) for line in (plain.path / "answers.jsonl").read_text().splitlines()]
    assert any(201 in row["ids"] for row in rows), "a line break, which every prompt ends with"
    assert (plain.path / "answers.jsonl").read_bytes() == (own.path / "answers.jsonl").read_bytes()


def test_the_probes_samples_stop_there_too(alphapo: Alphapo, tmp_path: Path, pairs: dict[str, Path]) -> None:
    model = chat_model(tmp_path / "model", max_position_embeddings=512)
    line = (
        "train", *BARE, f"model.path={model}", "data=jsonl", f"data.path={pairs['plain']}", "trainer=small",
        "trainer.max_steps=1", "trainer.per_device_train_batch_size=4", "trainer.use_cpu=true", "probe.pairs=4",
        "probe.samples=4", "probe.temperature=0", "data.max_unknown=1",
    )  # fmt: skip
    ran = alphapo(*line)
    assert ran.code == 0, ran.err
    plain = outputs(ran.path / "samples", "reference.json")
    tokenizer = load_tokenizer(locate(str(model)))
    stop = a_word_of(plain[0], tokenizer)
    change(model / "config.json", eos_token_id=[tokenizer.eos_token_id, stop])
    again = alphapo(*line, "run.name=again")
    assert again.code == 0, again.err
    stopped = outputs(again.path / "samples", "reference.json")
    assert plain[0].startswith(stopped[0])
    assert len(stopped[0]) < len(plain[0])


def test_the_stop_ids_of_a_loaded_model_are_those_of_its_files(tmp_path: Path) -> None:
    model = chat_model(tmp_path / "model")
    change(model / "config.json", eos_token_id=[2, 9])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    assert set(model_stop_ids(loaded, kinds.chatml(), 5)) == {5, kinds.chatml().eos_token_id, 2, 9, *_saved(model)}


def _saved(model: Path) -> list[int]:
    eos = load(model / "generation_config.json").get("eos_token_id", [])
    return eos if isinstance(eos, list) else [eos]


class TestDtype:
    @pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
    def test_it_is_that_of_the_weights_where_the_configuration_has_none(self, stored: str, tmp_path: Path) -> None:
        model = chat_model(tmp_path / "model", dtype=stored)
        change(model / "config.json", dtype=None)
        config = transformers.AutoConfig.from_pretrained(model)
        assert weights_dtype(config, str(model)) == stored
        # As transformers reads it.
        assert transformers.AutoModelForCausalLM.from_pretrained(model, dtype="auto").dtype == getattr(torch, stored)

    @pytest.mark.parametrize("size", ["5GB", "20KB"])
    def test_files_beside_the_weights_are_not_looked_at(self, size: str, tmp_path: Path) -> None:
        """As in Mistral's repositories, which hold the weights a second time; whole and in parts."""
        from safetensors.torch import save_file

        model = chat_model(tmp_path / "model")
        lm = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        (model / "model.safetensors").unlink()
        lm.save_pretrained(model, max_shard_size=size)
        change(model / "config.json", dtype=None)
        save_file({"a": torch.zeros(1_000_000)}, model / "consolidated.safetensors")
        config = transformers.AutoConfig.from_pretrained(model)
        assert weights_dtype(config, str(model)) == "bfloat16"

    def test_of_pickled_weights_too_and_the_configuration_wins(self, tmp_path: Path) -> None:
        model = chat_model(tmp_path / "model")
        change(model / "config.json", dtype=None)
        weights = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).state_dict()
        (model / "model.safetensors").unlink()
        torch.save(weights, model / "pytorch_model.bin")
        config = transformers.AutoConfig.from_pretrained(model)
        assert weights_dtype(config, str(model)) == "bfloat16"
        config.dtype = torch.float32
        assert weights_dtype(config, str(model)) == "float32"

    def test_both_backends_and_the_manifest_have_it(
        self, alphapo: Alphapo, tmp_path: Path, prompts: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from alphapo_cli.generation import target_model
        from alphapo_cli.modeling import loading

        model = chat_model(tmp_path / "model", dtype="bfloat16")
        change(model / "config.json", dtype=None)
        loaded = []

        def noted(source: Any, cfg: Any, device: Any) -> Any:
            loaded.append(cfg.dtype)
            return real(source, cfg, device)

        real = loading.load_model
        monkeypatch.setattr(target_model, "load_model", noted)
        ran = alphapo("generate", str(model), "data=jsonl", prompts, *GREEDY, "data.limit=1")
        assert load(ran.path / "manifest.json")["identity"]["model"]["dtype"] == loaded[0] == "bfloat16"
        assert "note: the weights are bfloat16" in ran.err
        assert "generation.exact=true" in ran.err
        monkeypatch.syspath_prepend(Path(__file__).parent / "fake")
        fake = {"PYTHONPATH": str(Path(__file__).parent / "fake")}
        vllm = ("generation=vllm", "generation.max_new_tokens=8")
        ran = alphapo("generate", str(model), "data=jsonl", prompts, *vllm, env=fake)
        assert ran.code == 0, ran.err
        assert "('dtype', 'bfloat16')" in (ran.path / "vllm.log").read_text()


@pytest.mark.parametrize("command", ["generate", "train", "export"])
@pytest.mark.parametrize("values", [{"dtype": "torch.bfloat16"}, {"eos_token_id": 5.5}, {"text_config": {"a": 1}}])
def test_a_configuration_that_transformers_cannot_read_is_bad_input(
    command: str, values: dict[str, Any], alphapo: Alphapo, tmp_path: Path, prompts: str, pairs: dict[str, Path]
) -> None:
    model = chat_model(tmp_path / "model")
    change(model / "config.json", **values)
    rest = {
        "generate": (str(model), "data=jsonl", prompts, *GREEDY),
        "train": (f"model.path={model}", "data=jsonl", f"data.path={pairs['plain']}"),
        "export": (str(model), "--to", str(tmp_path / "exported")),
    }
    ran = alphapo(command, *rest[command])
    assert ran.code == 2, ran.err
    assert str(model) in ran.fault


SCALED: dict[str, tuple[dict[str, Any], int]] = {
    "none": ({}, 256),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 1024),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, 512),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
    "llama3": (
        {
            "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        256,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALED)
def test_the_context_is_what_vllm_reads(kind: str, tmp_path: Path, alphapo: Alphapo) -> None:
    parameters, expected = SCALED[kind]
    rope = {"rope_parameters": {"rope_theta": 10000.0, **parameters}} if parameters else {}
    config = transformers.LlamaConfig(max_position_embeddings=256, **rope)
    assert context_length(config) == expected


@pytest.mark.vllm
@pytest.mark.parametrize("kind", SCALED)
def test_vllm_reads_the_same_context(kind: str, tmp_path: Path, vllm_server: Server) -> None:
    parameters, expected = SCALED[kind]
    rope = {"rope_parameters": {"rope_theta": 10000.0, **parameters}} if parameters else {}
    model = chat_model(tmp_path / "model", **rope)
    script = tmp_path / "context.py"
    script.write_text(
        "import sys\nfrom vllm.config import ModelConfig\n"
        "print('CONTEXT', ModelConfig(sys.argv[1], skip_tokenizer_init=True).max_model_len)\n"
    )
    ran = vllm_server.run([sys.executable, "-P", str(script), str(model)], cwd=tmp_path, env=vllm_server.env)
    assert f"CONTEXT {expected}\n" in ran.stdout, ran.stderr


def test_a_prompt_that_fits_the_scaled_context_is_answered(alphapo: Alphapo, tmp_path: Path) -> None:
    rope = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}}
    model = chat_model(tmp_path / "model", max_position_embeddings=64, **rope)
    file = write_rows(tmp_path / "long.jsonl", [{"instruction": " ".join(itertools.repeat("apples", 20))}])
    line = ("generate", str(model), "data=jsonl", f"data.path={file}", *GREEDY[:2])
    ran = alphapo(*line, "generation.max_new_tokens=100")
    assert ran.code == 0, ran.err
    refused = alphapo(*line, "generation.max_new_tokens=250")
    assert refused.code == 2
    assert "context is 256" in refused.fault
