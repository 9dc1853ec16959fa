"""LoRA adapters: fresh ones to train, stored ones to read, and merging that leaves tied weights what they were.

A tied model keeps one matrix for its embeddings and its output layer. An adapter of one of the two changes that one
alone, so merging it needs two matrices: the product is untied, in its weights and in its configuration. peft would add
the product to the one matrix, and so to both layers.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from alphapo_cli.config.schema import LoraConfig as LoraSettings
from alphapo_cli.config.schema import ModelConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.modeling.deferred import is_deferred, merge_later
from alphapo_cli.modeling.locations import SETTINGS
from alphapo_cli.modeling.policy import bare

# Names of the embeddings and of the output layer in most architectures.
VOCABULARY_LAYERS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head", "embed_out")
_PREFIX = "base_model.model."
_LACKING = "Found missing adapter keys"  # how peft's warning begins
# A tensor of an adapter that has a row (lora_embedding_A: a column) for every token, and the layer that it belongs to.
_OF_VOCABULARY = re.compile(
    r"(?P<layer>.+?)(?:\.token_adapter)?(?:\.base_layer)?\.(?P<kind>weight|lora_B\.weight|lora_embedding_A)"
)


@contextlib.contextmanager
def handled_by_us() -> Iterator[None]:
    """Without peft's warnings about tied weights, which `merged` unties and `saving.read_back` compares."""
    with warnings.catch_warnings():
        for message in (
            r"Model (has|with) `tie_word_embeddings=True`",
            r"Input and output embeddings are no longer tied",
            r"Setting `save_embedding_layers`",
            r"All adapters are already merged",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def check_lora(cfg: LoraSettings) -> None:
    """Check the settings of adapters.

    Raises:
        UsageError: an adapter setting is given while there are no adapters, or `target_modules` is empty.
    """
    changed = [f.name for f in fields(cfg) if f.name != "r" and getattr(cfg, f.name) != getattr(LoraSettings(), f.name)]
    if cfg.r is None and changed:
        shown = f"model.lora.{changed[0]}={getattr(cfg, changed[0])}"
        raise UsageError(
            f"{shown}: there are no adapters while model.lora.r is null; add model.lora.r=16, or leave it out"
        )
    if cfg.target_modules == []:
        raise UsageError("model.lora.target_modules=[]: names no layer; leave it null for every linear layer")


def add_lora(model: Any, cfg: ModelConfig, seed: int) -> Any:
    """Return the model with fresh LoRA adapters, which leave its outputs unchanged at first; the base is frozen.

    Raises:
        UsageError: `target_modules` names a layer that the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    lora = cfg.lora
    assert lora.r is not None
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.r,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]), handled_by_us():
            torch.manual_seed(seed)
            return get_peft_model(model, config)
    except ValueError as error:
        names = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise UsageError(
            f"model.lora.target_modules={lora.target_modules}: not in this model (linear layers: {', '.join(names)})"
        ) from error


def load_adapter(base: Any, folder: Path, *, merge: bool = True) -> Any:
    """Return `base` with a stored adapter.

    A base whose vocabulary was enlarged before the adapter was trained is enlarged here, to the rows that the adapter
    has.

    Args:
        base: the model that the adapter changes.
        folder: the adapter's directory.
        merge: whether it is merged into the base, every parameter ready to train; else it lies over it, frozen.

    Returns:
        The base, or a peft model.

    Raises:
        UsageError: tensors are missing; or the adapter's embeddings and output layer have different numbers of rows, or other numbers than the
            base without bringing them.
        RuntimeError, ValueError: peft cannot read the adapter, or it belongs to another model.
    """
    from peft import PeftModel

    rows, own = vocabulary_rows(folder, base), base.get_input_embeddings().weight.shape[0]
    if rows is not None and rows != own:
        if not any(kind == "weight" for _, kind, _ in _vocabulary_tensors(folder, base)):
            raise UsageError(
                f"{folder}: was trained on a vocabulary of {rows} tokens and its base has {own}, and it does not bring the "
                "embeddings of the others; save it again with save_embedding_layers=True, or give the base that was resized"
            )
        base.resize_token_embeddings(rows, mean_resizing=False)
    with handled_by_us():
        warnings.filterwarnings("error", message=_LACKING)  # peft goes on without them
        try:
            adapted = PeftModel.from_pretrained(base, folder)
        except UserWarning as error:
            first = str(error).partition("['")[2].partition("'")[0]
            raise UsageError(
                f"{folder}: the adapter's file lacks tensors that {SETTINGS} names (first {first}); save the adapter again, "
                "or copy its directory whole"
            ) from error
        if not merge:
            return adapted.requires_grad_(False)
        model = merged(adapted)
    model.requires_grad_(True)  # peft had frozen it
    return model


def vocabulary_rows(folder: Path, base: Any | None = None) -> int | None:
    """Read the size of the vocabulary of an adapter that stores embeddings or output layer, or changes of them.

    Args:
        folder: the adapter's directory.
        base: its base model, by whose names the two are recognised; None: by the names that most models use.

    Returns:
        Their number of rows, None where the adapter stores neither.

    Raises:
        UsageError: the two have different numbers of rows.
    """
    found = {name: rows for name, _, rows in _vocabulary_tensors(folder, base)}
    if len(set(found.values())) > 1:
        sizes = ", ".join(f"{name} {n}" for name, n in sorted(found.items()))
        raise UsageError(f"{folder}: the adapter's layers disagree about the size of the vocabulary ({sizes})")
    return next(iter(found.values()), None)


def _vocabulary_tensors(folder: Path, base: Any | None) -> list[tuple[str, str, int]]:
    """(name, kind, number of tokens) of an adapter's tensors of embeddings and output layer, see `vocabulary_rows`."""
    names = set(VOCABULARY_LAYERS)
    if base is not None:
        wanted = (base.get_input_embeddings(), base.get_output_embeddings())
        names |= {name for name, module in base.named_modules() if any(module is w for w in wanted)}
    found = []
    for name, shape in stored_shapes(folder).items():
        match = _OF_VOCABULARY.fullmatch(name)
        if match is not None and len(shape) == 2 and any(f".{match['layer']}".endswith(f".{n}") for n in names):
            # lora_B is of the output layer alone: of embeddings peft calls it lora_embedding_B.
            found.append((name, match["kind"], shape[1] if match["kind"] == "lora_embedding_A" else shape[0]))
    return found


def stored_shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of the tensors of an adapter, by the names that they have in the base model."""
    from safetensors import SafetensorError, safe_open

    file = folder / "adapter_model.safetensors"
    try:
        if file.is_file():
            with safe_open(file, framework="pt") as stored:
                shapes = {name: list(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
        else:
            old = torch.load(folder / "adapter_model.bin", map_location="cpu", weights_only=True)
            shapes = {name: list(tensor.shape) for name, tensor in old.items()}
    except (SafetensorError, OSError, ValueError, RuntimeError, UnpicklingError):
        return {}  # whoever reads the tensors says what is wrong
    return {name.removeprefix(_PREFIX): shape for name, shape in shapes.items()}


def merged(model: Any) -> Any:
    """Merge the adapters of a peft model into its base, which is changed.

    Embeddings and output layer that share their weights and of which one is adapted are untied first.

    Returns:
        The base model.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    lm = bare(model)
    uses: dict[int, int] = {}
    for _, parameter in lm.named_parameters(remove_duplicate=False):
        uses[_memory_of(parameter)] = uses.get(_memory_of(parameter), 0) + 1
    for module in list(lm.modules()):
        if isinstance(module, BaseTunerLayer):
            layer = module.get_base_layer()
            if uses.get(_memory_of(layer.weight), 1) > 1:
                layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=layer.weight.requires_grad)
            if is_deferred(layer):
                merge_later(module)
    with handled_by_us():
        lm = model.merge_and_unload()
    if is_tied(lm.config) and _weight(lm.get_input_embeddings()) is not _weight(lm.get_output_embeddings()):
        for config in {id(c): c for c in (lm.config, lm.config.get_text_config())}.values():
            config.tie_word_embeddings = False
    return lm


def _memory_of(parameter: nn.Parameter) -> int:
    """Equal for parameters that share their numbers."""
    return parameter.data_ptr() or id(parameter)  # one whose numbers are in a file has no address


def is_tied(config: Any) -> bool:
    """Whether a configuration says that embeddings and output layer share their weights."""
    return bool(getattr(config, "tie_word_embeddings", False) or config.get_text_config().tie_word_embeddings)


def _weight(module: nn.Module | None) -> Any:
    return getattr(module, "weight", None)
