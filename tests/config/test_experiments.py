"""AlphaPO's published settings, as a reproducer types them: conf/experiment/ and the decoding in conf/generation/."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from alphapo_cli.config.compose import compose
from alphapo_cli.config.overrides import Sources, read_line
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.generation.schema import GenerateConfig
from tests.conftest import Ran, plain_rows, write_rows

# alpha, beta, gamma over beta, learning rate, model, data set
PUBLISHED = {
    "alphapo_mistral_instruct": (
        0.25, 2.5, 0.1, 7e-7, "mistralai/Mistral-7B-Instruct-v0.2", "mistral-instruct-ultrafeedback"
    ),
    "alphapo_llama3_instruct": (
        0.25, 2.5, 1.0, 1e-6, "meta-llama/Meta-Llama-3-8B-Instruct", "llama3-ultrafeedback"
    ),
    "alphapo_llama3_instruct_armorm": (
        0.25, 10.0, 0.3, 1.1e-6, "meta-llama/Meta-Llama-3-8B-Instruct", "llama3-ultrafeedback-armorm"
    ),
    "alphapo_gemma2": (0.1, 10.0, 0.5, 8e-7, "google/gemma-2-9b-it", "gemma2-ultrafeedback-armorm"),
}  # fmt: skip
Alphapo = Callable[..., Ran]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_of_the_table(name: str, alphapo: Alphapo) -> None:
    """Everything that a reproducer needs is in the one choice."""
    ran = alphapo("train", f"experiment={name}", "--print-config")
    assert ran.code == 0, ran.err
    cfg = yaml.safe_load(ran.out)
    alpha, beta, ratio, rate, model, data = PUBLISHED[name]
    o, d, t = cfg["objective"], cfg["data"], cfg["trainer"]
    assert (o["name"], o["shape"]["alpha"], o["shape"]["convention"]) == ("alphapo", alpha, "paper")
    assert (o["beta"], o["gamma_beta_ratio"], o["gamma"]) == (beta, ratio, None)
    assert (cfg["model"]["source"], cfg["model"]["path"], cfg["model"]["lora"]["r"]) == ("path", model, None)
    assert (d["source"], d["name"], d["split"], d["eval_split"]) == ("hub", f"princeton-nlp/{data}", "train", "test")
    assert (d["max_length"], d["max_prompt_length"]) == (2048, 1800)
    assert (d["completion_includes_header"], d["second_end_token"]) == (True, True)
    assert t["per_device_train_batch_size"] * t["gradient_accumulation_steps"] == 128
    assert (t["learning_rate"], t["num_train_epochs"], t["lr_scheduler_type"], t["warmup_ratio"]) == (
        rate,
        1,
        "cosine",
        0.1,
    )
    assert (t["bf16"], t["gradient_checkpointing"], t["use_cpu"], t["threads"]) == (True, True, False, None)
    assert cfg["seed"] == 42


def test_adapters_over_a_quantised_base_differ_in_nothing_else() -> None:
    """Model, dtype and adapters, and ten times the learning rate; all else is the published row."""

    def settings(name: str) -> dict[str, object]:
        line = read_line([f"experiment={name}"], Sources())
        return flat(asdict(compose("train", TrainConfig, [line], Sources())))

    whole, adapters = settings("alphapo_llama3_instruct"), settings("alphapo_llama3_instruct_qlora")
    assert {key: value for key, value in adapters.items() if whole[key] != value} == {
        "model.quantization": "nf4", "model.dtype": "bfloat16", "model.lora.r": 16, "model.lora.alpha": 16,
        "trainer.learning_rate": 1e-5,
    }  # fmt: skip


def flat(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    """The values of a nested dictionary by their dotted keys."""
    found: dict[str, object] = {}
    for key, value in tree.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found


@pytest.mark.parametrize(
    ("choice", "temperature", "longest"),
    [("alpaca_eval_mistral", 0.5, 2048), ("alpaca_eval_llama3", 0.9, 4096), ("alpaca_eval_gemma2", 0.5, 4096)],
)
def test_the_decoding_of_alpaca_eval(choice: str, temperature: float, longest: int) -> None:
    line = read_line([f"generation={choice}", "generation.backend=vllm"], Sources())
    found = compose("generate", GenerateConfig, [line], Sources()).generation
    assert (found.temperature, found.top_p, found.max_new_tokens) == (temperature, 1.0, longest)
    assert (found.backend, found.samples) == ("vllm", 1)


@pytest.mark.slow
def test_on_rows_like_those_of_the_data_sets(alphapo: Alphapo, scratch: Ran, tmp_path: Path) -> None:
    """A prompt as text beside whole message lists, and the sampled answers with their scores, which are not read."""

    def rows(n: int, step: int) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for i, row in enumerate(plain_rows(n * step)[::step]):
            user = {"role": "user", "content": row["prompt"]}
            sides = {side: [user, {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
            found.append({"prompt_id": str(i), "prompt": row["prompt"], **sides,
                          "all_generated_responses": [row["chosen"], row["rejected"], "x"],
                          "all_rm_scores": [0.3, 0.1, 0.2]})  # fmt: skip
        return found

    files = [
        write_rows(tmp_path / f"{name}.jsonl", rows(n, step)) for name, n, step in (("train", 8, 1), ("test", 6, 3))
    ]
    ran = alphapo(
        "train", "experiment=alphapo_llama3_instruct_armorm", f"model.path={scratch.path}", "data=jsonl",
        f"data.path={files[0]}", f"data.eval_path={files[1]}", "trainer.use_cpu=true", "trainer.max_steps=1",
        "trainer.gradient_accumulation_steps=2", "tracking.mode=disabled", "tracking.pictures=false",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    data = json.loads((ran.path / "manifest.json").read_text())["data"]
    assert (data["form"], data["train_pairs"], data["probe_pairs"]) == ("messages", 8, 6)
