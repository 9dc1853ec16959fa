"""Saving of sharded models as the files that plain transformers and vLLM load, without the whole model anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from alphapo_cli.errors import AlphapoError
from alphapo_cli.modeling.deferred import numbers
from alphapo_cli.modeling.policy import bare
from alphapo_cli.modeling.saving import save_with
from alphapo_cli.modeling.sharding import at_rest, stored, without_weights

FILE_SIZE = "5GB"  # of a file of weights, which rank 0 holds whole while it is written
_INDEX = "model.safetensors.index.json"


def save_sharded(
    lm: Any, blank: Any, tokenizer: Any, folder: Path | None, *, end_id: int, file_size: str = FILE_SIZE
) -> Exception | None:
    """Save a sharded model as `save_model` saves a whole one, and compare what was written, bit by bit. Collective.

    Args:
        lm: the sharded model, bare or in a peft wrapper, of which only the adapter is saved.
        blank: the same model without weights and not sharded.
        tokenizer: its tokenizer.
        folder: where the files go; None in all processes but rank 0.
        end_id: the token that ends a completion in training.
        file_size: most bytes of a file of weights.

    Returns:
        What went wrong on rank 0. Raised there at once, it would leave the others waiting for their turn to help.
    """
    at_rest(lm)
    state = lm.state_dict()
    if hasattr(lm, "get_base_model"):
        trained = {name for name, p in lm.named_parameters(remove_duplicate=False) if p.requires_grad}
        return _saved_at_once(lm, blank, tokenizer, folder, end_id, [name for name in state if name in trained])
    shapes = _named_as_stored(bare(blank))
    if shapes is None:
        names = list(remove_tied_weights_from_state_dict(_saved_names(bare(blank)), bare(blank)))
        return _saved_at_once(lm, blank, tokenizer, folder, end_id, names)
    plan = split_torch_state_dict_into_shards(
        shapes, filename_pattern="model{suffix}.safetensors", max_shard_size=file_size
    )
    fault = None if folder is None else _tried(lambda: save_with(blank, tokenizer, folder, end_id=end_id, state={}))
    for file, names in plan.filename_to_tensors.items():
        keep = folder is not None and fault is None
        tensors = stored(((name, state[name]) for name in names), keep=keep)
        if folder is not None and keep:
            fault = _tried(lambda to=folder / file, what=tensors: _written(to, what))
    if folder is not None and fault is None and plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        fault = _tried(lambda: (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n"))
    return fault


def try_saving_settings(lm: Any, tokenizer: Any, folder: Path, *, end_id: int) -> int:
    """Save what `save_sharded` will save of a model whose weights are in files, without those weights.

    Args:
        lm: the model, bare or in a peft wrapper, whose adapter is saved.
        tokenizer: its tokenizer.
        folder: where the files go.
        end_id: the token that ends a completion in training.

    Returns:
        The bytes that its weights will take beside these files.

    Raises:
        Exception: as `save_model`.
    """
    if hasattr(lm, "get_base_model"):
        trained = {name: numbers(p.detach()) for name, p in lm.named_parameters() if p.requires_grad}
        save_with(lm, tokenizer, folder, end_id=end_id, state=trained)
        return 0
    blank = without_weights(lm)
    save_with(blank, tokenizer, folder, end_id=end_id, state={})
    weights = remove_tied_weights_from_state_dict(_saved_names(blank), blank)
    return sum(tensor.nbytes for tensor in weights.values())


def _saved_names(inner: Any) -> dict[str, Tensor]:
    """The state of a model without weights, less what transformers leaves out."""
    left_out = inner._keys_to_ignore_on_save or ()
    return {name: tensor for name, tensor in inner.state_dict().items() if name not in left_out}


def _named_as_stored(inner: Any) -> dict[str, Tensor] | None:
    """Names and shapes of the tensors in a model's files; None where they are others than in the model."""
    state = remove_tied_weights_from_state_dict(_saved_names(inner), inner)
    try:
        reverted = revert_weight_conversion(inner, dict(state))
    except Exception:  # it computes with weights, and there are none
        return None
    same = {name: t.shape for name, t in reverted.items()} == {name: t.shape for name, t in state.items()}
    return state if same else None


def _saved_at_once(
    lm: Any, blank: Any, tokenizer: Any, folder: Path | None, end_id: int, names: list[str]
) -> Exception | None:
    """Save by transformers or peft from whole tensors on rank 0: adapters, and models whose files hold other tensors."""
    state = lm.state_dict()
    tensors = stored(((name, state[name]) for name in names), keep=folder is not None)
    if folder is None:
        return None
    return _tried(lambda: save_with(blank, tokenizer, folder, end_id=end_id, state=tensors))


def _written(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of weights and read it back."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    with safe_open(file, framework="pt") as read:
        for name, tensor in tensors.items():
            if not torch.equal(read.get_tensor(name).view(torch.uint8), tensor.contiguous().view(torch.uint8)):
                raise AlphapoError(
                    f"the model read back from {file.name} is not the one that was trained (first {name})"
                )


def _tried(do: Any) -> Exception | None:
    try:
        do()
    except Exception as error:
        return error
    return None
