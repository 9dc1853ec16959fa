"""What cells of a sweep share: tokenizer, tokenised data, the starting weights and reference log-probs.

A workshop keeps them in memory while it lives; the content-addressed cache on disk keeps them between processes.
Nothing here draws from a random generator that a run uses, so cold or warm never changes a result.
"""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from alphapo_cli.data import glassbox
from alphapo_cli.data.forms import answer_text
from alphapo_cli.data.load import has_evaluation, load_pairs
from alphapo_cli.data.prepare import PreparedData, prepare
from alphapo_cli.data.records import LoadCounts, LoadedPairs
from alphapo_cli.data.tokens import TokenPairs
from alphapo_cli.errors import UsageError
from alphapo_cli.files import write_atomic
from alphapo_cli.locations import cache_dir
from alphapo_cli.models import from_scratch, load_model, load_tokenizer, locate, state_hash
from alphapo_cli.policy import PolicyModel, policy_of
from alphapo_cli.probe import Processes, score_pairs
from alphapo_cli.runs import digest
from alphapo_cli.schedule import Schedule, probe_pairs
from alphapo_cli.schema import DataConfig, ModelConfig, ProbeConfig, TrainConfig
from alphapo_cli.stages import base

GLASSBOX_PROBE = 256


@dataclass(frozen=True)
class Materials:
    """What a run starts from. `policy()` gives a model of its own to train."""

    tokenizer: Any
    data: PreparedData
    policy: Callable[[], Any]
    start: str  # where the weights come from, in words


class Workshop:
    """Makes and keeps materials. `warm`: several runs will ask, so weights are copied instead of handed out."""

    def __init__(self, *, warm: bool = False, cache: Path | None = None, processes: Processes | None = None) -> None:
        self.warm = warm
        self.cache = cache or cache_dir()
        self.processes = processes or Processes()
        self.kept: dict[str, Any] = {}

    def materials(self, cfg: TrainConfig) -> Materials:
        """Load, check and tokenise; the weights are read when `policy` is first called.

        Raises:
            UsageError: data, model or tokenizer are missing or do not fit together.
        """
        parts = [
            asdict(cfg.model),
            asdict(cfg.data),
            cfg.probe.pairs,
            self._probe_pairs(cfg),
            cfg.seed if cfg.model.source == "from_scratch" else 0,
        ]
        return self._keep(f"materials {digest(parts)}", lambda: self._materials(cfg))  # type: ignore[no-any-return]

    def _materials(self, cfg: TrainConfig) -> Materials:
        model = cfg.model
        if model.reference is not None:
            locate(model.reference, key="model.reference")  # read after the run has begun; so looked for before
        if model.path is None and model.source == "from_scratch":
            if model.lora.r is not None:
                raise UsageError(
                    "model.lora.r needs a saved model to adapt: give model.path, or leave model=from_scratch whole"
                )
            train, probe = load_text(cfg.data, cfg.probe)
            lm, tokenizer = from_scratch(model.scratch, _texts(train), cfg.seed)
            return self._assemble(cfg, tokenizer, train, probe, lambda: lm, "random weights")
        if model.path is None and model.source == "path":
            raise UsageError("model=path needs model.path=DIRECTORY (or a run directory, or a hub name)")
        path = model.path if model.path is not None else str(base.ensure(self.cache))
        source = locate(path, model.revision)
        tokenizer = load_tokenizer(source, model.trust_remote_code)
        train, probe = load_text(cfg.data, cfg.probe)
        # Attention, dtype and adapter settings are part of the key; the weights themselves are read once.
        key = f"weights {source.location} {source.revision} {model.dtype} {model.attention}"
        start = "the embedded base" if model.path is None else path
        return self._assemble(
            cfg, tokenizer, train, probe, lambda: self._keep(key, lambda: load_model(source, model)), start
        )

    def _assemble(
        self,
        cfg: TrainConfig,
        tokenizer: Any,
        train: LoadedPairs,
        probe: LoadedPairs | None,
        master: Callable[[], Any],
        start: str,
    ) -> Materials:
        if tokenizer.pad_token_id is None:
            # Padding is never looked at (see layout.padded); any valid id fills the row.
            tokenizer.pad_token = tokenizer.eos_token
        data = prepare(
            cfg.data,
            cfg.probe,
            tokenizer,
            train_pairs=train,
            probe_pairs=probe,
            cache_dir=self.cache,
            probe_default=self._probe_pairs(cfg),
        )
        return Materials(tokenizer, data, lambda: copy.deepcopy(master()) if self.warm else master(), start)

    def reference(self, cfg: TrainConfig, materials: Materials, policy: PolicyModel) -> tuple[np.ndarray, np.ndarray]:
        """Summed reference log-probs of the training and of the probe pairs, each [2, n].

        The reference is `model.reference`, else the policy before its first step (fresh adapters change nothing).
        """
        if cfg.model.reference is None:
            scorer = policy
        else:
            source = locate(cfg.model.reference, key="model.reference")
            lm = load_model(source, replace(cfg.model, lora=ModelConfig().lora)).to(next(policy.parameters()).device)
            scorer = policy_of(lm, cfg, key="model.reference")
        weights = state_hash(scorer.lm)
        sets = {"train": materials.data.train, "probe": materials.data.probe}
        sums = {}
        for name, pairs in sets.items():
            score = functools.partial(self._score, name, pairs, scorer, weights, cfg, materials)
            sums[name] = self._keep(f"reference {name} {weights} {materials.data.key} {rounding(cfg)}", score)
        return sums["train"], sums["probe"]

    def _score(
        self, name: str, pairs: TokenPairs, scorer: PolicyModel, weights: str, cfg: TrainConfig, materials: Materials
    ) -> np.ndarray:
        key = digest([name, weights, materials.data.key, rounding(cfg), cfg.probe.batch_size])
        file = self.cache / "reference" / f"{key}.npy"
        cached = _read_npy(file)
        if cached is not None and cached.shape == (2, len(pairs)):
            return cached
        with tqdm(
            total=len(pairs), desc=f"reference log-probs ({name})", unit="pair", disable=None, leave=False
        ) as bar:
            sums = score_pairs(
                scorer,
                pairs,
                batch_size=cfg.probe.batch_size,
                pad_id=materials.tokenizer.pad_token_id,
                processes=self.processes,
                tick=lambda n: _tick(bar, n),
            )
        if self.processes.rank == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, _npy(sums))
        return sums

    def _probe_pairs(self, cfg: TrainConfig) -> int:
        """Pairs that the probe has by default."""
        return probe_pairs(Schedule.of(cfg.trainer, 1, self.processes.world, cfg.seed).pairs_per_step)

    def _keep(self, key: str, make: Callable[[], Any]) -> Any:
        if not self.warm:
            return make()
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


def rounding(cfg: TrainConfig) -> list[Any]:
    """What changes the last digits of a log-prob."""
    return [cfg.trainer.bf16, cfg.layout, cfg.model.attention, cfg.trainer.logit_chunk_mb]


def load_text(cfg: DataConfig, probe: ProbeConfig) -> tuple[LoadedPairs, LoadedPairs | None]:
    """(training pairs, pairs of an evaluation split or None), of whatever source."""
    if cfg.source == "glassbox":
        pairs = glassbox.make_pairs(cfg.glassbox)[: cfg.limit]
        held_out = glassbox.probe_pairs(probe.pairs or GLASSBOX_PROBE, cfg.glassbox)
        return _glassbox(pairs), _glassbox(held_out)
    return load_pairs(cfg), load_pairs(cfg, evaluation=True) if has_evaluation(cfg) else None


def _glassbox(pairs: list[Any]) -> LoadedPairs:
    return LoadedPairs(pairs, LoadCounts(read=len(pairs)), "embedded world", "messages")


def _texts(pairs: LoadedPairs) -> list[str]:
    texts = []
    for pair in pairs:
        prompt = pair.prompt if isinstance(pair.prompt, str) else "\n".join(m["content"] for m in pair.prompt)
        texts += [prompt, answer_text(pair.chosen), answer_text(pair.rejected)]
    return texts


def _read_npy(file: Path) -> np.ndarray | None:
    """The array in `file`; None where there is none or it is damaged, so that it is made again."""
    try:
        array: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _tick(bar: Any, n: int) -> None:
    bar.update(n)
