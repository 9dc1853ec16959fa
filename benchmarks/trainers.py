"""TRL's trainer and ours on the same pairs, each with its own collation, loss, backward pass and optimizer step.

Both get token ids, because tokenisation (which differs by a BOS or an end token) is no part of a step. Both use AdamW in
its fused form, which is TRL's default and ours, and clip gradients at norm 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alphapo_cli.config.schema import TrainConfig, TrainerConfig
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.training.data_order import DataOrder

BATCH = 8  # pairs
RATE = 1e-6
# The same loss in both: AlphaPO with the paper's settings for Llama 3 (gamma absolute), or DPO.
OURS = {
    "alphapo": ("objective=alphapo", "objective.beta=2.5", "objective.gamma=0.25", "objective.shape.alpha=0.25"),
    "dpo": ("objective=dpo", "objective.beta=0.1"),
}
TRL: dict[str, dict[str, Any]] = {
    "alphapo": {"loss_type": "alphapo", "alpha": 0.25, "beta": 2.5, "simpo_gamma": 0.25, "cpo_alpha": 0.0},
    "dpo": {"loss_type": "sigmoid", "beta": 0.1, "precompute_ref_log_probs": True},
}


@dataclass(frozen=True)
class Side:
    """One trainer: `step(i)` does optimizer step i and gives its loss; `gradients(i)` the gradient it would take."""

    name: str
    step: Callable[[int], float]
    gradients: Callable[[int], tuple[float, Tensor]]


def schedule(pairs: TokenPairs, steps: int, batch: int = BATCH) -> DataOrder:
    """Which pairs are in which step of `batch` of them, the same for both sides."""
    cfg = TrainerConfig(per_device_train_batch_size=batch, gradient_accumulation_steps=1, max_steps=steps)
    return DataOrder.of(cfg, len(pairs), 1, seed=0)


def _side(name: str, trainer: Any, batch: Callable[[int], Any], device: str) -> Side:
    model = trainer.accelerator.prepare(trainer.model)
    optimizer = trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # what transformers' own loop sets

    def backward(i: int) -> float:
        loss: Tensor = trainer.training_step(model, batch(i))
        return loss.item()

    def step(i: int) -> float:
        loss = backward(i)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss

    def gradients(i: int) -> tuple[float, Tensor]:
        loss = backward(i)
        grads = {n.removeprefix("lm."): p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        flat = torch.cat([grads[n].float().flatten().cpu() for n in sorted(grads)])
        optimizer.zero_grad()
        return loss, flat

    return Side(name, step, gradients)


def ours(
    lm: Any, pairs: TokenPairs, steps: int, *, objective: str, bf16: bool, layout: str, device: str, folder: str,
    reference: Any = None, pairs_a_step: int = BATCH,
) -> Side:  # fmt: skip
    """Our trainer on micro-batches of `pairs_a_step` pairs."""
    from alphapo_cli.config.compose import compose
    from alphapo_cli.config.overrides import Sources, read_line
    from alphapo_cli.modeling.policy import policy_of
    from alphapo_cli.objective.build import build
    from alphapo_cli.training.arguments import training_arguments
    from alphapo_cli.training.inputs import TrainingInputs
    from alphapo_cli.training.trainer import PreferenceTrainer

    where = Sources()
    line = [
        *OURS[objective], f"layout={layout}", f"trainer.per_device_train_batch_size={pairs_a_step}",
        "trainer.gradient_accumulation_steps=1", f"trainer.bf16={str(bf16).lower()}", f"trainer.max_steps={steps}",
        f"trainer.use_cpu={str(device == 'cpu').lower()}", f"trainer.learning_rate={RATE}",
    ]  # fmt: skip
    cfg: TrainConfig = compose("train", TrainConfig, [read_line(line, where)], where)
    plan = schedule(pairs, steps, pairs_a_step)
    inputs = TrainingInputs(
        policy=policy_of(lm.to(device), cfg), objective=build(cfg.objective), pairs=pairs, pad_id=0, reference=reference
    )
    args = training_arguments(cfg.trainer, plan, folder, 0)
    trainer = PreferenceTrainer(inputs, plan, args, logging_steps=steps)
    return _side("alphapo", trainer, lambda i: trainer.steps[i], device)


def trl(
    lm: Any, tokenizer: Any, pairs: TokenPairs, steps: int, *, objective: str, bf16: bool, device: str, folder: str,
    reference: Any = None, pairs_a_step: int = BATCH, **settings: Any,
) -> Side:  # fmt: skip
    """TRL's CPOTrainer (or DPOTrainer with reference log-probs already computed) on the same pairs."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    common: dict[str, Any] = {
        "output_dir": folder, "use_cpu": device == "cpu", "bf16": bf16, "gradient_checkpointing": False,
        "report_to": [], "per_device_train_batch_size": pairs_a_step, "max_length": 4096, "learning_rate": RATE,
        "disable_tqdm": True, **TRL[objective], **settings,
    }  # fmt: skip
    # A trainer wants a data set of its own; what is measured are the pairs below.
    stand_in = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2)
    more = {"model": lm.to(device), "train_dataset": stand_in, "processing_class": tokenizer}
    if objective == "alphapo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        trainer: Any = CPOTrainer(args=CPOConfig(**common), **more)
    else:
        from trl import DPOConfig, DPOTrainer

        trainer = DPOTrainer(args=DPOConfig(**common), **more)
    plan = schedule(pairs, steps, pairs_a_step)
    row = _cpo_row if objective == "alphapo" else _dpo_row

    def batch(step: int) -> Any:
        rows = []
        for i in plan.pairs(step):
            made = row(pairs, int(i))
            if reference is not None:
                made |= {f"ref_{n}_logps": float(reference[k, i]) for k, n in enumerate(("chosen", "rejected"))}
            rows.append(made)
        return trainer.data_collator(rows)

    return _side("trl", trainer, batch, device)


def _dpo_row(pairs: TokenPairs, i: int) -> dict[str, Any]:
    pair = pairs[i]
    return {f"{name}_ids": getattr(pair, name).tolist() for name in ("prompt", "chosen", "rejected")}


def _cpo_row(pairs: TokenPairs, i: int) -> dict[str, Any]:
    pair = pairs[i]
    prompt = pair.prompt.tolist()
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for name in ("chosen", "rejected"):
        answer = getattr(pair, name).tolist()
        row[f"{name}_input_ids"] = prompt + answer
        row[f"{name}_attention_mask"] = [1] * len(prompt + answer)
        row[f"{name}_labels"] = [-100] * len(prompt) + answer
    return row
