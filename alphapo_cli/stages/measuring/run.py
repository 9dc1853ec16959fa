"""`alphapo measure`: the probe on any model and pairs, without training.

The start is measured first and its weights are let go before those of the model are read: of the start only the hidden
states of the chosen answers and the output layer are kept, from which the KL is exact.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import PartialState

from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.tokenise import end_token_id
from alphapo_cli.errors import AlphapoError
from alphapo_cli.modeling.declared import model_stop_ids
from alphapo_cli.modeling.loading import load_model
from alphapo_cli.modeling.policy import PolicyModel, policy_of
from alphapo_cli.modeling.quantisation import NONE
from alphapo_cli.probe import measured as tables
from alphapo_cli.probe.displacement import ProbeValues
from alphapo_cli.probe.foretold import StateScores, correlations, scores_of
from alphapo_cli.probe.idealised import idealised_accuracies
from alphapo_cli.probe.mass_report import MassMoved, sentence
from alphapo_cli.probe.measured import Comparison
from alphapo_cli.probe.pair_scores import Numbers
from alphapo_cli.probe.probe import Probe, each
from alphapo_cli.probe.rank_correlation import Correlation
from alphapo_cli.probe.token_values import TokenLogs, score_slopes
from alphapo_cli.probe.token_values import rows as token_rows
from alphapo_cli.runtime.distributed import start_processes
from alphapo_cli.runtime.threads import threads
from alphapo_cli.runtime.wording import who_falls
from alphapo_cli.stages.measuring.prepare import Measurement
from alphapo_cli.stages.measuring.request import KEY
from alphapo_cli.stages.training.extra_models import with_guide
from alphapo_cli.stages.training.inputs import InputsBuilder
from alphapo_cli.storage.atomic import write_json
from alphapo_cli.storage.hashing import digest
from alphapo_cli.tracking.metrics import BY_GROUP
from alphapo_cli.training import guards


def run(measurement: Measurement, builder: InputsBuilder) -> dict[str, Any]:
    """Measure a model and write all results.

    Args:
        measurement: the validated inputs.
        builder: loads models, and caches reference log-probs.

    Returns:
        The content of metrics.json.

    Raises:
        UsageError: weights cannot be read.
        AlphapoError: a log-prob is not finite.
    """
    began = time.perf_counter()
    cfg, directory = measurement.cfg, measurement.directory
    start_processes(use_cpu=cfg.trainer.use_cpu)
    directory.begin(measurement.manifest, cfg)
    with threads(cfg.trainer.threads):
        comparison, seen = _compared(measurement, builder)
    pairs, tokenizer = measurement.pairs, measurement.start.tokenizer
    metrics = tables.metrics(comparison, pairs, BY_GROUP)
    directory.write_rows("measured.jsonl", tables.rows(comparison, pairs, measurement.sets))
    if measurement.tokens:
        directory.write_rows(
            "tokens.jsonl",
            token_rows(seen.before, seen.now, pairs, seen.weights, measurement.objective.beta, tokenizer),
        )
    went = None
    if measurement.measured.moved:
        metrics |= seen.mass.metrics()
        receivers = seen.mass.receivers(tokenizer)
        write_json(directory.path / "mass.json", receivers)
        went = sentence(receivers, metrics)
    found = correlations(comparison.scores, comparison.now, comparison.start) if measurement.measured.moved else {}
    from alphapo_cli.stages.measuring.pictures import draw  # loads matplotlib, which a refusal does without

    notes = draw(measurement, comparison)
    return directory.finish(
        model=measurement.measured.asked, start=measurement.start.start, pairs=len(pairs),
        metrics=metrics, correlations={name: asdict(one) for name, one in found.items()}, went=went,
        foretold=_foretold(found.get("ches")), unknown=tables.unknown_of(comparison, metrics), notes=notes,
        cost={"seconds": round(time.perf_counter() - began, 3)},
    )  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What the passes over start and model have collected of single tokens."""

    before: TokenLogs
    now: TokenLogs
    mass: MassMoved
    weights: Numbers | None  # [K, P] derivative of the loss by a token's log-prob; None: not known


def _compared(measurement: Measurement, builder: InputsBuilder) -> tuple[Comparison, Seen]:
    """Measure the start and then the model."""
    cfg, objective, pairs = measurement.cfg, measurement.objective, measurement.pairs
    device = PartialState().device
    policy = policy_of(measurement.start.policy().to(device), cfg)
    policy.requires_grad_(False)
    # One row stands for the training pairs, which nothing here reads. Cached log-probs are known by the key of the data,
    # and those of a training on the same data are others.
    key = digest([measurement.key, "measured"])
    data = replace(measurement.start.data, train=pairs.select([0]), probe=pairs, key=key)
    start, guide = with_guide(cfg, replace(measurement.start, data=data), builder, policy, objective)
    reference = builder.reference(cfg, start, policy, objective, guide)[1] if objective.needs_reference else None
    scores, before, after = StateScores(len(pairs)), TokenLogs(), TokenLogs()
    probe = Probe(
        policy, objective, start.data.probe, batch_size=cfg.probe.batch_size, pad_id=start.pad_id,
        processes=builder.processes, reference=reference,
        kl_from=builder.reference_policy(cfg, policy) if objective.needs_kl else None, observer=each(scores, before),
    )  # fmt: skip
    _check_finite(probe.start, measurement.start.start)
    now, measured = probe.start, measurement.measured
    ends = model_stop_ids(policy.lm, start.tokenizer, end_token_id(start.tokenizer, cfg.data))
    mass = MassMoved(start.data.probe, before, measurement.falls, ends, policy.chunk_bytes)
    if measured.moved:
        del policy
        now = probe.measure(_load(measurement, device), measured.context, each(after, mass))
        _check_finite(now, measured.asked)
    comparison = Comparison(
        now, probe.start, scores_of(scores.gather(builder.processes), probe.start, pairs, objective),
        tables.unknown_keys(objective, moved=measured.moved), idealised_accuracies(probe.start, pairs, objective),
        measured.step,
    )  # fmt: skip
    weights = score_slopes(objective, now, reference, start.data.probe) if measurement.tokens else None
    if weights is not None:
        weights = None if tables.unknown_of(comparison, {"gradient_weight/": None}) else weights * now.gradients
    return comparison, Seen(before, after if measured.moved else before, mass, weights)


def _foretold(found: Correlation | None) -> str | None:
    """What CHES foretold, in a sentence; None where nothing moved or the correlation is undefined."""
    if found is None or found.rho is None or found.low is None or found.high is None:
        return None
    return who_falls(found.rho, (found.low, found.high), found.pairs)


def _load(measurement: Measurement, device: torch.device) -> PolicyModel:
    """The measured model on its device."""
    cfg: TrainConfig = measurement.cfg
    measured, settings = measurement.measured, cfg.model
    if not measured.source.adapter and measured.step is not None:  # a run's whole weights, merged over a quantised base
        settings = replace(settings, quantization=NONE)
    lm = load_model(measured.source, settings, device)
    policy = policy_of(lm.to(device), cfg, key=KEY)
    policy.requires_grad_(False)
    return policy


def _check_finite(values: ProbeValues, who: str) -> None:
    kinds = guards.not_finite(values.sums)
    if kinds:
        raise AlphapoError(
            f"{who}: the model gives log-probs that are {kinds}; its weights are damaged, or need model.dtype=float32"
        )
