"""The embedded world's base policy, trained by SFT with `PreferenceTrainer` on first use and then cached.

Its settings are constants here and part of the cache key. It trains with one thread, so that machines differ by their
floating-point kernels alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from alphapo_cli.config.compose import compose
from alphapo_cli.config.overrides import Line, Sources
from alphapo_cli.config.schema import DataConfig, ObjectiveConfig, ProbeConfig, TrainerConfig
from alphapo_cli.data.glassbox import tokenizer as world_tokenizer
from alphapo_cli.data.glassbox import world
from alphapo_cli.data.prepare import prepare
from alphapo_cli.data.text_pairs import LoadCounts, LoadedPairs, TextPair
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.errors import say
from alphapo_cli.modeling.loading import random_llama
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.modeling.saving import save_model
from alphapo_cli.objective.build import build
from alphapo_cli.runtime.threads import threads
from alphapo_cli.storage import checksums
from alphapo_cli.storage.atomic import discard, shared_directory
from alphapo_cli.storage.hashing import digest
from alphapo_cli.training.arguments import training_arguments
from alphapo_cli.training.data_order import DataOrder
from alphapo_cli.training.inputs import TrainingInputs
from alphapo_cli.training.trainer import PreferenceTrainer

_DISTRIBUTED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
VERSION = 1  # raise when the world's text changes
DEMONSTRATIONS = 12_800
TRAINER = TrainerConfig(
    per_device_train_batch_size=64, num_train_epochs=1, learning_rate=3e-3, warmup_ratio=0.05, threads=1, use_cpu=True
)


def base_key() -> str:
    """Hash of all settings and versions that determine the base policy's weights on one machine."""
    settings = [
        VERSION,
        DEMONSTRATIONS,
        asdict(TRAINER),
        world_tokenizer.base_config(),
        world.vocabulary(),
        torch.__version__,
        transformers.__version__,
    ]
    return digest(settings)[:16]


def ensure(cache: Path, verbose: bool = True) -> Path:
    """The directory of the base policy in `cache`, trained now where it is missing; `verbose` prints a note then."""
    folder = cache / "base" / base_key()
    if checksums.whole(folder):
        return folder
    if folder.is_dir():  # a bit has changed, or a cleaner of caches was here
        if verbose and (folder / checksums.NAME).exists():  # older ones have none
            say(f"note: {folder} is damaged, and is made again", file=sys.stderr, flush=True)
        discard(folder)
    if verbose:
        say("training the embedded world's base policy once (cached afterwards) ...", file=sys.stderr, flush=True)
    with shared_directory(folder) as beside:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _train_in_subprocess(beside)
        else:
            with threads(1):
                _train(beside)
        checksums.write(beside)
    return folder


def _train_in_subprocess(folder: Path) -> None:
    """Call `_train` in a process outside the process group, whose other processes wait and join no collectives."""
    code = "import sys; from pathlib import Path; from alphapo_cli.stages.training.glassbox_base import _train; from alphapo_cli.runtime.threads import threads\nwith threads(1): _train(Path(sys.argv[1]))"
    env = {k: v for k, v in os.environ.items() if k not in _DISTRIBUTED and not k.startswith("TORCHELASTIC")}
    subprocess.run([sys.executable, "-c", code, str(folder)], env=env, check=True, stdout=subprocess.DEVNULL)


def _train(folder: Path) -> None:
    """Train the base policy on demonstrations and save it in `folder`."""
    tokenizer = world_tokenizer.tokenizer()
    settings = {k: v for k, v in world_tokenizer.base_config().items() if not k.endswith("_id") and k != "vocab_size"}
    lm = random_llama(tokenizer, seed=0, **settings)
    demonstrations = [
        TextPair(
            ({"role": "user", "content": instruction},),
            ({"role": "assistant", "content": answer},),
            ({"role": "assistant", "content": "."},),  # not used: sft has no rejected answer
            row=i,
        )
        for i, (instruction, answer) in enumerate(world.demonstrations(DEMONSTRATIONS, seed=0), 1)
    ]
    pairs = _tokens(demonstrations, tokenizer)
    order = DataOrder.of(TRAINER, len(pairs), world=1, seed=0)
    inputs = TrainingInputs(policy=PolicyModel(lm), objective=build(_sft()), pairs=pairs, pad_id=tokenizer.pad_token_id)
    args = training_arguments(TRAINER, order, str(folder / "scratch"), seed=0)
    PreferenceTrainer(inputs, order, args, logging_steps=order.total_steps).train()
    save_model(lm, tokenizer, folder, end_id=tokenizer.eos_token_id)
    shutil.rmtree(folder / "scratch", ignore_errors=True)


def _sft() -> ObjectiveConfig:
    from alphapo_cli.config.schema import TrainConfig

    return compose("train", TrainConfig, [Line(groups=("objective=sft",))], Sources()).objective


def _tokens(pairs: list[TextPair], tokenizer: Any) -> TokenPairs:
    with tempfile.TemporaryDirectory() as scratch:
        loaded = LoadedPairs(pairs, LoadCounts(read=len(pairs)), "embedded world", "messages")
        cfg = DataConfig(source="glassbox", max_length=world_tokenizer.MAX_POSITIONS)
        one = LoadedPairs(pairs[:1], LoadCounts(read=1), "embedded world", "messages")
        return prepare(
            cfg, ProbeConfig(pairs=1), tokenizer, train_pairs=loaded, probe_pairs=one, cache_dir=Path(scratch)
        ).train
