"""Peak memory as `alphapo plan` predicts it and as training takes it, side by side, on random Llamas on the CPU.

    python benchmarks/plan_memory.py                     # 111 M parameters; minutes, and 4 GB of memory

Measured: the highest resident memory (VmHWM) of a process that trains two steps, above what it held when everything was
imported (after a training of a tiny model). malloc returns freed memory to the system (mallopt; outside of this
benchmark: MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536), or the peak would hold what is not in use.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

_TRIM, _MMAP = -1, -3  # of mallopt
_SMALL = 1 << 16
ctypes.CDLL("libc.so.6").mallopt(_MMAP, _SMALL)
ctypes.CDLL("libc.so.6").mallopt(_TRIM, _SMALL)

COMMON = (
    "trainer.max_steps=2", "trainer.learning_rate=1e-5", "probe.pairs=2", "probe.batch_size=1", "probe.samples=0",
    "tracking=disabled",
    "trainer.threads=1", "trainer.use_cpu=true", "data=jsonl", "data.limit=14",
)  # fmt: skip
# name -> overrides; those of the first five are the published comparison, the others come with --all
CASES = {
    "full": ("objective=alphapo", "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2"),
    "dpo": ("objective=dpo", "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=1"),
    "lora": ("model.lora.r=16", "trainer.per_device_train_batch_size=3", "trainer.gradient_accumulation_steps=1"),
    "gradient checkpointing": (
        "trainer.gradient_checkpointing=true", "trainer.per_device_train_batch_size=3",
        "trainer.gradient_accumulation_steps=2",
    ),
    "tokens_per_batch": (
        "trainer.tokens_per_batch=700", "trainer.per_device_train_batch_size=4", "trainer.gradient_accumulation_steps=1",
    ),
    "padded": ("layout=padded", "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2"),
    "moving reference": (
        "objective=tr_dpo", "trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=2",
    ),
    "bfloat16 autocast": (
        "trainer.bf16=true", "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2",
    ),
    "bfloat16 weights": (
        "model.dtype=bfloat16", "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2",
    ),
}  # fmt: skip
FIRST = 5
TINY = ("model=from_scratch", "model.scratch.hidden_size=32", "model.scratch.num_hidden_layers=1",
        "trainer.gradient_accumulation_steps=1")  # fmt: skip


def write_pairs(file: Path, count: int) -> None:
    """Pairs of random words, some two hundred tokens each."""
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 7))) for _ in range(6000)]

    def text(n: int) -> str:
        return " ".join(rng.choice(words) for _ in range(n))

    rows = ({"prompt": text(60), "chosen": text(rng.randint(40, 90)), "rejected": text(rng.randint(40, 90))}
            for _ in range(count))  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_model(folder: Path, hidden: int, layers: int, pairs: Path) -> None:
    """A random Llama with a tokenizer trained on the pairs."""
    from alphapo_cli.config.schema import ScratchConfig
    from alphapo_cli.modeling.loading import from_scratch

    shape = ScratchConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=max(1, hidden // 64))
    model, tokenizer = from_scratch(shape, pairs.read_text().splitlines(), seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def alphapo(*line: str) -> None:
    from alphapo_cli.cli.main import app

    app(list(line), standalone_mode=False)


def status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith(f"{name}:"):
            return int(text.split()[1]) * 1024
    raise KeyError(name)


def forked(work: Any) -> Any:
    """The result of `work()` in a fork of this process, which has imported everything."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            result = json.dumps(work())
            with os.fdopen(write, "w") as pipe:
                pipe.write(result)
            code = 0
        except BaseException:  # a fork must not go on as its parent
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, ended = os.waitpid(child, 0)
    if ended:
        raise SystemExit("a case failed; see above")
    return json.loads(text)


def trained(line: list[str]) -> int:
    """Bytes above the imported process that a training takes at its highest."""
    imported = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts at what is resident now
    alphapo("train", *line)
    return status("VmHWM") - imported


def planned(line: list[str], file: Path) -> dict[str, Any]:
    alphapo("plan", "train", *line, "--json", str(file))
    found: dict[str, Any] = json.loads(file.read_text())["memory"]
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--hidden", type=int, default=1024)
    p.add_argument("--layers", type=int, default=8)
    p.add_argument("--cases", default=None, help="comma list of: " + ", ".join(CASES))
    p.add_argument("--all", action="store_true", help="the further cases as well")
    p.add_argument("--json", default=None)
    args = p.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    names = list(CASES) if args.all else args.cases.split(",") if args.cases else list(CASES)[:FIRST]
    with tempfile.TemporaryDirectory(prefix="alphapo-bench-") as scratch:
        rows = compared(names, args.hidden, args.layers, Path(scratch))
    print("| case | predicted MiB | measured MiB | off | highest phase |")
    print("|" + " --- |" * 5)
    for row in rows:
        print(
            f"| {row['case']} | {row['predicted'] / 2**20:,.0f} | {row['measured'] / 2**20:,.0f} | {row['off']:+.1%} | "
            f"{row['phase']} |"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(rows) + "\n")


def compared(names: list[str], hidden: int, layers: int, folder: Path) -> list[dict[str, Any]]:
    os.environ.setdefault("ALPHAPO_CACHE", str(folder / "cache"))
    pairs, model = folder / "pairs.jsonl", folder / "model"
    write_pairs(pairs, 100)  # as many for the tokenizer; few are trained on
    data = f"data.path={pairs}"
    import torch

    torch.set_num_threads(1)  # a fork has no other threads
    silence = os.dup(1)
    os.dup2(2, 1)  # the commands' own results
    save_model(model, hidden, layers, pairs)
    alphapo("train", *COMMON, *TINY, data, f"run.dir={folder / 'tiny'}")
    alphapo("plan", "train", *COMMON, *TINY, data, f"run.dir={folder / 'tiny-plan'}")
    rows = []
    for number, name in enumerate(names):
        line = [*COMMON, f"model.path={model}", data, *CASES[name], f"run.dir={folder / str(number)}"]
        found = forked(lambda line=line: planned(line, folder / "plan.json"))
        measured = forked(lambda line=line: trained(line))
        predicted = found["peak"]
        phase = max(found["phases"], key=lambda p: p["bytes"])["name"]
        rows.append(
            {
                "case": name,
                "predicted": predicted,
                "measured": measured,
                "off": predicted / measured - 1,
                "phase": phase,
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    os.dup2(silence, 1)
    return rows


if __name__ == "__main__":
    main()
