"""`alphapo export`: a model as others take it, with a card that says what it is and how it was measured.

Weights are copied file by file where nothing changes, and written anew where an adapter is merged or the dtype changes.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from alphapo_cli.config.schema import LoraConfig, ModelConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.run_settings import check_settings
from alphapo_cli.modeling.declared import weights_dtype
from alphapo_cli.modeling.loading import EXPORTED, load_config, load_model, load_tokenizer
from alphapo_cli.modeling.locations import SETTINGS, ModelSource, base_source, locate
from alphapo_cli.modeling.quantisation import NONE, check_installed, dequantised_model
from alphapo_cli.modeling.saving import read_back, repair_generation, save_model
from alphapo_cli.runs.state import RunState
from alphapo_cli.stages.model_card import card, facts_of
from alphapo_cli.storage.atomic import check_folder, write_atomic

DTYPES = ("float32", "bfloat16", "float16")
CARD = "README.md"


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, whether it is an adapter, the dtype of its weights, and its base model if any.

    `quantization`: how the base was quantised when the adapter was trained.
    """

    folder: Path
    adapter: bool
    dtype: str
    base: str | None
    quantization: str = NONE

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
        raise UsageError(f"{model}: a model of the hub; name a run or a directory")
    check_folder(folder, "choose another --to")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--to {folder}: is not empty; choose another folder")
    if source.adapter and dtype is not None and not merge:
        raise UsageError("--dtype with an adapter: adapters keep the dtype that they were trained in; add --merge")
    if merge and source.quantization != NONE:
        check_installed()
    base = base_source(source) if source.adapter else None
    if merge and not source.adapter:
        raise UsageError(f"--merge: {model} is whole already (no {SETTINGS}); leave it out")
    written = dtype or _dtype(base or source, trust_remote_code)
    run = _run_of(Path(source.location))
    if run is not None:
        check_settings(run.path)
    changed = merge or (dtype is not None and dtype != _dtype(source, trust_remote_code))
    files = [] if changed else _own_files(Path(source.location))
    is_adapter = source.adapter and not merge
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if changed:
            _write(source, base, folder, written, trust_remote_code)
        for file in files:
            shutil.copy2(file, folder / file.name)
        facts = facts_of(run, None if base is None else base.asked, is_adapter, licence)
        write_atomic(folder / CARD, card(facts, Path(model).name if run is None else run.path.name))
    except BaseException:  # a half of it would look whole, and the same line would be refused
        for file in folder.iterdir():
            file.unlink()
        raise
    return Exported(folder, is_adapter, written, None if base is None else base.asked, source.quantization)


def _own_files(place: Path) -> list[Path]:
    """The files of a model's directory that go along; UsageError for a link that leads out of it."""
    # Somebody else's directory could lead to a private file, which would be handed on with the model. A snapshot of the
    # hub's cache consists of links into the blobs of its repository.
    real = place.resolve()
    own = [real, *([real.parents[1] / "blobs"] if real.parent.name == "snapshots" else [])]
    found = [f for f in sorted(place.iterdir()) if f.is_file() and not f.name.startswith(".") and f.name != CARD]
    for file in found:
        if not any(file.resolve().is_relative_to(folder) for folder in own):
            raise UsageError(
                f"{file}: a link out of its directory, to {file.resolve()}; put a copy in its place if it belongs to the "
                "model, or remove it"
            )
    return found


def _dtype(source: ModelSource, trust_remote_code: bool) -> str:
    if source.adapter:
        return "float32"
    return weights_dtype(load_config(source, trust_remote_code), source.location, source.revision)


def _write(source: ModelSource, base: ModelSource | None, folder: Path, dtype: str, trust_remote_code: bool) -> None:
    """Load the whole model, its adapter merged, in the dtype that is written, and save it."""
    import torch
    from transformers import GenerationConfig

    # Merged in the base's own dtype, as peft does, and cast afterwards.
    settings = ModelConfig(dtype=source.dtype or "auto", lora=LoraConfig(), trust_remote_code=trust_remote_code)
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


def next_lines(done: Exported) -> list[tuple[str, str]]:
    """What can be done with an exported model, upload it or convert it: (line to type, what it does)."""
    folder = shlex.quote(str(done.folder))
    lines = [(f"hf upload OWNER/NAME {folder}", "to the hub")]
    if done.adapter:
        lines.append((f"python convert_lora_to_gguf.py {folder}", "llama.cpp's: makes a GGUF adapter of it"))
    else:
        kind = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[done.dtype]
        lines.append(
            (f"python convert_hf_to_gguf.py {folder} --outtype {kind}", "llama.cpp's: makes a GGUF file of it")
        )
    return lines
