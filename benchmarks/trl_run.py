"""What a user of TRL would write: load, tokenise, train, save. Run by the benchmarks as a process of its own.

python trl_run.py MODEL PAIRS.jsonl OUT STEPS alphapo|dpo float32|bfloat16 THREADS [ALPHA]
"""

from __future__ import annotations

import sys

import torch
import trainers
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    model, pairs, out, steps, objective, dtype, threads, *alpha = sys.argv[1:]
    torch.set_num_threads(int(threads))
    settings = {
        "output_dir": out, "use_cpu": True, "bf16": dtype == "bfloat16", "gradient_checkpointing": False,
        "report_to": [], "per_device_train_batch_size": trainers.BATCH, "max_length": 1024, "max_steps": int(steps),
        "learning_rate": trainers.RATE, **trainers.TRL[objective],
    }  # fmt: skip
    if alpha:
        settings["alpha"] = float(alpha[0])
    more = {
        "model": AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        "processing_class": AutoTokenizer.from_pretrained(model),
        "train_dataset": load_dataset("json", data_files=pairs, split="train", cache_dir=f"{out}-cache"),
    }
    if objective == "alphapo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        trainer = CPOTrainer(args=CPOConfig(**settings), **more)
    else:
        from trl import DPOConfig, DPOTrainer

        trainer = DPOTrainer(args=DPOConfig(**settings), **more)  # scores with the model itself, before it trains
    trainer.train()
    trainer.save_model(out)


if __name__ == "__main__":
    main()
