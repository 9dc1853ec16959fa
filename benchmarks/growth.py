"""How speed and memory grow: tokens a second and peak memory of a training step over prompt length and answers a batch.

    python benchmarks/growth.py                              # prompts of 128, 512 and 2,048 tokens; 1, 2, 4 and 8 answers
    python benchmarks/growth.py --lengths 128,512 --answers 2,8 --dtype bfloat16

A batch of one answer is a supervised step (no rejected side); of 2, 4 and 8, one, two and four pairs. Answers have 64
tokens. Tokens are those of the texts: a prompt counts once a pair. Peak memory is resident memory beyond weights,
gradients and optimizer state, of a process for each cell; the last line fits it by a straight line in the tokens. The
model is a Llama; on a CPU, architectures that cap attention scores (Gemma 2) also need memory for a text's scores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import material
import numpy as np
import processes
import torch

ANSWER = 64  # tokens


def main() -> None:
    args = parser().parse_args()
    if args.cell:
        print(json.dumps(measure(args, *map(int, args.cell.split(",")))))
        return
    print(processes.machine(), file=sys.stderr)
    lengths, answers = ([int(x) for x in given.split(",")] for given in (args.lengths, args.answers))
    line = ["--vocabulary", args.vocabulary, "--dtype", args.dtype, "--layout", args.layout, f"--steps={args.steps}"]
    line.append(f"--logit-chunk-mb={args.logit_chunk_mb}")
    rows = []
    print("| prompt tokens | answers | tokens a step | tokens/s | MiB beyond the state |\n|" + " --- |" * 5)
    for length in lengths:
        for count in answers:
            row = processes.ask("growth.py", [*line, f"--cell={length},{count}"], args.threads)
            rows.append(row)
            print(
                f"| {length} | {count} | {row['tokens']} | {row['tokens_per_s']:.0f} | {row['peak_mib']:.0f} |",
                flush=True,
            )
    print()
    tokens, peaks = (np.array([row[key] for row in rows], float) for key in ("tokens", "peak_mib"))
    slope, base = np.polyfit(tokens, peaks, 1)
    off = np.abs(base + slope * tokens - peaks).max()
    print(f"peak = {base:.0f} MiB + {1000 * slope:.1f} MiB per 1,000 tokens; farthest from the line: {off:.0f} MiB")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lengths", default="128,512,2048", help="prompt tokens")
    p.add_argument("--answers", default="1,2,4,8", help="answers in a batch")
    p.add_argument("--vocabulary", default="8k", choices=tuple(material.VOCABULARIES))
    p.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast")
    p.add_argument("--layout", default="packed", choices=("packed", "padded"))
    p.add_argument("--logit-chunk-mb", type=float, default=64.0)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--steps", type=int, default=4, help="measured steps, after one that is not; the best counts")
    p.add_argument("--json", type=Path, metavar="FILE")
    p.add_argument("--cell", help=argparse.SUPPRESS)
    return p


def measure(args: argparse.Namespace, length: int, answers: int) -> dict[str, Any]:
    """One cell, in this process."""
    from alphapo_cli.config.compose import compose
    from alphapo_cli.config.overrides import Sources, read_line
    from alphapo_cli.config.schema import TrainConfig
    from alphapo_cli.data.token_pairs import TokenPair
    from alphapo_cli.modeling.layout.registry import LAYOUTS
    from alphapo_cli.modeling.policy import policy_of
    from alphapo_cli.objective.build import build

    torch.set_num_threads(args.threads)
    where = Sources()
    overrides = [
        "objective=sft" if answers == 1 else "objective=alphapo", f"layout={args.layout}", "trainer.use_cpu=true",
        f"trainer.bf16={str(args.dtype == 'bfloat16').lower()}", f"trainer.logit_chunk_mb={args.logit_chunk_mb}",
    ]  # fmt: skip
    cfg: TrainConfig = compose("train", TrainConfig, [read_line(overrides, where)], where)
    policy = policy_of(material.random_llama(material.VOCABULARIES[args.vocabulary], max_position_embeddings=4096), cfg)
    objective = build(cfg.objective)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, 8000, count)

    pairs = [TokenPair(ids(length), ids(ANSWER), ids(ANSWER), {}, i) for i in range(max(1, answers // 2))]
    batch = LAYOUTS[args.layout].collate(pairs, pad_id=0, sides=min(2, answers))

    def step() -> float:
        began = time.perf_counter()
        with policy.precision():
            scored = policy.score(batch).answers()
        objective(scored).loss.mean().backward()
        optimizer.step()
        took = time.perf_counter() - began
        optimizer.zero_grad(set_to_none=False)  # gradients belong to the state
        return took

    short = LAYOUTS[args.layout].collate([TokenPair(ids(4), ids(4), ids(4), {}, 0)], pad_id=0, sides=min(2, answers))
    objective(policy.score(short).answers()).loss.mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    state = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    step()
    peak = resident("VmHWM") - state
    tokens = len(pairs) * (length + min(2, answers) * ANSWER)
    return {
        "prompt": length, "answers": answers, "tokens": tokens, "peak_mib": peak, "dtype": args.dtype,
        "tokens_per_s": tokens / min(step() for _ in range(args.steps)), "threads": args.threads,
    }  # fmt: skip


def resident(key: str) -> float:
    """MiB, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


if __name__ == "__main__":
    main()
