"""The benchmarks run, and what they compare is the same: on a model and on data that are too small to time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEYS = {
    "case", "threads", "dtype", "trl_cpu_s", "our_cpu_s", "cpu_ratio", "wall_ratio", "peak_rss_ratio", "loss_max_diff",
    "grad_rel_l2",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=8192, **size)).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["alphapo", "dpo"])
def test_steps_of_both_sides_have_the_same_loss_and_gradient(objective: str, tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Name {i} things", "chosen": "one two " * i, "rejected": f"{i} three"} for i in range(1, 25)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["--cases=short/8k", "--threads=1", "--steps=1", f"--objective={objective}"]
    line += [f"--model={tiny_llama}", f"--data={data}"]
    ran = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "train_vs_trl.py", *line, "--json", tmp_path / "rows.json"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row.keys() >= KEYS
    assert row["case"] in ran.stdout
    # Losses near 1 in float32, and gradients to its round-off over a few thousand tokens.
    assert row["loss_max_diff"] < 2e-5
    assert row["grad_rel_l2"] < 2e-5
