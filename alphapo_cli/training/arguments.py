"""transformers' TrainingArguments from ours, and whether their optimizer can be used."""

from __future__ import annotations

import math

import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from alphapo_cli.config.schema import TrainerConfig
from alphapo_cli.errors import UsageError, first_line, nearest
from alphapo_cli.training.data_order import DataOrder


def check_optimizer(args: TrainingArguments) -> None:
    """Check before any work that the optimizer can be made.

    Raises:
        UsageError: the optimizer's package is missing, or the optimizer cannot be used on this machine.
    """
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError, RuntimeError) as error:
        first = first_line(error)
        raise UsageError(
            f"trainer.optim={OptimizerNames(args.optim).value}: {first} (install what it needs, or take trainer.optim=adamw_torch)"
        ) from error


def training_arguments(cfg: TrainerConfig, order: DataOrder, output_dir: str, seed: int) -> TrainingArguments:
    """Return Trainer's arguments; accumulation, logging and checkpoints are ours (see `trainer`).

    Raises:
        UsageError: transformers does not know the optimizer.
    """
    known = [str(name.value) for name in OptimizerNames]
    if cfg.optim not in known:
        raise UsageError(
            f"trainer.optim={cfg.optim}: no such optimizer{nearest(cfg.optim, known)} (choices: {', '.join(known)})"
        )
    warmup = cfg.warmup_steps or math.ceil(cfg.warmup_ratio * order.total_steps)  # as transformers
    return TrainingArguments(
        output_dir=output_dir,
        max_steps=order.total_steps,
        per_device_train_batch_size=cfg.per_device_train_batch_size,
        gradient_accumulation_steps=1,
        learning_rate=cfg.learning_rate,
        lr_scheduler_type=cfg.lr_scheduler_type,
        warmup_steps=warmup,
        weight_decay=cfg.weight_decay,
        adam_beta1=cfg.adam_beta1,
        adam_beta2=cfg.adam_beta2,
        adam_epsilon=cfg.adam_epsilon,
        max_grad_norm=cfg.max_grad_norm,
        optim=cfg.optim,
        bf16=cfg.bf16,
        gradient_checkpointing=cfg.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if cfg.gradient_checkpointing else None,
        use_cpu=cfg.use_cpu or not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        ignore_data_skip=True,  # the sampler starts at the resumed step itself
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )
