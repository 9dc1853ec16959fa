"""All that only a CUDA device can show, in one command: the tests marked gpu, then training steps beside TRL's.

    python benchmarks/gpu.py                     # or: make gpu
    python benchmarks/gpu.py --skip-tests --batch 2 --steps 8

The benchmark is `train_vs_trl.py --device cuda --dtype bfloat16`: a random Llama of a billion parameters, AlphaPO, pairs behind
prompts of about 1,900 tokens (sequences of 2,048), AdamW in float32 under bf16 autocast on both sides; a second time with
Liger's kernels in TRL where Liger is installed. It prints a table for RESULTS.md. MFU is what a step without padding has to
compute, over what the device's data sheet says of dense bf16 products in the same time; "of GEMM limit" compares with what
products of a layer's size reach here. Both sides share the device while they take turns: 32 GB of weights and moments, and
the larger one's activations (about 30 GB with 4 pairs a step).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import processes

# Dense bf16 products, 10^12 floating-point operations per second, of NVIDIA's data sheets. By a part of the device's name.
PEAK = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0,
    "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--skip-tests", action="store_true")
    p.add_argument("--skip-benchmark", action="store_true")
    p.add_argument("--batch", type=int, default=4, help="pairs a step")
    p.add_argument("--steps", type=int, default=6, help="measured steps")
    p.add_argument("--length", type=int, default=1900, help="prompt tokens, an eighth more or less")
    p.add_argument("--out", type=Path, default=Path("build/gpu"), help="directory of the table and the figures as JSON")
    args = p.parse_args()
    if not _cuda():
        raise SystemExit(
            "no CUDA device: torch.cuda.is_available() is false here, and everything in this command needs one"
        )
    failed = False
    if not args.skip_tests:
        tests = [sys.executable, "-m", "pytest", "-m", "gpu", "tests"]
        failed = subprocess.run(tests, cwd=processes.ROOT).returncode != 0
    if not args.skip_benchmark:
        benchmark(args)
    raise SystemExit(failed)


def benchmark(args: argparse.Namespace) -> None:
    """Measure, print and write the table."""
    args.out.mkdir(parents=True, exist_ok=True)
    variants: dict[str, list[str]] = {"TRL": []}
    if importlib.util.find_spec("liger_kernel"):
        variants["TRL with Liger"] = ["--liger"]
    else:
        print("Liger is not installed: no comparison with its kernels", file=sys.stderr)
    line = [
        "--device=cuda", "--dtype=bfloat16", "--cases=long/32k", "--threads=1", f"--length={args.length}",
        f"--batch={args.batch}", f"--steps={args.steps}",
    ]  # fmt: skip
    rows = []
    for name, more in variants.items():
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "rows.json"
            command = [sys.executable, str(processes.HERE / "train_vs_trl.py"), *line, *more, "--json", str(file)]
            if subprocess.run(command, env=processes.environment(1)).returncode:
                print(f"{name}: failed, see above; with too little memory, try --batch 2", file=sys.stderr)
                continue
            (row,) = json.loads(file.read_text())
        rows.append({"against": name, **row})
    if not rows:
        raise SystemExit("no side by side measurement ended")
    text = table(rows)
    (args.out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    (args.out / "table.md").write_text(text)
    print(f"{processes.machine()}, {rows[0]['device_name']}\n\n{text}\nwritten to {args.out}/")


def table(rows: list[dict[str, Any]]) -> str:
    """RESULTS.md's table: a line for each side of each comparison."""
    lines = [
        "| trainer | ms a step | packed tokens/s | pairs/s | MFU | of GEMM limit | peak MiB | speed | memory |",
        "|" + " --- |" * 9,
    ]
    for row in rows:
        pairs, positions = row["pairs_a_step"], row["positions_per_step"]
        for name, side in ((row["against"], "trl"), ("alphapo", "our")):
            seconds = row[f"{side}_wall_s"]
            peak = peak_of(row["device_name"])
            mfu = "-" if peak is None else f"{row['flops_per_step'] / seconds / peak:.1%}"
            ratios = (
                ("", "") if side == "trl" else (f"{row['wall_ratio']:.2f} x", f"{row['peak_rss_ratio']:.2f} x less")
            )
            cells = (
                name, f"{1000 * seconds:.0f}", f"{positions / seconds:,.0f}", f"{pairs / seconds:.2f}", mfu,
                f"{row[f'{side}_share_of_limit']:.0%}", f"{row[f'{side}_peak_mib']:,.0f}", *ratios,
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def peak_of(device: str) -> float | None:
    """Floating-point operations per second by the data sheet; None for a device that is not in the table."""
    return next((1e12 * value for part, value in PEAK.items() if part in device), None)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
