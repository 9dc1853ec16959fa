"""What the tests of `generate` share: reading outputs, and a LoRA run with its merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import BARE, TINY, run_here


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def outputs(folder: Path, name: str = "model_outputs.json") -> list[str]:
    return [row["output"] for row in load(folder / name)]


def train_lora(folder: Path, cache: Path) -> Path:
    """A LoRA run of the embedded world that has moved away from its base."""
    line = ("train", *TINY, *BARE, "model.lora.r=4", "trainer.max_steps=8", "trainer.learning_rate=1e-2")
    ran = run_here(line, folder, cache)
    assert ran.code == 0, ran.err
    return ran.path


def merge(run: Path, to: Path) -> Path:
    """The run's adapter merged into its base by peft itself, saved as a plain model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = load(run / "model" / "adapter_config.json")["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "model").merge_and_unload()
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(run / "model").save_pretrained(to)
    return to


def chat_model(folder: Path, *, dtype: str = "float32", template: str | None = None, **config: Any) -> Path:
    """A random Llama with the ChatML tokenizer of the data tests (or with another template), saved as `dtype`.

    Its weights are large, so that it says something else to every prompt; it has heads of 32, the smallest of vLLM's.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from tests.data import data_tokenizers as kinds

    disable_progress_bar()
    tokenizer = kinds.chatml() if template is None else kinds.with_template(template)
    shape = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 256, "initializer_range": 0.3, "bos_token_id": None, "pad_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **{**shape, **config}))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes a key away."""
    stored = {**load(file), **values}
    file.write_text(json.dumps({key: value for key, value in stored.items() if value is not None}))
