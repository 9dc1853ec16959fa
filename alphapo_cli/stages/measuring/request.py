"""What a line of `alphapo measure` asks for, as configurations. Imports no torch: what is missing is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alphapo_cli.config.compose import compose
from alphapo_cli.config.embedded_world import names
from alphapo_cli.config.overrides import Line, Sources
from alphapo_cli.config.schema import LoraConfig, ModelConfig, TrainConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.run_settings import run_folder
from alphapo_cli.modeling.locations import base_source, locate
from alphapo_cli.stages.measuring.run_settings import run_line
from alphapo_cli.stages.paths import check_data, check_model, check_others

KEY = "MODEL"  # what messages call the argument
START = "--start"
SETS = ("probe", "train", "all")
FALLS = 3
_NAMED = ("model.path", "model.source")
_WHOLE = "none"  # of model.quantization


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        models: run directories, models, adapters or hub names; none: the embedded world's base model.
        start: what they are compared with; None: a run's own start, an adapter's base, or else the model itself.
        line: the overrides.
        sources: the directories of YAML files.
        pairs: one of `SETS`; None: all pairs of data that the line names, else the held-out pairs.
        out: the directory of the result; None: one named by its content in run.dir.
        replace: whether to discard what the directory holds.
        tokens: whether values of single tokens are written.
        falls: positions of each chosen answer, those where its tokens fell most, at which is seen where probability went.
    """

    models: tuple[str, ...]
    start: str | None
    line: Line
    sources: Sources
    pairs: str | None = None
    out: Path | None = None
    replace: bool = False
    tokens: bool = False
    falls: int = FALLS


def configurations(request: Request) -> list[TrainConfig]:
    """One configuration a model, in which `model.path` is the start.

    Args:
        request: what is asked for.

    Returns:
        The configurations in the order of the models.

    Raises:
        UsageError: a setting cannot be used, or a model or its data cannot be found.
    """
    if request.pairs is not None and request.pairs not in SETS:
        raise UsageError(f"--pairs {request.pairs}: no such choice (choices: {', '.join(SETS)})")
    if request.falls < 0:
        raise UsageError(f"--falls {request.falls}: must be at least 0")
    if request.out is not None and len(request.models) > 1:
        raise UsageError(
            f"--out: names one directory for {len(request.models)} models; leave it out, or name one model"
        )
    named = [k for k in _NAMED if k in request.line.values] + [g for g in request.line.groups if g.startswith("model=")]
    if named:
        raise UsageError(
            f"{named[0]}: the model that is measured is an argument (alphapo measure MODEL), and what it is compared with "
            "--start"
        )
    return [_configuration(model, request) for model in request.models or (None,)]


def check_models(request: Request) -> None:
    """Check that the models which a line names are there.

    Args:
        request: what is asked for.

    Raises:
        UsageError: one is missing, or its path holds something else.
    """
    for model in request.models:
        check_model(model, key=KEY)
    if request.start is not None:
        check_model(request.start, key=START)


def check_files(configs: Sequence[TrainConfig]) -> None:
    """Check that data and the models of the objective are there.

    Args:
        configs: of `configurations`.

    Raises:
        UsageError: one is missing, or its path holds something else.
    """
    for cfg in configs:
        check_data(cfg.data)
        check_others(cfg.model)


def _configuration(model: str | None, request: Request) -> TrainConfig:
    layers = []
    folder = run_folder(model)
    _check_data_named(model, folder, request)
    if folder is not None:
        layers.append(run_line(folder, request.line, request.sources))
    elif model is not None and request.start is None:
        source = locate(model, key=KEY)
        values = {"model.path": base_source(source).location if source.adapter else model}
        if source.quantization != _WHOLE:  # the start is the base as it was when the adapter was trained
            values |= {"model.quantization": source.quantization, "model.dtype": source.dtype or ModelConfig().dtype}
        layers.append(Line((), values))
    if request.start is not None:
        layers.append(Line((), {"model.path": request.start}))
    cfg = compose("train", TrainConfig, [*layers, request.line], request.sources)
    # The start is measured without adapters, which change nothing before they are trained.
    return replace(cfg, model=replace(cfg.model, lora=LoraConfig()))


def _check_data_named(model: str | None, folder: Path | None, request: Request) -> None:
    """Refuse (UsageError) a model or start of one's own without data, by the names that were typed."""
    said = [request.line]
    if (
        folder is not None
        or names(said, "data")
        or any(group.startswith("experiment=") for group in request.line.groups)
    ):
        return
    typed = model if model is not None else None if request.start is None else f"{START} {request.start}"
    if typed is not None:
        raise UsageError(
            f"{typed}: on which data? give data=... too (data=jsonl data.path=FILE, data=hub data.name=OWNER/DATASET, or "
            "data=glassbox for the embedded world's)"
        )
