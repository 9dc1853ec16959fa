"""`alphapo export`: a model as others take it, with a card that says what it is and how it was measured.

Weights are copied file by file where nothing changes, and written anew where an adapter is merged or the dtype changes.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import LoraConfig, ModelConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.run_settings import check_settings
from alphapo_cli.modeling.declared import stored_dtype, weights_dtype
from alphapo_cli.modeling.loading import EXPORTED, load_config, load_model, load_tokenizer
from alphapo_cli.modeling.locations import SETTINGS, ModelSource, adapter_settings, base_source, locate
from alphapo_cli.modeling.quantisation import NONE, check_installed, dequantised_model
from alphapo_cli.modeling.saving import read_back, repair_generation, save_model
from alphapo_cli.runs.state import RunState
from alphapo_cli.stages.model_card import card, facts_of
from alphapo_cli.storage.atomic import check_folder, write_atomic

DTYPES = ("float32", "bfloat16", "float16")
CARD = "README.md"
_HALF = ".alphapo-export"  # lies in the folder until all of it is written
_FOLDERS = ("additional_chat_templates",)  # of a tokenizer with several chat templates


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, whether it is an adapter, the dtype of its weights, and its base model if any.

    `quantization`: how the base was quantised when the adapter was trained. `beyond_gguf`: what of the adapter llama.cpp
    cannot take, in words; None where it can take all of it.
    """

    folder: Path
    adapter: bool
    dtype: str
    base: str | None
    quantization: str = NONE
    beyond_gguf: str | None = None

    @property
    def of_base(self) -> str:
        """What became of a quantised base, as a part of a sentence; empty where there is none."""
        if self.quantization == NONE:
            return ""
        if self.adapter:
            return f", trained over its base quantised to {self.quantization} (model.quantization={self.quantization} loads it so)"
        return f": the base dequantised from {self.quantization}, the adapter added"

    @property
    def note(self) -> str | None:
        """What others lack who get an adapter whose base is a directory of this machine; None where they lack nothing."""
        if not (self.adapter and self.base and Path(self.base).is_dir()):
            return None
        return (
            f"adapter_config.json names the base as {self.base}, a directory of this machine: hand that model on too and "
            "write its name there, or export a whole model with --merge"
        )


def export(
    model: str, folder: Path, *, merge: bool, dtype: str | None, licence: str | None, trust_remote_code: bool = False
) -> Exported:
    """Write a model and its card into a folder.

    Args:
        model: a run directory or a saved model's directory.
        folder: where to write; missing or empty.
        merge: whether to merge an adapter into its base model.
        dtype: of the written weights; None: as they are.
        licence: the licence of the card, by the hub's names; None: left open in the card.
        trust_remote_code: whether code of the model's directory may run.

    Returns:
        What was written.

    Raises:
        UsageError: the model cannot be exported so, or the folder cannot be written or holds something.
    """
    source = locate(model, key=EXPORTED)
    if not source.local:
        raise UsageError(
            f"{model}: no such directory; name that of a run or a model (one of the hub has been exported)"
        )
    check_folder(folder, "choose another --to")
    if folder.exists() and any(folder.iterdir()) and not (folder / _HALF).is_file():
        raise UsageError(f"--to {folder}: is not empty; choose another folder")
    if source.adapter and dtype is not None and not merge:
        raise UsageError("--dtype with an adapter: adapters keep the dtype that they were trained in; add --merge")
    if merge and source.quantization != NONE:
        check_installed()
    base = base_source(source) if source.adapter else None
    if merge and not source.adapter:
        raise UsageError(f"--merge: {model} is whole already (no {SETTINGS}); leave it out")
    is_adapter = source.adapter and not merge
    written = dtype or _dtype(source if is_adapter else base or source, trust_remote_code)
    run = _run_of(Path(source.location))
    if run is not None:
        check_settings(run.path)
    changed = merge or (dtype is not None and dtype != _dtype(source, trust_remote_code))
    files = [] if changed else _own_files(Path(source.location))
    folder.mkdir(parents=True, exist_ok=True)
    _empty(folder)  # of what a process that was killed has left
    try:
        (folder / _HALF).touch()
        if changed:
            _write(source, base, folder, written, trust_remote_code)
        for file in files:
            _copy(file, folder / file.relative_to(Path(source.location)))
        facts = facts_of(run, None if base is None else base.asked, is_adapter, licence)
        write_atomic(folder / CARD, card(facts, Path(model).name if run is None else run.path.name))
        (folder / _HALF).unlink()
    except BaseException:  # a half of it would look whole
        _empty(folder)
        raise
    beyond = beyond_gguf(adapter_settings(folder, str(folder))) if is_adapter else None
    return Exported(folder, is_adapter, written, None if base is None else base.asked, source.quantization, beyond)


def _empty(folder: Path) -> None:
    for place in folder.iterdir():
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()


def _copy(file: Path, to: Path) -> None:
    """Copy a file; an error of the disk names where it was to go."""
    to.parent.mkdir(exist_ok=True)
    try:
        shutil.copy2(file, to)
    except OSError as error:  # which names the file that was read
        error.filename = str(to)
        raise


def _own_files(place: Path) -> list[Path]:
    """The files of a model's directory that go along; UsageError for a link that leads out of it."""
    # Somebody else's directory could lead to a private file, which would be handed on with the model. A snapshot of the
    # hub's cache consists of links into the blobs of its repository.
    real = place.resolve()
    own = [real, *([real.parents[1] / "blobs"] if real.parent.name == "snapshots" else [])]
    among = [*place.iterdir(), *(file for name in _FOLDERS for file in (place / name).glob("*"))]
    found = [f for f in sorted(among) if f.is_file() and not f.name.startswith(".") and f.name != CARD]
    for file in found:
        if not any(file.resolve().is_relative_to(folder) for folder in own):
            raise UsageError(
                f"{file}: a link out of its directory, to {file.resolve()}; put a copy in its place if it belongs to the "
                "model, or remove it"
            )
    return found


def _dtype(source: ModelSource, trust_remote_code: bool) -> str:
    if source.adapter:
        return stored_dtype(source.location)
    return weights_dtype(load_config(source, trust_remote_code), source.location, source.revision)


def _write(source: ModelSource, base: ModelSource | None, folder: Path, dtype: str, trust_remote_code: bool) -> None:
    """Load the whole model, its adapter merged, in the dtype that is written, and save it."""
    import torch
    from transformers import GenerationConfig

    # Merged in the base's own dtype, as peft does. Where another is asked for, in float32 and cast afterwards: bfloat16
    # would have rounded the sum before it is written in a finer dtype.
    own = base is None or dtype == _dtype(base, trust_remote_code)
    merged_in = source.dtype or ("auto" if own else "float32")
    settings = ModelConfig(dtype=merged_in, lora=LoraConfig(), trust_remote_code=trust_remote_code)
    lm = load_model(source, settings)
    if source.quantization != NONE:
        lm = dequantised_model(lm, getattr(torch, dtype))
    lm = lm.to(getattr(torch, dtype))
    lm.config.dtype = getattr(torch, dtype)
    tokenizer = load_tokenizer(source, trust_remote_code)
    place = Path(source.location)
    if not (place / "generation_config.json").is_file() and base is not None:
        place = Path(base.location)
    if (place / "generation_config.json").is_file():
        lm.generation_config = GenerationConfig.from_pretrained(place)
    repair_generation(lm)
    ends = lm.generation_config.eos_token_id
    first = ends[0] if isinstance(ends, list) and ends else ends
    save_model(lm, tokenizer, folder, end_id=tokenizer.eos_token_id if first is None else int(first))
    read_back(lm, folder, torch.device("cpu"))


def _run_of(folder: Path) -> RunState | None:
    """The run that a model/ folder belongs to; None for another model."""
    run = RunState(folder.parent)
    return run if folder.name == "model" and run.config.is_file() and run.summary() is not None else None


def beyond_gguf(settings: Mapping[str, Any]) -> str | None:
    """What of an adapter a GGUF adapter cannot hold: pairs of matrices, all scaled by lora_alpha over their rank.

    Args:
        settings: the content of its adapter_config.json.

    Returns:
        The first such thing in words; None where it can hold all.
    """
    found = {
        "rsLoRA's scale": settings.get("use_rslora"),
        "DoRA's magnitudes": settings.get("use_dora"),
        "whole layers (modules_to_save)": settings.get("modules_to_save"),
        "scales of single layers (alpha_pattern)": settings.get("alpha_pattern"),
        "biases": settings.get("bias", "none") != "none",
        "trained tokens (trainable_token_indices)": settings.get("trainable_token_indices"),
    }
    return next((words for words, is_there in found.items() if is_there), None)


def next_lines(done: Exported) -> list[tuple[str, str]]:
    """What can be done with an exported model, upload it or convert it: (line to type, what it does)."""
    folder = shlex.quote(str(done.folder))
    lines = [(f"hf upload OWNER/NAME {folder}", "to the hub")]
    if done.beyond_gguf is not None:
        why = f"llama.cpp takes no adapter with {done.beyond_gguf}; it converts a merged model"
        lines.append(("alphapo export RUN --to DIR --merge", why))
    elif done.adapter:
        # Without --base the converter looks for the base on the hub, and fails at a name that is a path.
        base = f" --base {shlex.quote(done.base)}" if done.base and Path(done.base).is_dir() else ""
        lines.append((f"python convert_lora_to_gguf.py {folder}{base}", "llama.cpp's: makes a GGUF adapter of it"))
    else:
        kind = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[done.dtype]
        lines.append(
            (f"python convert_hf_to_gguf.py {folder} --outtype {kind}", "llama.cpp's: makes a GGUF file of it")
        )
    return lines
