"""Inputs that runs share: tokenizer, tokenised data, initial weights and reference log-probs.

An `InputsBuilder` memoizes them in memory for the runs of one process, such as cells of a sweep; the content-addressed
cache on disk shares them between processes. Nothing here draws from a random generator that a run uses, so caching
never changes a result.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from alphapo_cli.config.schema import ModelConfig, TrainConfig
from alphapo_cli.data.load import check_source
from alphapo_cli.data.prepare import PreparedData, prepare
from alphapo_cli.data.text_pairs import LoadedPairs
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.errors import UsageError, say
from alphapo_cli.modeling.adapters import check_lora
from alphapo_cli.modeling.layout.padded import fill_id
from alphapo_cli.modeling.loading import (
    ModelLimits,
    load_model,
    load_tokenizer,
    model_limits,
    random_model,
    train_tokenizer,
)
from alphapo_cli.modeling.locations import ModelSource, locate
from alphapo_cli.modeling.policy import PolicyModel, policy_of
from alphapo_cli.modeling.quantisation import NONE
from alphapo_cli.modeling.sharding import shared_copy
from alphapo_cli.modeling.weight_hashes import state_hash, weights_hash
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe.scoring import measured_sides, score_pairs
from alphapo_cli.runs.identity import inputs_key
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.memo import LRUMemo, Memoize
from alphapo_cli.runtime.progress import Progress
from alphapo_cli.stages.training import glassbox_base
from alphapo_cli.stages.training.compatibility import check_limits, check_prompts, check_same_tokens
from alphapo_cli.stages.training.low_precision import device_of
from alphapo_cli.stages.training.raw_pairs import load_text, texts_of
from alphapo_cli.stages.training.sharded import loaded
from alphapo_cli.storage.atomic import check_folder, write_atomic
from alphapo_cli.storage.hashing import digest
from alphapo_cli.storage.npy import npy_bytes, read_npy
from alphapo_cli.storage.paths import cache_dir

KEPT = 4  # combinations of model and data whose weights, tokens and log-probs are memoized


@dataclass(frozen=True)
class ModelAndData:
    """Tokenizer, data and initial weights of a run. Each call of `policy` returns a model that the caller may train."""

    tokenizer: Any
    data: PreparedData
    policy: Callable[[], Any]
    start: str  # where the weights come from, for messages
    weights: Mapping[str, str] = field(default_factory=dict)  # setting -> hash of the local weights that it names
    pad_id: int = 0  # fills rows up; nothing reads it, but the model has an embedding for it


class InputsBuilder:
    """Loads and prepares model, data and log-probs of runs.

    Args:
        warm: whether several runs of this process use the builder, so that it memoizes and copies the weights.
        cache: the cache directory; None for the usual one.
        processes: the processes that score log-probs together.

    Raises:
        UsageError: the cache directory cannot be written.
    """

    weightless = False  # whether a model's directory may lack weights

    def __init__(self, *, warm: bool = False, cache: Path | None = None, processes: Processes | None = None) -> None:
        self.warm = warm
        self.cache = cache or cache_dir()
        check_folder(self.cache, "set ALPHAPO_CACHE to a directory that can be written")
        self.processes = processes or Processes()
        self.load = functools.partial(load_model, in_files=self.processes.together)
        self.memo = LRUMemo(KEPT)

    def model_and_data(self, cfg: TrainConfig) -> ModelAndData:
        """Load, check and tokenise; the weights are read when `policy` is first called.

        Returns:
            Model and data.

        Raises:
            UsageError: data, model or tokenizer are missing or not compatible.
        """
        check_prompts(cfg)
        check_lora(cfg.model.lora)
        self.memo.open(inputs_key(cfg))
        return self._memoized(f"model and data {inputs_key(cfg)}", lambda: self._model_and_data(cfg))  # type: ignore[no-any-return]

    def before_training(self, cfg: TrainConfig, policy: PolicyModel) -> Memoize:
        """A memo for values that depend only on the policy before its first step and `cfg`'s model, data and probe."""
        key = digest([inputs_key(cfg), asdict(cfg.probe), *rounding(cfg, policy)])
        return lambda what, make: self._memoized(f"{what} {key}", make)

    def _model_and_data(self, cfg: TrainConfig) -> ModelAndData:
        model = cfg.model
        check_source(cfg.data)
        if model.path is None and model.source == "from_scratch":
            if model.lora.r is not None:
                raise UsageError(
                    "model.lora.r needs a saved model to adapt: give model.path, or leave model=from_scratch whole"
                )
            train, probe = load_text(cfg.data, cfg.probe)
            tokenizer = train_tokenizer(model.scratch, texts_of(train))
            make = functools.cache(lambda: random_model(model.scratch, tokenizer, cfg.seed))  # one, which is trained
            limits = ModelLimits(len(tokenizer), model.scratch.max_position_embeddings)
            return self._assemble(cfg, tokenizer, train, probe, make, "random weights", limits)
        if model.path is None and model.source == "path":
            raise UsageError("model=path needs model.path=DIRECTORY (or a run directory, or a hub name)")
        path = model.path if model.path is not None else str(glassbox_base.ensure(self.cache))
        source = locate(path, model.revision, weightless=self.weightless)
        if source.adapter and model.lora.r is not None and not model.merge:
            raise UsageError(
                f"model.path={path} is a LoRA run: its adapter is merged before training, so that a new adapter would "
                "have no base to be saved for; give model.merge=true (writes whole weights)"
            )
        tokenizer = self.tokenizer(source, cfg)
        if model.path is None:
            tokenizer.name_or_path = "the embedded base"  # for messages, where its cache directory means nothing
        train, probe = load_text(cfg.data, cfg.probe)
        key = f"weights {source.location} {source.revision} {model.dtype} {model.attention} {model.quantization}"
        start = "the embedded base" if model.path is None else path
        return self._assemble(
            cfg, tokenizer, train, probe, lambda: self._memoized(key, lambda: self.load(source, model, device_of(cfg))),
            start, model_limits(source, model), {} if model.path is None else {"model.path": self.weights_hash(source)},
        )  # fmt: skip

    def tokenizer(self, source: ModelSource, cfg: TrainConfig) -> Any:
        """The tokenizer of `model.path`."""
        return load_tokenizer(source, cfg.model.trust_remote_code)

    def weights_hash(self, source: ModelSource) -> str:
        """Hash of the weights that training starts from."""
        return weights_hash(source, self.cache)

    def _assemble(
        self, cfg: TrainConfig, tokenizer: Any, train: LoadedPairs, probe: LoadedPairs | None, load: Callable[[], Any],
        start: str, limits: ModelLimits, weights: Mapping[str, str] | None = None,
    ) -> ModelAndData:  # fmt: skip
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        data = prepare(cfg.data, cfg.probe, tokenizer, train_pairs=train, probe_pairs=probe, cache_dir=self.cache)
        check_limits(data, limits, "model.path" if cfg.model.path else "the model")
        for key, name in (("model.reference", cfg.model.reference), ("model.guide", cfg.model.guide)):
            if name is not None:
                # Its weights are loaded after the run has started, so check it before.
                source = locate(name, key=key, weightless=self.weightless)
                check_same_tokens(tokenizer, load_tokenizer(source, cfg.model.trust_remote_code), key, name)
                check_limits(data, model_limits(source, cfg.model), key)
                weights = {**(weights or {}), key: self.weights_hash(source)}
        return ModelAndData(
            tokenizer, data, lambda: shared_copy(load(), every=cfg.model.quantization != NONE) if self.warm else load(),
            start, weights or {}, fill_id(tokenizer.pad_token_id, limits.tokens),
        )  # fmt: skip

    def reference_policy(self, cfg: TrainConfig, policy: PolicyModel) -> PolicyModel:
        """The model that `model.reference` names, or `policy` itself."""
        return self.frozen_policy(cfg, "model.reference", cfg.model.reference, policy) or policy

    def frozen_policy(self, cfg: TrainConfig, key: str, name: str | None, policy: PolicyModel) -> PolicyModel | None:
        """The model that the setting `key` names, on the device of `policy`; None where `name` is None."""
        if name is None:
            return None
        settings = replace(cfg.model, lora=ModelConfig().lora)
        source = locate(name, key=key)
        # The layout is part of the key, because the packed one replaces the model's attention.
        what = f"frozen {source.location} {source.revision} {settings.dtype} {settings.attention} {settings.quantization} {cfg.layout}"
        # Never trained, so not copied.
        lm = loaded(self.processes, lambda: self._memoized(what, lambda: self.load(source, settings, device_of(cfg))))
        if policy.sharded is not None:
            return policy_of(lm, cfg, key=key, device=policy.device).shard(policy.sharded[0])
        if self.warm and policy.device != lm.device:
            lm = copy.deepcopy(lm)  # the memoized model stays on the CPU
        return policy_of(lm.to(policy.device), cfg, key=key)

    def reference(
        self, cfg: TrainConfig, start: ModelAndData, policy: PolicyModel, objective: Objective,
        guide: str | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Summed reference log-probs of the training and of the probe pairs.

        The reference is `model.reference`, else the policy before its first step (fresh adapters change nothing).

        Args:
            cfg: the run's configuration.
            start: model and data of the run.
            policy: the model before its first step.
            objective: decides how tokens are weighted, and how many answers K are scored.
            guide: hash of the weights of the model that token weights come from, if any.

        Returns:
            (training pairs, probe pairs), each [K, n] float64 in nats.
        """
        scorer = self.reference_policy(cfg, policy)
        weights = self._memoized(f"hash {inputs_key(cfg)}", lambda: state_hash(scorer.lm))
        sums = {}
        for name, pairs in {"train": start.data.train, "probe": start.data.probe}.items():
            # Token weights change the sums, so they are part of the key where there are any.
            key = [name, weights, start.data.key, *rounding(cfg, scorer), cfg.probe.batch_size]
            key += _token_weights_key(objective, guide)
            sides = measured_sides(objective, pairs)
            key += [sides] if sides > 2 else []
            score = functools.partial(self._score, name, pairs, scorer, digest(key), cfg, start, objective)
            sums[name] = self._memoized(f"reference {digest(key)}", score)
        return sums["train"], sums["probe"]

    def _score(
        self, name: str, pairs: TokenPairs, scorer: PolicyModel, key: str, cfg: TrainConfig, start: ModelAndData,
        objective: Objective,
    ) -> np.ndarray:  # fmt: skip
        """[K, n] summed log-probs of `pairs` under `scorer`, cached on disk."""

        def make(tick: Callable[[int], None]) -> np.ndarray:
            return score_pairs(
                scorer, pairs, batch_size=cfg.probe.batch_size, pad_id=start.pad_id, processes=self.processes, tick=tick,
                objective=objective,
            )  # fmt: skip

        shape = (measured_sides(objective, pairs), len(pairs))
        sums = self.cached_array(key, f"reference log-probs ({name})", shape, np.float64, len(pairs), make)
        wrong = np.flatnonzero(~np.isfinite(sums).all(axis=0))
        if wrong.size:
            raise UsageError(
                f"{cfg.model.reference or cfg.model.path or start.start}: the reference gives {wrong.size} of {len(pairs)} "
                f"{name} pairs a log-prob that is no finite number, first row {pairs.index[wrong[0]] + 1}; its weights "
                "are damaged, or the model needs another model.dtype"
            )
        return sums

    def cached_array(
        self, key: str, title: str, shape: tuple[int, ...], dtype: type[np.floating[Any]], pairs: int,
        make: Callable[[Callable[[int], None]], np.ndarray],
    ) -> np.ndarray:  # fmt: skip
        """An array from the cache on disk, computed and stored where it is missing or damaged.

        Args:
            key: hash of all that the array depends on.
            title: title of the progress bar.
            shape: the array's shape; a cached array of another one is computed again.
            dtype: the array's type, likewise.
            pairs: number of pairs, the length of the progress bar.
            make: computes the array; it calls its argument with the number of pairs done.

        Returns:
            The array.
        """
        file = self.cache / "reference" / f"{key}.sum.npy"
        # Only rank 0 reads the file: other processes may see another state of it, and either all must score or none.
        cached = self.processes.first(lambda: read_npy(file))
        if cached is not None and cached.shape == shape and cached.dtype == dtype:
            return cached
        if self.processes.rank == 0 and file.exists():
            say(f"note: {file} is damaged; the {title} are computed again", file=sys.stderr)
        with Progress(pairs, "pairs", title, leave=False, quiet=self.processes.rank != 0) as bar:
            array = make(bar.update)
        if self.processes.rank == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, npy_bytes(array))
        return array

    def _memoized(self, key: str, make: Callable[[], Any]) -> Any:
        """The memoized value of `make()` where the builder is warm."""
        return self.memo.keep(key, make) if self.warm else make()


def _token_weights_key(objective: Objective, guide: str | None) -> list[Any]:
    """The token weights of an objective, as part of a cache key; empty where all weights are 1."""
    bound = objective.parts["token"]
    weights = [bound.part.name, bound.keywords] if objective.weighs_tokens else []
    return [*weights, guide] if objective.needs_guide else weights


def rounding(cfg: TrainConfig, scorer: PolicyModel) -> list[Any]:
    """Settings, versions and hardware that change the rounding of a log-prob, as part of a cache key."""
    hardware = f"{torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
    if scorer.device.type == "cuda":
        hardware = torch.cuda.get_device_name(scorer.device)
    settings = [cfg.trainer.bf16, cfg.layout, cfg.model.attention, cfg.trainer.logit_chunk_mb]
    return [settings, torch.__version__, transformers.__version__, hardware]
