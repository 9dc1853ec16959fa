"""Measurements of a run: the displacement probe, and answers sampled to the same prompts every time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.glassbox import world
from alphapo_cli.data.tokenise import encode_prompt, end_token_id
from alphapo_cli.errors import AlphapoError
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.probe import displacement
from alphapo_cli.probe.probe import Probe
from alphapo_cli.probe.sampled_answers import SampledAnswers, SamplePrompts
from alphapo_cli.probe.scoring import score_pairs
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.memo import Memoize
from alphapo_cli.stages.training.assembly import RunInputs
from alphapo_cli.training import guards

SAMPLES = 256  # answers at a measurement in the embedded world


class Measurements:
    """Made before the first step, from the policy as it then is."""

    def __init__(
        self, cfg: TrainConfig, directory: RunDirectory, inputs: RunInputs, processes: Processes, *, every: int,
        memoize: Memoize,
    ) -> None:  # fmt: skip
        """The first measurement of the probe is made here, and the starting model's answers are sampled.

        Args:
            cfg: the run's configuration.
            directory: where samples are written.
            inputs: policy, objective and probe pairs.
            processes: who measure together.
            every: optimizer steps from one measurement to the next.
            memoize: shares what depends on the starting weights, the data and the seed alone.

        Raises:
            AlphapoError: the model gives log-probs that are not finite.
        """
        self.cfg, self.inputs, self.every = cfg, inputs, every
        self.seconds = 0.0
        began = time.perf_counter()
        training = inputs.training
        self.policy = training.policy
        self.probe = Probe(
            training.policy, training.objective, inputs.probe, batch_size=cfg.probe.batch_size, pad_id=training.pad_id,
            processes=processes, reference=inputs.probe_reference, kl_from=training.kl_from,
            # Objectives may read other answers of the same rows (`needs_mismatched`); their data has a key of its own.
            memoize=lambda what, make: memoize(f"{what} {inputs.data_key}", make),
        )  # fmt: skip
        if cfg.guard.non_finite and not np.isfinite(self.probe.start.sums).all():
            raise AlphapoError(
                f"{inputs.start}: the model gives log-probs that are not finite before any training; "
                "its weights are damaged, or need model.dtype=float32"
            )
        self.samples: SampledAnswers | None = None
        prompts = memoize("prompts", lambda: _prompts(cfg, inputs)) if processes.rank == 0 else None
        if prompts is not None:
            end_id = end_token_id(inputs.tokenizer, cfg.data)
            folder = directory.path / "samples"
            self.samples = SampledAnswers(
                inputs.tokenizer, end_id, cfg.probe, prompts, cfg.seed, folder, directory.path.name, memoize
            )
            self.samples.start(self.policy.lm)
        self.seconds += time.perf_counter() - began

    def follow(self) -> None:
        """Measure rewards against the moving reference as it is now, where there is one."""
        training, scorer = self.inputs.training, self.probe.scorer
        if training.moving is not None:
            self.probe.reference = score_pairs(
                training.moving.policy, scorer.pairs, batch_size=self.cfg.probe.batch_size, pad_id=scorer.pad_id,
                processes=scorer.processes, objective=training.objective,
            )  # fmt: skip

    def due(self, step: int, last: bool) -> tuple[bool, bool]:
        """Whether `step` is one for the probe, and for the samples."""
        every = self.cfg.probe.sample_every or self.every
        return step % self.every == 0 or last, step % every == 0 or last

    def read(
        self, step: int, *, probe: bool, samples: bool, context: StepContext | None = None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(the row of metrics, a row per probe pair) of the policy as it is, and of the objective as it is at `context`.

        Raises:
            AlphapoError: a log-prob of the probe is not finite.
        """
        began = time.perf_counter()
        row: dict[str, Any] = {}
        per_pair: list[dict[str, Any]] = []
        if probe:
            now = self.probe.start if step == 0 else self.probe.measure(self.policy, context)
            if self.cfg.guard.non_finite and not np.isfinite(now.sums).all():
                worst = float(now.sums[~np.isfinite(now.sums)][0])
                raise AlphapoError(guards.broken("a log-prob of the probe", worst, step))
            row.update(displacement.metrics(now, self.probe.start))
            per_pair = displacement.per_pair(now, self.probe.start, step)
        if samples and self.samples is not None:
            row.update(self.samples.measure(self.policy.lm, step))
        self.seconds += time.perf_counter() - began
        return row, per_pair


def _prompts(cfg: TrainConfig, inputs: RunInputs) -> SamplePrompts | None:
    """What the policy answers at every measurement, if anything."""
    tokenizer = inputs.tokenizer
    if cfg.data.source == "glassbox":
        texts = world.instructions(SAMPLES if cfg.probe.samples is None else cfg.probe.samples)
        ids = [encode_prompt(({"role": "user", "content": text},), tokenizer, cfg.data) for text in texts]
        return SamplePrompts("glassbox", texts, ids, world.true_reward) if texts else None
    pairs = inputs.probe
    ids = [pairs.prompt[i].tolist() for i in range(min(cfg.probe.samples or 0, len(pairs)))]
    return SamplePrompts("probe", [tokenizer.decode(p, skip_special_tokens=True) for p in ids], ids) if ids else None
