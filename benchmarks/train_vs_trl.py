"""Training steps of alphapo and of TRL side by side: same pairs, model, loss and precision, in turns, step by step.

    python benchmarks/train_vs_trl.py                                  # short/8k and short/32k, one thread and two
    python benchmarks/train_vs_trl.py --cases long/8k --threads 1 --data harmless-base-test.jsonl.gz
    python benchmarks/train_vs_trl.py --objective dpo --cases short/8k # reference log-probs computed before
    python benchmarks/train_vs_trl.py --whole 300 --cases short/8k     # whole processes, start-up to saved model
    python benchmarks/train_vs_trl.py --device cuda --dtype bfloat16 --cases long/32k --length 1900 --liger

CPU time is that of the process, which a busy machine distorts less than wall time; ratios are TRL / ours. Measured steps
are some of a run of 300: its steps are cut into strata by the size of their padded batches, and the most ordinary one of
each is taken. (A few batches at random need 3 to 5 times as many positions padded as packed; all 300 need 3.9.) Peak
memory is that of a process which runs one side only, on its largest batch of the 300. The share of the GEMM limit is what a
step without padding has to compute, over what a matrix product of a layer's size reaches here in the same time.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import material
import numpy as np
import processes
import torch
import trainers

from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.modeling.layout import packed

RUN = 300  # steps of the run that measured ones are taken from


def main() -> None:
    args = parser().parse_args()
    if args.role:
        print(json.dumps(ROLES[args.role](args)))
        return
    print(processes.machine(), file=sys.stderr)
    rows = []
    if args.whole and (args.model or args.device != "cpu" or "long" in args.cases or args.batch != trainers.BATCH):
        raise SystemExit("--whole: short cases on the CPU, a random Llama and 8 pairs a step only; leave the rest out")
    for name in args.cases.split(","):
        material.case(name)
        for threads in map(int, args.threads.split(",")):
            row = whole(args, name, threads) if args.whole else steps(args, name, threads)
            rows.append(row)
            print_row(row, first=len(rows) == 1)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cases", default="short/8k,short/32k", help="of short/8k, short/32k, long/8k, long/32k")
    p.add_argument("--threads", default="1,2", help="torch threads, one run each")
    p.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16: autocast, both sides")
    p.add_argument("--objective", default="alphapo", choices=tuple(trainers.OURS))
    p.add_argument("--layout", default="packed", choices=("packed", "padded"), help="ours")
    p.add_argument("--model", help="a saved Llama, Mistral, Qwen or Gemma instead of a random Llama")
    p.add_argument("--data", type=Path, help="preference pairs instead of generated ones")
    p.add_argument("--length", type=int, default=material.LONG, help="prompt tokens of long cases")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cuda: a Llama of a billion parameters")
    p.add_argument("--liger", action="store_true", help="TRL with the fused kernels of Liger (to be installed; CUDA)")
    p.add_argument("--batch", type=int, default=trainers.BATCH, help="pairs a step")
    p.add_argument("--steps", type=int, default=4, help="measured steps, after one that is not")
    p.add_argument("--whole", type=int, metavar="STEPS", help="measure whole processes that train so many steps")
    p.add_argument("--json", type=Path, metavar="FILE")
    p.add_argument("--role", choices=tuple(ROLES), help=argparse.SUPPRESS)
    return p


def steps(args: argparse.Namespace, name: str, threads: int) -> dict[str, Any]:
    """One row: both sides in turns in one process, then each in a process of its own for its memory."""
    line = [
        "--cases", name, "--threads", str(threads), "--dtype", args.dtype, "--objective", args.objective,
        "--layout", args.layout, "--device", args.device, f"--length={args.length}", f"--batch={args.batch}", *["--liger"] * args.liger,
    ]  # fmt: skip
    line += [f"--{key}={value}" for key in ("model", "data") if (value := getattr(args, key))]
    turns = processes.ask("train_vs_trl.py", [*line, "--role=turns", f"--steps={args.steps}"], threads)
    peaks = {
        side: processes.ask("train_vs_trl.py", [*line, f"--role={side}", f"--steps={args.steps}"], threads)["peak_mib"]
        for side in ("trl", "ours")
    }
    t, n = turns["totals"], args.steps
    clock = "wall" if args.device == "cuda" else "cpu"
    return {
        "case": name, "threads": threads, "dtype": args.dtype,
        "trl_cpu_s": t["trl"]["cpu"] / n, "our_cpu_s": t["ours"]["cpu"] / n,
        "cpu_ratio": t["trl"]["cpu"] / t["ours"]["cpu"], "wall_ratio": t["trl"]["wall"] / t["ours"]["wall"],
        "peak_rss_ratio": peaks["trl"] / peaks["ours"],
        "loss_max_diff": turns["loss_max_diff"], "grad_rel_l2": turns["grad_rel_l2"],
        "objective": args.objective, "layout": args.layout, "device": args.device,
        "trl_wall_s": t["trl"]["wall"] / n, "our_wall_s": t["ours"]["wall"] / n,
        "trl_peak_mib": peaks["trl"], "our_peak_mib": peaks["ours"],
        "trl_share_of_limit": turns["flops"] / t["trl"][clock] / turns["limit"],
        "our_share_of_limit": turns["flops"] / t["ours"][clock] / turns["limit"],
        "positions_per_step": turns["positions"] / n, "our_positions_per_s": turns["positions"] / t["ours"]["wall"],
        "pairs_a_step": args.batch, "flops_per_step": turns["flops"] / n, "device_name": turns["device_name"],
    }  # fmt: skip


def load(args: argparse.Namespace) -> tuple[Any, TokenPairs, Any]:
    """(tokenizer, pairs, a function that makes the model)."""
    case = material.case(args.cases)
    tokenizer, pairs = material.tokens(material.texts(args.data, RUN * args.batch))
    if case.long:
        pairs = material.lengthened(pairs, args.length)
    if args.model:
        from transformers import AutoModelForCausalLM

        return tokenizer, pairs, lambda: AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    size = material.BILLION if args.device == "cuda" else None
    return tokenizer, pairs, lambda: material.random_llama(case.vocabulary, size)


def sides(args: argparse.Namespace, names: tuple[str, ...], folder: str) -> dict[str, trainers.Side]:
    torch.set_num_threads(int(args.threads))
    tokenizer, pairs, model = load(args)
    settings: dict[str, Any] = {
        "objective": args.objective, "bf16": args.dtype == "bfloat16", "device": args.device, "folder": folder,
        "pairs_a_step": args.batch,
    }  # fmt: skip
    if args.objective == "dpo":
        # Any numbers cost the same; these are near those of random weights.
        lengths = torch.tensor([pairs.chosen.lengths.tolist(), pairs.rejected.lengths.tolist()])
        settings["reference"] = (-9.0 * lengths).float().numpy()
    made = {}
    for name in names:
        if name == "trl":
            made[name] = trainers.trl(model(), tokenizer, pairs, RUN, **settings, use_liger_kernel=args.liger)
        else:
            made[name] = trainers.ours(model(), pairs, RUN, layout=args.layout, **settings)
    args.pairs, args.plan = pairs, trainers.schedule(pairs, RUN, args.batch)
    return made


def sizes(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Token positions of each step's batch, [RUN] each: padded to its longest answer, and packed."""
    one, other = args.pairs.answers
    batches = [args.plan.pairs(i) for i in range(RUN)]
    longest = args.pairs.prompt.lengths + np.maximum(one.lengths, other.lengths)
    together = args.pairs.prompt.lengths + one.lengths + other.lengths
    return np.array([2 * len(b) * longest[b].max() for b in batches]), np.array([together[b].sum() for b in batches])


def sample(args: argparse.Namespace) -> list[int]:
    """Steps to run: a first one that is not measured, then of each stratum the one nearest to its mean sizes."""
    both = np.stack([size / size.mean() for size in sizes(args)], axis=1)
    measured = []
    for stratum in np.array_split(np.argsort(both[:, 0], kind="stable"), args.steps):
        away = np.abs(both[stratum] - both[stratum].mean(axis=0)).sum(axis=1)
        measured.append(int(stratum[np.argmin(away)]))
    return [measured[len(measured) // 2], *measured]


def turns(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns; the gradient of the first batch from equal weights, then losses of all."""
    with tempfile.TemporaryDirectory() as folder:
        both = sides(args, ("trl", "ours"), folder)
        order = sample(args)
        shape = shape_of(args)
        layer = (shape["hidden_size"], shape["intermediate_size"])
        rate = functools.partial(processes.matmul_rate, getattr(torch, args.dtype), args.device, size=layer)
        first = {name: side.gradients(order[0]) for name, side in both.items()}
        truth = first["trl"][1].double()
        error = ((first["ours"][1].double() - truth).norm() / truth.norm()).item()
        difference = abs(first["ours"][0] - first["trl"][0])
        totals = {name: {"cpu": 0.0, "wall": 0.0} for name in both}
        limit = rate()
        flops = positions = 0.0
        for turn, i in enumerate(order):
            losses = {}
            for name in both if turn % 2 else reversed(both):  # neither always comes second
                wall, cpu = time.perf_counter(), time.process_time()
                losses[name] = both[name].step(i)
                if turn:
                    totals[name]["cpu"] += time.process_time() - cpu
                    totals[name]["wall"] += time.perf_counter() - wall
            difference = max(difference, abs(losses["ours"] - losses["trl"]))
            if turn:
                need, size = needed(args, i)
                flops, positions = flops + need, positions + size
        limit = max(limit, rate())
    return {
        "totals": totals, "loss_max_diff": difference, "grad_rel_l2": error, "limit": limit, "flops": flops,
        "positions": positions, "device_name": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
    }  # fmt: skip


def needed(args: argparse.Namespace, step: int) -> tuple[float, int]:
    """(floating-point operations, positions) of a step without padding, prompts once and logits where they are read."""
    batch = packed.collate([args.pairs[int(i)] for i in args.plan.pairs(step)], pad_id=0)
    assert batch.packing is not None
    shape = shape_of(args)
    hidden, layers, wide = shape["hidden_size"], shape["num_hidden_layers"], shape["query_size"]
    positions, read = batch.input_ids.numel(), len(batch.packing.rows)
    keys, others = 2 * hidden * shape["key_size"], 2 * hidden * wide + 3 * hidden * shape["intermediate_size"]
    weights = positions * (layers * keys + (layers - 1) * others) + read * others  # the last layer where it is read
    area = [s.shared**2 / 2 + sum(n * (s.shared + n / 2) for n in s.own) for s in batch.packing.segments]
    unread = [s.unread**2 / 2 for s in batch.packing.segments]
    head = len(batch.tokens.ids) * hidden * shape["vocab_size"]
    return 6 * (weights + head) + 3 * 4 * wide * (layers * sum(area) - sum(unread)), positions


@functools.cache
def _config(model: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model)


def shape_of(args: argparse.Namespace) -> dict[str, int]:
    """Sizes of the model that is measured: `query_size` and `key_size` are heads times their dimension."""
    if not args.model:
        size = material.BILLION if args.device == "cuda" else material.SIZE
        more = {"query_size": size["hidden_size"], "key_size": size["hidden_size"]}
        return {**size, **more, "vocab_size": material.case(args.cases).vocabulary}
    c = _config(args.model)
    dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    more = {"query_size": c.num_attention_heads * dim, "key_size": c.num_key_value_heads * dim}
    return {**{name: getattr(c, name) for name in names}, **more}


def one_side(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a process that runs one side, on its largest batch of the run."""
    with tempfile.TemporaryDirectory() as folder:
        side = sides(args, (args.role,), folder)[args.role]
        size = sizes(args)[args.role == "ours" and args.layout == "packed"]
        for i in (np.argmin(size), np.argmax(size)):  # the optimizer's state is there from the second step on
            side.step(int(i))
    if args.device == "cuda":
        return {"peak_mib": torch.cuda.max_memory_allocated() / 2**20}
    return {"peak_mib": processes.peak_mib()}


def whole(args: argparse.Namespace, name: str, threads: int) -> dict[str, Any]:
    """One row: `alphapo train` and a script around TRL's trainer.train(), from text to a saved model."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, pairs = material.write(folder, material.texts(args.data, 2303), material.case(name).vocabulary)
        train = [
            f"model.path={model}", "data=jsonl", f"data.path={pairs}", "data.max_length=1024",
            f"trainer.per_device_train_batch_size={trainers.BATCH}", "trainer.gradient_accumulation_steps=1",
            f"trainer.max_steps={args.whole}", f"trainer.threads={threads}", "trainer.use_cpu=true",
            f"trainer.learning_rate={trainers.RATE}", f"layout={args.layout}", *trainers.OURS[args.objective],
            f"trainer.bf16={str(args.dtype == 'bfloat16').lower()}",
        ]  # fmt: skip
        command = [sys.executable, "-m", "alphapo_cli", "train", *train]
        ours = processes.timed(command, threads, folder, folder / "ours.log", folder / "cache")
        theirs = processes.timed(
            [
                sys.executable, str(processes.HERE / "trl_run.py"), str(model), str(pairs), str(folder / "trl"),
                str(args.whole), args.objective, args.dtype, str(threads),
            ],
            threads, folder, folder / "trl.log",
        )  # fmt: skip
        (summary,) = folder.glob("runs/*/summary.json")
        cost = json.loads(summary.read_text())["cost"]
    return {
        "case": name, "threads": threads, "dtype": args.dtype, "whole_steps": args.whole,
        "trl_cpu_s": theirs.cpu_s, "our_cpu_s": ours.cpu_s, "cpu_ratio": theirs.cpu_s / ours.cpu_s,
        "wall_ratio": theirs.wall_s / ours.wall_s, "peak_rss_ratio": theirs.peak_mib / ours.peak_mib,
        "loss_max_diff": None, "grad_rel_l2": None, "objective": args.objective, "layout": args.layout,
        "trl_wall_s": theirs.wall_s, "our_wall_s": ours.wall_s, "trl_peak_mib": theirs.peak_mib,
        "our_peak_mib": ours.peak_mib, "probe_share": cost["probe_seconds"] / cost["seconds"],
    }  # fmt: skip


def print_row(row: dict[str, Any], first: bool) -> None:
    columns = {
        "case": row["case"], "threads": row["threads"], "dtype": row["dtype"],
        "CPU-s TRL": f"{row['trl_cpu_s']:.2f}", "ours": f"{row['our_cpu_s']:.2f}", "ratio": f"{row['cpu_ratio']:.2f}",
        "wall s TRL": f"{row['trl_wall_s']:.2f}", " ours": f"{row['our_wall_s']:.2f}",
        "wall ratio": f"{row['wall_ratio']:.2f}",
        "pairs/s": "-" if "whole_steps" in row else f"{row['pairs_a_step'] / row['our_wall_s']:.1f}",
        "peak MiB TRL": f"{row['trl_peak_mib']:.0f}", "ours ": f"{row['our_peak_mib']:.0f}",
        "ratio ": f"{row['peak_rss_ratio']:.2f}",
        "of GEMM limit": "-" if "whole_steps" in row else f"{row['our_share_of_limit']:.0%}",
        "max loss diff": "-" if row["loss_max_diff"] is None else f"{row['loss_max_diff']:.1e}",
        "grad rel L2": "-" if row["grad_rel_l2"] is None else f"{row['grad_rel_l2']:.1e}",
        "probe": "-" if "whole_steps" not in row else f"{row['probe_share']:.1%}",
    }  # fmt: skip
    if first:
        print("| " + " | ".join(name.strip() for name in columns) + " |")
        print("|" + " --- |" * len(columns))
    print("| " + " | ".join(map(str, columns.values())) + " |", flush=True)


ROLES = {"turns": turns, "trl": one_side, "ours": one_side}

if __name__ == "__main__":
    main()
