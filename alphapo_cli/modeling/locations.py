"""Where the model of a setting is: a run directory, a model directory, or a hub name. Imports no torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.errors import UsageError, nearest
from alphapo_cli.runs.format_version import check_format
from alphapo_cli.runs.identity import stored_settings
from alphapo_cli.runs.state import MODELS, RunState
from alphapo_cli.storage import checksums
from alphapo_cli.storage.file_hashes import cached_of_file
from alphapo_cli.storage.paths import cache_dir

SETTINGS = "adapter_config.json"
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # the second is what older versions of peft wrote
HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


@dataclass(frozen=True)
class ModelSource:
    """A location that transformers can load: a directory with weights, or a hub name."""

    location: str
    local: bool
    adapter: bool
    revision: str | None = None
    key: str = "model.path"  # the setting that named it, for messages
    asked: str = ""  # the value of that setting
    # Of an adapter that a run of ours trained over a quantised base: model.quantization and model.dtype of that run.
    quantization: str = "none"
    dtype: str | None = None
    weights: bool = True  # whether the weights of a local model are there, see `locate`


def locate(path: str, revision: str | None = None, key: str = "model.path", *, weightless: bool = False) -> ModelSource:
    """Return where the model of a setting is: a run directory (its model/), a model directory or a hub name.

    Args:
        path: the value of the setting.
        revision: of a hub name.
        key: the name of the setting, for messages.
        weightless: whether a directory with a config.json may lack weights, some or all.

    Returns:
        The source; a local one has an absolute path.

    Raises:
        UsageError: there is no such path, or the directory holds no weights or no config.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / "config.yaml").is_file() and (folder / "summary.json").is_file():
            check_format(folder, RunState(folder).read_manifest(), fix=f"give another {key}")
            if not (folder / "model").is_dir():
                raise UsageError(f"{key}={path}: this run has no model/ (its training did not end); train it first")
            folder = folder / "model"
        source = _local(folder, path, key, weightless=weightless)
        _check_recorded(folder.absolute(), path, key)
        return source
    if folder.exists():
        raise UsageError(f"{key}={path}: is a file; give the directory that holds config.json and the weights")
    if (
        path.startswith((".", "/", "~"))
        or path.count("/") > 1
        or not HUB_NAME.match(path)
        or folder.parent.name == "runs"
    ):
        near = nearest(folder.name, [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else [])
        raise UsageError(f"{key}={path}: no such directory{near}")
    return ModelSource(path, local=False, adapter=False, revision=revision, key=key, asked=path)


def _local(folder: Path, asked: str, key: str, *, weightless: bool) -> ModelSource:
    adapter = (folder / SETTINGS).is_file()
    if not adapter and not (folder / "config.json").is_file():
        raise UsageError(
            f"{key}={asked}: no config.json in {folder}; give a run directory or a saved model's directory"
        )
    names = ADAPTER_FILES if adapter else WEIGHT_FILES
    weights = [p for pattern in names for p in folder.glob(pattern) if p.stat().st_size > 0]
    blank = ModelSource(str(folder.absolute()), local=True, adapter=False, key=key, asked=asked, weights=False)
    if not weights:
        if weightless and not adapter:
            return blank
        raise UsageError(f"{key}={asked}: {folder} holds no weights ({' or '.join(names)}); save the model there again")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            parts = {str(file) for file in json.loads(index.read_text())["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{key}={asked}: {index.name} is damaged; copy the directory whole") from error
        missing = sorted(file for file in parts if not (folder / file).is_file())
        if missing and weightless:
            return blank
        if missing:
            raise UsageError(
                f"{key}={asked}: {len(missing)} weight file(s) missing, first {missing[0]}; copy the directory whole"
            )
    # Absolute: an adapter records where its base is, and is used from other directories.
    quantization, dtype = _trained_over(folder) if adapter else ("none", None)
    return ModelSource(
        str(folder.absolute()),
        local=True,
        adapter=adapter,
        key=key,
        asked=asked,
        quantization=quantization,
        dtype=dtype,
    )


def _trained_over(folder: Path) -> tuple[str, str | None]:
    """(model.quantization, model.dtype) of the run that saved an adapter; ("none", None) where no run or base is known."""
    run = RunState(folder.parent.parent if folder.parent.name == MODELS else folder.parent)
    stored = stored_settings(run.config) if run.config.is_file() else {}
    quantization = stored.get("model.quantization")
    if quantization not in ("nf4", "int8"):
        return "none", None
    return quantization, str(stored["model.dtype"]) if "model.dtype" in stored else None


def _check_recorded(folder: Path, asked: str, key: str) -> None:
    """Compare a model of a run with the checksums that the run has of it; raises UsageError where they differ."""
    run = RunState(folder.parent.parent if folder.parent.name == MODELS else folder.parent)
    place = f"{folder.relative_to(run.path).as_posix()}/"  # model/ or models/step-N/
    files = (run.summary() or {}).get("files")
    recorded = {n: w for n, w in files.items() if n.startswith(place)} if isinstance(files, dict) else {}
    if not recorded:
        return
    cache = cache_dir()
    found = checksums.damaged(run.path, recorded, read=lambda file: cached_of_file(file, cache))
    if found:
        raise UsageError(
            f"{key}={asked}: the model is not the one that the run saved ({checksums.described(found)}); put it back from a "
            f"copy, train it again with --replace, or copy {place} elsewhere to take it as it is"
        )


def base_source(source: ModelSource) -> ModelSource:
    """Return the source of the full weights: for a stored adapter, its base model.

    Raises:
        UsageError: the adapter names no base model, or the base is not where the adapter says.
    """
    if not source.adapter:
        return source
    settings = adapter_settings(Path(source.location), f"{source.key}={source.asked}")
    return locate(settings["base_model_name_or_path"], settings.get("revision"), key=f"base model of {source.location}")


def adapter_settings(folder: Path, name: str) -> dict[str, Any]:
    """Read the settings of a stored adapter.

    Args:
        folder: the adapter's directory.
        name: what messages call it.

    Returns:
        The content of adapter_config.json, whose base_model_name_or_path is a text.

    Raises:
        UsageError: adapter_config.json cannot be read, or names no base model.
    """
    try:
        stored = json.loads((folder / SETTINGS).read_bytes())
        base = stored["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{name}: {SETTINGS} names no base model; save the adapter again") from error
    if not isinstance(base, str) or not base:
        raise UsageError(
            f"{name}: base_model_name_or_path in {SETTINGS} is {json.dumps(base)}: the adapter does not say which model it "
            "changes; write the base's directory or hub name there"
        )
    return dict(stored)
