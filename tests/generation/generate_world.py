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
