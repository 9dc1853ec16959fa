"""What `alphapo measure` measures: a model, its start and pairs, checked before any weights are read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from alphapo_cli.config import embedded_world
from alphapo_cli.config.overrides import Line
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.data.token_pairs import TokenPairs
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.run_settings import run_folder
from alphapo_cli.generation.target_model import model_name
from alphapo_cli.modeling.loading import load_tokenizer, model_limits
from alphapo_cli.modeling.locations import ModelSource, locate
from alphapo_cli.modeling.quantisation import NONE, check_installed
from alphapo_cli.modeling.weight_hashes import weights_hash
from alphapo_cli.objective.build import build
from alphapo_cli.objective.inputs import StepContext
from alphapo_cli.objective.objective import Objective
from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.runs.identity import identity as run_identity
from alphapo_cli.runs.provenance import manifest
from alphapo_cli.runs.state import model_step
from alphapo_cli.stages.directories.measurement import MeasureDirectory
from alphapo_cli.stages.measuring.request import KEY, Request
from alphapo_cli.stages.training import glassbox_base
from alphapo_cli.stages.training.compatibility import check_limits, check_same_tokens
from alphapo_cli.stages.training.data_checks import check_pairs
from alphapo_cli.stages.training.inputs import InputsBuilder, ModelAndData
from alphapo_cli.storage.hashing import digest

BASE = "glassbox-base"


@dataclass(frozen=True)
class Measured:
    """The model that is measured, before its weights are read.

    Attributes:
        asked: what the user named.
        name: short name.
        source: where it is.
        step: optimizer step of a run's model; None for other models.
        context: progress of the run's training at that step.
        moved: whether it is another model than the start.
    """

    asked: str
    name: str
    source: ModelSource
    step: int | None
    context: StepContext
    moved: bool


@dataclass(frozen=True)
class Measurement:
    """The validated inputs of one model's measurement. `sets` says of each pair whether it is of probe or train."""

    cfg: TrainConfig
    measured: Measured
    objective: Objective
    start: ModelAndData
    pairs: TokenPairs
    sets: tuple[str, ...]
    key: str
    directory: MeasureDirectory
    identity: dict[str, Any]
    state: str
    tokens: bool
    falls: int

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of manifest.json."""
        return manifest(
            identity=self.identity,
            model=self.measured.asked,
            start=self.start.start,
            data=self.start.data.report,
            config=asdict(self.cfg),
        )


def prepare(cfg: TrainConfig, model: str | None, request: Request, builder: InputsBuilder) -> Measurement:
    """Load tokenizers and pairs of one model's measurement, and check that all goes together.

    Args:
        cfg: the configuration of `configurations`.
        model: what the user named; None: the embedded world's base model.
        request: what is asked for.
        builder: loads data and models.

    Returns:
        The inputs; its `state` is "complete" where nothing is left to measure.

    Raises:
        UsageError: an input, a setting or the directory cannot be used.
    """
    if cfg.model.quantization != NONE:
        check_installed()
    objective = build(cfg.objective, cfg.seed)
    asked = str(glassbox_base.ensure(builder.cache)) if model is None else model
    source = locate(asked, cfg.model.revision, key=KEY)
    start = builder.model_and_data(cfg)
    if objective.needs_mismatched:
        start = replace(start, data=start.data.with_mismatched())
    tokenizer = load_tokenizer(source, cfg.model.trust_remote_code)
    check_same_tokens(start.tokenizer, tokenizer, KEY, asked, whose="start")
    limits = model_limits(source, cfg.model)
    check_limits(start.data, limits, f"{KEY}={asked}")
    given = _logits(cfg, start, builder)
    if limits.tokens != given:
        raise UsageError(
            f"{KEY}={asked}: it gives {limits.tokens} logits and the start {given}, so that their distributions cannot be "
            "compared; name by --start the model that it was trained from"
        )
    which = request.pairs or _default_set(model, request.line, cfg)
    pairs, sets = chosen_pairs(start, which)
    check_pairs(cfg, objective, pairs, "the measured pairs")
    hashes = {"model": weights_hash(source, builder.cache), "start": _start_hash(cfg, start, builder)}
    step, context = _progress(model, objective)
    moved = hashes["model"] != hashes["start"]
    name = BASE if model is None else model_name(model, source)
    key = start.data.key if which == "probe" else digest([start.data.key, which])
    identity = {
        "measured": {**hashes, "pairs": key, "progress": context.progress},
        "settings": {**_settings(cfg), "falls": request.falls},
    }  # fmt: skip
    directory = MeasureDirectory.place(request.out, None, cfg.run, name, identity)
    state = directory.open(identity, replace=request.replace, tokens=request.tokens)
    measured = Measured(asked if model is not None else BASE, name, source, step, context, moved)
    return Measurement(
        cfg, measured, objective, start, pairs, sets, key, directory, identity, state, request.tokens, request.falls
    )  # fmt: skip


def chosen_pairs(start: ModelAndData, which: str) -> tuple[TokenPairs, tuple[str, ...]]:
    """The pairs of a set of `SETS`, and the set that each is of.

    Args:
        start: model and data.
        which: probe, train or all, which is the one after the other.

    Returns:
        (P pairs, [P] probe or train).
    """
    probe, train = start.data.probe, start.data.train
    if which == "probe":
        return probe, ("probe",) * len(probe)
    if which == "train":
        return train, ("train",) * len(train)
    return probe.followed_by(train), ("probe",) * len(probe) + ("train",) * len(train)


def _default_set(model: str | None, line: Line, cfg: TrainConfig) -> str:
    """All pairs of data that the command line names; of the embedded world and of a run's own data those held out."""
    own = run_folder(model) is not None and not embedded_world.names([line], "data")
    return "probe" if own or cfg.data.source == embedded_world.WORLD else "all"


def _logits(cfg: TrainConfig, start: ModelAndData, builder: InputsBuilder) -> int:
    """Number of logits that the start gives."""
    if cfg.model.path is None and cfg.model.source == "from_scratch":
        return len(start.tokenizer)
    return model_limits(_start_source(cfg, builder), cfg.model).tokens


def _start_source(cfg: TrainConfig, builder: InputsBuilder) -> ModelSource:
    path = cfg.model.path if cfg.model.path is not None else str(glassbox_base.ensure(builder.cache))
    return locate(path, cfg.model.revision)


def _start_hash(cfg: TrainConfig, start: ModelAndData, builder: InputsBuilder) -> str:
    if cfg.model.path is None and cfg.model.source == "from_scratch":
        return digest(["from_scratch", asdict(cfg.model.scratch), cfg.seed, start.data.key])
    return weights_hash(_start_source(cfg, builder), builder.cache)


def _progress(model: str | None, objective: Objective) -> tuple[int | None, StepContext]:
    """Step of a run's model, and the context of the loss in which the probe measured it."""
    folder = run_folder(model)
    if folder is None:
        return None, objective.start
    run = RunDirectory(folder)
    summary = run.summary()
    step = None if summary is None else model_step(summary)
    total = run.read_manifest().get("steps")
    progress = step / total if step is not None and isinstance(total, int) and total else 1.0
    return step, replace(objective.start, progress=progress)


def _settings(cfg: TrainConfig) -> dict[str, Any]:
    """The settings that decide the values beside models and pairs."""
    kept = (
        "objective.",
        "model.dtype",
        "model.quantization",
        "model.attention",
        "model.reference",
        "model.guide",
        "trainer.bf16",
        "layout",
    )
    decided = (*kept, "trainer.logit_chunk_mb", "probe.batch_size")
    found = {key: value for key, value in run_identity(cfg).items() if key.startswith(decided)}
    return {key.replace(".", "/"): value for key, value in found.items()}
