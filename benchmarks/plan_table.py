"""The table of docs/scaling.md: which setting for which model and hardware, by `alphapo plan`, with memory by part.

    python benchmarks/plan_table.py                      # all rows
    python benchmarks/plan_table.py --models 8B --hardware 24

Models are the published shapes as a config.json, without weights; every pair is as long as the published settings allow
(a prompt of 1,800 tokens, answers up to 2,048). Nothing here has run on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0, "max_position_embeddings": 32768, "dtype": "bfloat16",
}  # fmt: skip
# Published shapes: the config.json of Qwen2.5-0.5B-Instruct, Meta-Llama-3-8B-Instruct, Qwen2.5-14B-Instruct.
MODELS: dict[str, dict[str, Any]] = {
    "0.5B": _QWEN | {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "8B": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "max_position_embeddings": 8192, "dtype": "bfloat16", "tie_word_embeddings": False,
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256,
    },
    "14B": _QWEN | {
        "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
        "intermediate_size": 13824, "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip
CARDS = {
    "24": "one card of 24 GB",
    "80": "one card of 80 GB",
    "8x80": "8 cards of 80 GB",
    "2x8x80": "2 nodes of 8 cards",
}
QLORA = ("model.lora.r=16", "model.quantization=nf4", "model.dtype=bfloat16")
LORA = ("model.lora.r=16", "model.dtype=bfloat16")
PLAIN = ("trainer.gradient_checkpointing=false",)
FSDP, HYBRID = ("sharding.mode=fsdp",), ("sharding.mode=fsdp", "sharding.shard_size=8")
# (model, hardware) -> what is typed beside the published settings; how training is called
ROWS: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("0.5B", "24"): ("full", ()),
    ("0.5B", "80"): ("full", PLAIN),
    ("0.5B", "8x80"): ("full, DDP", PLAIN),
    ("0.5B", "2x8x80"): ("full, DDP", PLAIN),
    ("8B", "24"): ("QLoRA", QLORA),
    ("8B", "80"): ("LoRA", LORA),
    ("8B", "8x80"): ("full, FSDP", FSDP),
    ("8B", "2x8x80"): ("full, hybrid FSDP", HYBRID),
    ("14B", "24"): ("QLoRA", QLORA),
    ("14B", "80"): ("LoRA", LORA),
    ("14B", "8x80"): ("full, FSDP", FSDP),
    ("14B", "2x8x80"): ("full, hybrid FSDP", HYBRID),
}
PROCESSES = {"24": 1, "80": 1, "8x80": 8, "2x8x80": 16}
HEADER = "| model | hardware | | beside the published settings | weights | gradients, optimizer | activations, logits | rest | peak |"


def write_pairs(file: Path, count: int = 320) -> None:
    """Pairs of random words that are longer than the published settings allow."""
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 7))) for _ in range(6000)]

    def text(n: int) -> str:
        return " ".join(rng.choice(words) for _ in range(n))

    rows = ({"prompt": text(1900), "chosen": text(400), "rejected": text(400)} for _ in range(count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def planned(model: str, hardware: str, folder: Path) -> dict[str, Any]:
    """The plan of a row, as `alphapo plan train --json` has it."""
    from alphapo_cli.cli.main import app

    shape, pairs, found = folder / model, folder / "pairs.jsonl", folder / "plan.json"
    shape.mkdir(exist_ok=True)
    (shape / "config.json").write_text(json.dumps(MODELS[model]))
    if not pairs.exists():
        write_pairs(pairs)
    accumulation = 64 // PROCESSES[hardware]
    line = [
        "plan", "train", "experiment=alphapo_llama3_instruct", f"model.path={shape}", "data=jsonl", f"data.path={pairs}",
        "data.eval_path=null", "data.format=auto", f"trainer.gradient_accumulation_steps={accumulation}", f"run.dir={folder / 'run'}",
        "tracking=disabled", *ROWS[model, hardware][1], "--memory", f"{hardware.rpartition('x')[2]}GB",
        "--processes", str(PROCESSES[hardware]), "--json", str(found),
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            app(line, standalone_mode=False)
        except SystemExit as ended:
            if ended.code:
                raise SystemExit(said.getvalue()) from ended
    plan: dict[str, Any] = json.loads(found.read_text())["memory"]
    return plan


def row(model: str, hardware: str, memory: dict[str, Any]) -> str:
    """A row of the table, in GB: what is alive in the phase that takes most."""
    parts = max(memory["phases"], key=lambda phase: phase["bytes"])["parts"]
    named = {
        "weights": ("weights",), "updates": ("gradients", "optimizer", "gradients as they grow, and activations"),
        "activations": ("activations", "batch"),
    }  # fmt: skip
    sizes = {column: sum(parts.get(name, 0) for name in names) for column, names in named.items()}
    if "gradients as they grow, and activations" in parts:  # a step of one micro-batch
        sizes["activations"] = parts["gradients as they grow, and activations"] - memory["parts"]["gradients"]
        sizes["updates"] -= sizes["activations"]
    rest = memory["peak"] - sum(sizes.values())
    how, settings = ROWS[model, hardware]
    figures = " | ".join(f"{size / 1e9:.1f}" for size in [*sizes.values(), rest, memory["peak"]])
    typed = f"`{' '.join(settings)}`" if settings else ""
    fits = "" if memory["fits"] else " (does not fit)"
    return f"| {model} | {CARDS[hardware]} | {how} | {typed} | {figures}{fits} |"


def main() -> None:
    """Print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", default=",".join(MODELS))
    p.add_argument("--hardware", default=",".join(CARDS))
    args = p.parse_args()
    print(f"{HEADER}\n|{' --- |' * 9}", flush=True)
    with tempfile.TemporaryDirectory(prefix="alphapo-bench-") as scratch:
        os.environ.setdefault("ALPHAPO_CACHE", f"{scratch}/cache")
        for model, hardware in ROWS:
            if model in args.models.split(",") and hardware in args.hardware.split(","):
                began = time.process_time()
                print(row(model, hardware, planned(model, hardware, Path(scratch))), flush=True)
                print(f"{time.process_time() - began:.0f} CPU seconds", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
