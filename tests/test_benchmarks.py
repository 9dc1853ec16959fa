"""The benchmarks run, and what they compare is the same: on a model and on data that are too small to time."""

from __future__ import annotations

import importlib
import json
import os
import re
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


@pytest.fixture(scope="module")
def few_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": f"Name {i} things", "chosen": "one two " * i, "rejected": f"{i} three"} for i in range(1, 25)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def benchmark(name: str, *line: object, cache: Path) -> str:
    """What it prints."""
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", *map(str, line)]
    environment = {**os.environ, "ALPHAPO_CACHE": str(cache)}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["alphapo", pytest.param("dpo", marks=pytest.mark.nightly)])
def test_steps_of_both_sides_have_the_same_loss_and_gradient(
    objective: str, tiny_llama: Path, few_pairs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    line = ["--cases=short/8k", "--threads=1", "--steps=1", "--batch=4", f"--objective={objective}"]
    line += [f"--model={tiny_llama}", f"--data={few_pairs}", f"--json={tmp_path / 'rows.json'}"]
    shown = benchmark("train_vs_trl", *line, cache=tmp_path)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row.keys() >= KEYS
    assert row["case"] in shown
    # Losses near 1 in float32, and gradients to its round-off over a few thousand tokens.
    assert row["loss_max_diff"] < 2e-5
    assert row["grad_rel_l2"] < 2e-5
    assert 0 < row["our_share_of_limit"] < 1
    assert row["pairs_a_step"] == 4


def test_the_table_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = importlib.import_module("gpu")
    row = {
        "against": "TRL with Liger", "device_name": "NVIDIA H100 80GB HBM3", "pairs_a_step": 4, "positions_per_step": 8000.0,
        "flops_per_step": 49.45e12, "trl_wall_s": 0.4, "our_wall_s": 0.1, "trl_share_of_limit": 0.2, "our_share_of_limit": 0.8,
        "trl_peak_mib": 60000.0, "our_peak_mib": 20000.0, "wall_ratio": 4.0, "peak_rss_ratio": 3.0,
    }  # fmt: skip
    theirs, ours = gpu.table([row]).splitlines()[2:]
    assert theirs == "| TRL with Liger | 400 | 20,000 | 10.00 | 12.5% | 20% | 60,000 |  |  |"
    assert ours == "| alphapo | 100 | 80,000 | 40.00 | 50.0% | 80% | 20,000 | 4.00 x | 3.00 x less |"
    assert "| - |" in gpu.table([row | {"device_name": "another"}])


@pytest.mark.nightly
def test_whole_processes_start_from_an_empty_cache(few_pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    users = tmp_path / "cache"
    line = ["--whole=2", "--cases=short/8k", "--threads=1", f"--data={few_pairs}", f"--json={tmp_path / 'rows.json'}"]
    benchmark("train_vs_trl", *line, cache=users)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row.keys() >= KEYS
    assert 0 < row["probe_share"] < 1
    assert not users.exists()


@pytest.mark.nightly
def test_a_sweep_is_compared_with_as_many_processes_as_it_has_cells(few_pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    line = ["--steps=1", "--trl-runs=1", f"--data={few_pairs}", f"--json={tmp_path / 'rows.json'}"]
    benchmark("sweep_cost", *line, cache=tmp_path)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["trl_cpu_s"] == pytest.approx(13 * row["trl_timed_cpu_s"])
    assert row["cpu_ratio"] == pytest.approx(row["trl_cpu_s"] / row["our_cpu_s"])


@pytest.mark.slow
@pytest.mark.parametrize("line", [("train_vs_trl", "--whole=2"), ("sweep_cost",)], ids=lambda line: line[0])
def test_long_prompts_are_not_measured_as_whole_processes(line: tuple[str, ...], tmp_path: Path) -> None:
    """Their files would have the short ones."""
    script, *more = line
    command = [sys.executable, ROOT / "benchmarks" / f"{script}.py", *more, "--cases=long/8k"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ran.returncode == 1
    assert re.match(r"--(whole|cases): .*\bshort\b", ran.stderr.splitlines()[-1])
    assert "Traceback" not in ran.stderr


@pytest.mark.nightly
def test_growth_counts_a_prompt_once_a_pair(tmp_path: Path) -> None:
    line = ["--lengths=16", "--answers=1,4", "--steps=1", f"--json={tmp_path / 'rows.json'}"]
    out = benchmark("growth", *line, cache=tmp_path)
    assert [row["tokens"] for row in json.loads((tmp_path / "rows.json").read_text())] == [16 + 64, 2 * (16 + 128)]
    assert "MiB per 1,000 tokens" in out


@pytest.mark.nightly
def test_precision_says_nothing_of_margins_that_are_zero(few_pairs: Path, tmp_path: Path) -> None:
    line = ["--steps=2", "--sft-steps=2", "--objectives=alphapo,dpo", f"--data={few_pairs}"]
    out = benchmark("precision", *line, cache=tmp_path)
    assert "| dpo | start | 0 | - | - |" in out  # a policy that is its own reference
    assert re.search(r"\| alphapo \| start \| [1-9]\d* \| \d+\.\d% ", out)


@pytest.mark.slow
def test_generated_pairs_have_the_lengths_of_the_real_ones() -> None:
    """Near the means of HH-RLHF's harmless-base test split under 8,192 tokens, though the longest are cut shorter."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        material = importlib.import_module("material")
    finally:
        sys.path.pop(0)
    pairs = material.tokens(material.texts(None, 2303))[1]
    means = [column.lengths.mean() for column in (pairs.prompt, pairs.chosen, pairs.rejected)]
    assert means == pytest.approx([126, 41, 52], rel=0.07)
