"""Tokens a second of both backends of `alphapo generate`, side by side, on a random Llama of 20M parameters.

    python benchmarks/generate.py                    # 805 prompts x 128 tokens, as in AlpacaEval's list
    python benchmarks/generate.py --prompts 64       # a quick look
    python benchmarks/generate.py --rounds 4         # in turns, where other work shares the machine

Each backend runs as a user runs it, in a process of its own, on the same prompts and threads (OMP_NUM_THREADS). The
model's weights are random, so that practically every answer has the full length. `start` is what passes before the
first token: reading weights, and for vLLM imports and the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def make_model(folder: Path, rng: random.Random) -> int:
    """A byte-level BPE of 8,192 tokens and a Llama of about 20M random parameters. Returns the number of parameters."""
    from alphapo_cli.config.schema import ScratchConfig
    from alphapo_cli.modeling.loading import from_scratch
    from alphapo_cli.modeling.saving import save_model

    texts = [words(rng, 400) for _ in range(400)]
    shape = ScratchConfig(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=10, num_attention_heads=6,
        max_position_embeddings=1024, vocab_size=8192,
    )  # fmt: skip
    model, tokenizer = from_scratch(shape, texts, seed=0)
    save_model(model, tokenizer, folder, end_id=tokenizer.eos_token_id)
    return int(sum(p.numel() for p in model.parameters()))


def words(rng: random.Random, count: int) -> str:
    """Pseudo-words of two to four syllables."""
    return " ".join(
        "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 4)))
        for _ in range(count)
    )


def measure(backend: str, model: Path, prompts: Path, out: Path, tokens: int) -> dict[str, Any]:
    """The summary of one generation."""
    line = [
        sys.executable, "-m", "alphapo_cli", "generate", str(model), f"generation={backend}", f"data.path={prompts}",
        f"generation.max_new_tokens={tokens}", "generation.batch_size=64", "--out", str(out),
    ]  # fmt: skip
    package = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    subprocess.run(line, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": path})
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=805)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument(
        "--rounds", type=int, default=1, help="parts of the prompts; each goes to every backend in turn"
    )
    parser.add_argument("--backends", nargs="+", default=["transformers", "vllm"])
    chosen = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="alphapo-bench-") as scratch:
        folder = Path(scratch)
        parameters = make_model(folder / "model", rng)
        # AlpacaEval's instructions have a median of about thirty words.
        rows = [{"instruction": words(rng, max(3, round(rng.lognormvariate(3.0, 0.7))))} for _ in range(chosen.prompts)]
        print(f"{parameters / 1e6:.1f}M parameters, {chosen.prompts} prompts x {chosen.tokens} tokens, "
              f"{os.environ.get('OMP_NUM_THREADS', 'default')} threads")  # fmt: skip
        costs: dict[str, list[dict[str, Any]]] = {backend: [] for backend in chosen.backends}
        for number in range(chosen.rounds):
            file = folder / f"prompts-{number}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows[number :: chosen.rounds]))
            for backend, found in costs.items():
                out = folder / f"{backend}-{number}"
                found.append(measure(backend, folder / "model", file, out, chosen.tokens)["cost"])
        speeds = {}
        for backend, found in costs.items():
            tokens, seconds = (sum(cost[key] for cost in found) for key in ("tokens", "generate_seconds"))
            start = min(cost["start_seconds"] for cost in found)
            speeds[backend] = tokens / seconds
            print(f"{backend:>14}: {speeds[backend]:8,.0f} tokens/s, {tokens:,} tokens in {seconds:.1f} s, "
                  f"start {start:.1f} s")  # fmt: skip
        if len(speeds) == 2:
            first, second = speeds
            print(f"{second} / {first}: {speeds[second] / speeds[first]:.2f}")


if __name__ == "__main__":
    main()
