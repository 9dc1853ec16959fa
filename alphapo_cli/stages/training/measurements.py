"""Measurements of a run: the displacement probe, and answers sampled to a fixed set of prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.answer_frame import header_of
from alphapo_cli.data.glassbox import world
from alphapo_cli.data.tokenise import encode_prompt, end_token_id
from alphapo_cli.errors import AlphapoError
from alphapo_cli.modeling.declared import model_stop_ids
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.probe import displacement, foretold
from alphapo_cli.probe.idealised import idealised_accuracies
from alphapo_cli.probe.mass_report import MassMoved
from alphapo_cli.probe.pair_scores import Numbers
from alphapo_cli.probe.probe import Probe, each
from alphapo_cli.probe.sampled_answers import Keep, SampledAnswers, SamplePrompts, Sampling
from alphapo_cli.probe.scoring import score_pairs
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runtime.distributed import Processes
from alphapo_cli.runtime.heartbeat import at_work
from alphapo_cli.runtime.memo import Memoize
from alphapo_cli.stages.training.assembly import RunInputs
from alphapo_cli.storage.atomic import write_json
from alphapo_cli.tracking.metrics import BY_GROUP
from alphapo_cli.training import guards

SAMPLES = 256  # sampled answers per measurement in the embedded world


class Measurements:
    """The probe and the sampled answers of one run, with their values at step 0."""

    def __init__(
        self, cfg: TrainConfig, directory: RunDirectory, inputs: RunInputs, processes: Processes, *, every: int,
        memoize: Memoize, write: Callable[[Callable[[], None]], None],
    ) -> None:  # fmt: skip
        """Measure the probe and sample answers from the policy before its first step.

        Args:
            cfg: the run's configuration.
            directory: the run directory, where samples are written.
            inputs: policy, objective and probe pairs.
            processes: the processes that measure together.
            every: optimizer steps between measurements.
            memoize: shares what depends on the initial weights, the data and the seed alone.
            write: calls what writes a file.

        Raises:
            AlphapoError: a log-prob is not finite.
        """
        self.cfg, self.inputs, self.every = cfg, inputs, every
        self.seconds = 0.0
        began = time.perf_counter()
        training = inputs.training
        self.policy = training.policy
        self.processes = processes
        first = self._first_position()
        states = foretold.StateScores(len(inputs.probe)) if cfg.probe.scores else None
        self.probe = Probe(
            training.policy, training.objective, inputs.probe, batch_size=cfg.probe.batch_size, pad_id=training.pad_id,
            processes=processes, reference=inputs.probe_reference, kl_from=training.kl_from,
            # The key of the data too: objectives with `needs_mismatched` have other pairs of the same rows.
            memoize=lambda what, make: memoize(f"{what} {inputs.data_key}", make), observer=each(first, states),
        )  # fmt: skip
        self.start_mass = self._mass(first)
        self.scores: dict[str, Numbers] | None = None
        if states is not None:
            self.scores = foretold.scores_of(
                states.gather(processes), self.probe.start, inputs.probe, training.objective
            )  # fmt: skip
        self.idealised = idealised_accuracies(self.probe.start, inputs.probe, training.objective)
        if cfg.guard.non_finite and (kinds := guards.not_finite(self.probe.start.sums)):
            raise AlphapoError(
                f"{inputs.start}: the model gives log-probs that are {kinds} before any training; "
                "its weights are damaged, or need model.dtype=float32"
            )
        self.samples: SampledAnswers | None = None
        samples = processes.rank == 0 or processes.together
        prompts = memoize("prompts", lambda: _prompts(cfg, inputs)) if samples else None
        if prompts is not None:
            lm = self.policy.lm
            ends = model_stop_ids(lm, inputs.tokenizer, end_token_id(inputs.tokenizer, cfg.data))
            # Logits of 16 bits depend on what else is in a batch.
            exact = cfg.probe.exact if cfg.probe.exact is not None else lm.dtype.itemsize < 4
            self.samples = SampledAnswers(
                inputs.tokenizer,
                ends,
                Sampling(cfg.probe.max_new_tokens, cfg.probe.temperature, exact, tuple(cfg.probe.refusals)),
                prompts,
                cfg.seed,
                directory.path.name,
                writer_into(directory.path / "samples", write) if processes.rank == 0 else lambda file, rows: None,
                memoize,
            )
            self.samples.start(self.policy.lm)
        self.seconds += time.perf_counter() - began

    def update_reference(self) -> None:
        """Score the probe under the current moving reference, if any, so that rewards are relative to it."""
        training, scorer = self.inputs.training, self.probe.scorer
        if training.moving is not None:
            self.probe.reference = score_pairs(
                training.moving.policy, scorer.pairs, batch_size=self.cfg.probe.batch_size, pad_id=scorer.pad_id,
                processes=scorer.processes, objective=training.objective,
            )  # fmt: skip

    def due(self, step: int, always: bool) -> tuple[bool, bool]:
        """Whether the probe is measured, and whether answers are sampled, at `step`; `always`: whatever is set."""
        every = self.cfg.probe.sample_every or self.every
        return step % self.every == 0 or always, step % every == 0 or always

    def measure(
        self, step: int, *, probe: bool, samples: bool, context: StepContext | None = None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure the current policy.

        Args:
            step: the optimizer step.
            probe: whether to measure the probe.
            samples: whether to sample answers.
            context: state and schedule of the objective at this step; None before training.

        Returns:
            (metrics, one row per probe pair).

        Raises:
            AlphapoError: a log-prob of the probe is not finite.
        """
        began = time.perf_counter()
        row: dict[str, Any] = {}
        per_pair: list[dict[str, Any]] = []
        at_work(f"measuring at step {step:,}")
        if probe:
            first = self._first_position()
            now = self.probe.start if step == 0 else self.probe.measure(self.policy, context, first)
            if self.cfg.guard.non_finite and (kinds := guards.not_finite(now.sums)):
                raise AlphapoError(guards.broken("a log-prob of the probe", kinds, step))
            row.update(displacement.metrics(now, self.probe.start))
            row.update(displacement.by_group(now, self.probe.start, self.inputs.probe, BY_GROUP))
            row.update(self.idealised)
            row.update(self.start_mass if step == 0 else self._mass(first))
            per_pair = displacement.per_pair(now, self.probe.start, step)
            if self.scores is not None:
                row.update(foretold.metrics(self.scores, now, self.probe.start) if step else {})
                self._add_scores(per_pair if step == 0 else [])
        if samples and self.samples is not None:
            row.update(self.samples.measure(self.policy.lm, step))
        self.seconds += time.perf_counter() - began
        return row, per_pair

    def _add_scores(self, per_pair: list[dict[str, Any]]) -> None:
        """Add the scores of each pair to its row; null where one is undefined."""
        for name, values in (self.scores or {}).items():
            for row, value in zip(per_pair, values.tolist(), strict=False):
                row[name] = value if math.isfinite(value) else None

    def _first_position(self) -> MassMoved | None:
        """What compares the distributions at the first positions with step 0, where that is asked for."""
        if not self.cfg.probe.first_position:
            return None
        tokenizer, training = self.inputs.tokenizer, self.inputs.training
        ends = model_stop_ids(training.policy.lm, tokenizer, end_token_id(tokenizer, self.cfg.data))
        return MassMoved(self.inputs.probe, None, 0, ends, training.policy.chunk_bytes)

    def _mass(self, first: MassMoved | None) -> dict[str, float | None]:
        """The metrics of the first positions over all processes; none where they are not asked for."""
        if first is None:
            return {}
        first.gather(self.processes)
        return first.metrics()


def writer_into(folder: Path, write: Callable[[Callable[[], None]], None]) -> Keep:
    """What writes sampled answers into `folder`; `write` calls what writes a file."""

    def make(file: str, rows: list[dict[str, str]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / file, rows)

    return lambda file, rows: write(lambda: make(file, rows))


def _prompts(cfg: TrainConfig, inputs: RunInputs) -> SamplePrompts | None:
    """The prompts that are answered at every measurement; None where there are none."""
    tokenizer = inputs.tokenizer
    if cfg.data.source == "glassbox":
        texts = world.instructions(SAMPLES if cfg.probe.samples is None else cfg.probe.samples)
        ids = [encode_prompt(({"role": "user", "content": text},), tokenizer, cfg.data) for text in texts]
        return SamplePrompts("glassbox", texts, ids, world.true_reward) if texts else None
    return prompts_of(cfg, inputs, cfg.probe.samples or 0)


def prompts_of(cfg: TrainConfig, inputs: RunInputs, count: int) -> SamplePrompts | None:
    """The prompts of the first `count` probe pairs, as the model reads them; None where there are none."""
    tokenizer, pairs = inputs.tokenizer, inputs.probe
    header = header_of(tokenizer, cfg.data).ids
    ids = [[*pairs.prompt[i].tolist(), *header] for i in range(min(count, len(pairs)))]
    texts = [tokenizer.decode(p, skip_special_tokens=True) for p in ids]
    # A seed is made of the text: prompts that differ in their special tokens alone keep these in it.
    distinct: dict[str, set[tuple[int, ...]]] = {}
    for text, row in zip(texts, ids, strict=True):
        distinct.setdefault(text, set()).add(tuple(row))
    texts = [t if len(distinct[t]) == 1 else tokenizer.decode(p) for t, p in zip(texts, ids, strict=True)]
    return SamplePrompts("probe", texts, ids) if ids else None
