"""Readings of a run: the displacement probe, and answers sampled to the same prompts every time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.glassbox import world
from alphapo_cli.data.tokenise import encode_prompt, end_token_id
from alphapo_cli.errors import AlphapoError
from alphapo_cli.modeling.policy import PolicyModel
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.objective import Objective
from alphapo_cli.probe import displacement
from alphapo_cli.probe.probe import Probe
from alphapo_cli.probe.sampled_answers import SampledAnswers, SamplePrompts
from alphapo_cli.probe.scoring import score_pairs
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.memo import Memoize
from alphapo_cli.stages.training.inputs import ModelAndData
from alphapo_cli.training import guards

SAMPLES = 256  # answers at a reading in the embedded world


class Measurements:
    """Made before the first step, from the policy as it then is."""

    def __init__(
        self,
        cfg: TrainConfig,
        directory: RunDirectory,
        materials: ModelAndData,
        policy: PolicyModel,
        objective: Objective,
        reference: np.ndarray | None,
        processes: Processes,
        *,
        every: int,
        keep: Memoize,
    ) -> None:
        """`reference` [2, P]: summed log-probs of the probe pairs. `every`: steps from one reading to the next.
        `keep`: shares what depends on the starting weights, the data and the seed alone.

        Raises:
            AlphapoError: the model gives log-probs that are not finite.
        """
        self.cfg, self.policy, self.every = cfg, policy, every
        self.seconds = 0.0
        began = time.perf_counter()
        self.probe = Probe(
            policy, objective, materials.data.probe, batch_size=cfg.probe.batch_size,
            pad_id=materials.tokenizer.pad_token_id, processes=processes, reference=reference,
            # Objectives may read other answers of the same rows (`needs_mismatched`); their data has a key of its own.
            keep=lambda what, make: keep(f"{what} {materials.data.key}", make),
        )  # fmt: skip
        if cfg.guard.non_finite and not np.isfinite(self.probe.start.sums).all():
            raise AlphapoError(
                f"{materials.start}: the model gives log-probs that are not finite before any training; "
                "its weights are damaged, or need model.dtype=float32"
            )
        self.outcome: SampledAnswers | None = None
        prompts = keep("prompts", lambda: _prompts(cfg, materials)) if processes.rank == 0 else None
        if prompts is not None:
            end_id = end_token_id(materials.tokenizer, cfg.data)
            folder = directory.path / "samples"
            self.outcome = SampledAnswers(
                materials.tokenizer, end_id, cfg.probe, prompts, cfg.seed, folder, directory.path.name, keep
            )
            self.outcome.start(policy.lm)
        self.seconds += time.perf_counter() - began

    def follow(self, reference: PolicyModel, objective: Objective) -> None:
        """Measure rewards against `reference` as it is now."""
        scorer = self.probe.scorer
        self.probe.reference = score_pairs(
            reference, scorer.pairs, batch_size=self.cfg.probe.batch_size, pad_id=scorer.pad_id,
            processes=scorer.processes, objective=objective,
        )  # fmt: skip

    def due(self, step: int, last: bool) -> tuple[bool, bool]:
        """Whether `step` is one for the probe, and for the samples."""
        every = self.cfg.probe.sample_every or self.every
        return step % self.every == 0 or last, step % every == 0 or last

    def read(
        self, step: int, *, probe: bool, samples: bool, moment: StepContext | None = None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(the row of metrics, a row per probe pair) of the policy as it is, and of the objective as it is at `moment`.

        Raises:
            AlphapoError: a log-prob of the probe is not finite.
        """
        began = time.perf_counter()
        row: dict[str, Any] = {}
        per_pair: list[dict[str, Any]] = []
        if probe:
            now = self.probe.start if step == 0 else self.probe.measure(self.policy, moment)
            if self.cfg.guard.non_finite and not np.isfinite(now.sums).all():
                worst = float(now.sums[~np.isfinite(now.sums)][0])
                raise AlphapoError(guards.broken("a log-prob of the probe", worst, step))
            row.update(displacement.metrics(now, self.probe.start))
            per_pair = displacement.per_pair(now, self.probe.start, step)
        if samples and self.outcome is not None:
            row.update(self.outcome.measure(self.policy.lm, step))
        self.seconds += time.perf_counter() - began
        return row, per_pair


def _prompts(cfg: TrainConfig, materials: ModelAndData) -> SamplePrompts | None:
    """What the policy answers at every reading, if anything."""
    tokenizer = materials.tokenizer
    if cfg.data.source == "glassbox":
        texts = world.instructions(SAMPLES if cfg.probe.samples is None else cfg.probe.samples)
        ids = [encode_prompt(({"role": "user", "content": text},), tokenizer, cfg.data) for text in texts]
        return SamplePrompts("glassbox", texts, ids, world.true_reward) if texts else None
    pairs = materials.data.probe
    ids = [pairs.prompt[i].tolist() for i in range(min(cfg.probe.samples or 0, len(pairs)))]
    return SamplePrompts("probe", [tokenizer.decode(p, skip_special_tokens=True) for p in ids], ids) if ids else None
