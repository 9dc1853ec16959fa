"""Saving of models: repaired where that is harmless, and read back to see that they are what was trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from alphapo_cli.errors import AlphapoError, first_line
from alphapo_cli.modeling.adapters import handled_by_us, merged
from alphapo_cli.modeling.declared import as_ids
from alphapo_cli.modeling.locations import SETTINGS
from alphapo_cli.modeling.policy import bare
from alphapo_cli.modeling.quantisation import NONE, dequantised_model, freeze, loading, quantisation_of

# Of a model's bytes: what its copy needs in memory beside its weights.
_HEADROOM = 1.2


def save_model(lm: Any, tokenizer: Any, folder: Path, *, end_id: int, merge: bool = False) -> Any:
    """Save what plain transformers and vLLM load: safetensors, tokenizer with chat template, generation config.

    Args:
        lm: the model, bare or in a peft wrapper. An adapter is saved as such unless `merge`.
        tokenizer: its tokenizer.
        folder: where the files go.
        end_id: the token that ends a completion in training. It is added to the ids at which generation stops: for
            ChatML and its like it is not the tokenizer's end-of-text token.
        merge: whether to merge adapters into a copy of the model, and save that; of a quantised base the copy has whole
            weights in the dtype of those that are not quantised.

    Returns:
        The model as it was saved: `lm`, or the merged copy.

    Raises:
        OSError: the disk refuses.
        Exception: transformers, peft or the tokenizer refuse.
    """
    if merge and hasattr(lm, "merge_and_unload"):
        lm = merged(copy.deepcopy(lm)) if quantisation_of(lm) == NONE else dequantised_model(lm)
    save_with(lm, tokenizer, folder, end_id=end_id)
    return lm


def save_with(lm: Any, tokenizer: Any, folder: Path, *, end_id: int, state: Mapping[str, Tensor] | None = None) -> None:
    """Save a model's settings, the weights `state` (None: its own) and the tokenizer; see `save_model`."""
    inner = bare(lm)
    repair_generation(inner)
    inner.config.use_cache = True  # off in training, on for generation
    with handled_by_us():
        lm.save_pretrained(folder, **({} if state is None else {"state_dict": dict(state)}))
    tokenizer.save_pretrained(folder)
    generation = copy.deepcopy(inner.generation_config)
    stops = as_ids(generation.eos_token_id) or as_ids(inner.config.get_text_config().eos_token_id)
    generation.eos_token_id = list(dict.fromkeys([end_id, *stops]))
    generation.save_pretrained(folder)


def repair_generation(lm: Any) -> list[str]:
    """Make the model's generation settings such that transformers saves them.

    Hub models often come with settings that contradict one another (do_sample=false beside a temperature), or that are
    kept in config.json, as was the custom; transformers loads both and refuses to save them.

    Args:
        lm: a bare transformers model; its configurations are changed.

    Returns:
        The settings that were left out, because another one makes them have no effect, or that contradict another one.
    """
    from transformers import GenerationConfig

    generation = lm.generation_config
    for name, value in lm.config._get_generation_parameters().items():
        if getattr(generation, name, None) == getattr(GenerationConfig(), name, None):
            setattr(generation, name, value)
        delattr(lm.config, name)
    left_out: list[str] = []
    while (fault := _fault(generation)) is not None:
        # The one without which nothing is wrong; else one without which something else is.
        changes = [(name, _without(generation, name)) for name in sorted(generation.to_diff_dict())]
        changes.sort(key=lambda change: _fault(change[1]) is not None)
        name, generation = next(((n, c) for n, c in changes if _fault(c) != fault), ("all", GenerationConfig()))
        left_out.append(name)
    if left_out == ["all"]:
        generation.bos_token_id, generation.eos_token_id = lm.config.bos_token_id, lm.config.eos_token_id
    lm.generation_config = generation
    return left_out


def _fault(generation: Any) -> str | None:
    """Why transformers would not save the settings."""
    try:
        generation.validate(strict=True)
    except Exception as error:
        return str(error)
    return None


def _without(generation: Any, name: str) -> Any:
    from transformers import GenerationConfig

    changed, default = copy.deepcopy(generation), GenerationConfig()
    if hasattr(default, name):
        setattr(changed, name, getattr(default, name))
    else:
        delattr(changed, name)
    return changed


@dataclass(frozen=True)
class ReadBack:
    """A saved model as plain transformers and peft read it; `lm` is None where no second copy fits into memory."""

    lm: Any | None
    note: str | None = None  # what was not compared, and why


def read_back(saved: Any, folder: Path, device: torch.device) -> ReadBack:
    """Read a saved model and compare every tensor with the one that was saved, bit by bit.

    Args:
        saved: the model as `save_model` returned it.
        folder: where it was saved.
        device: where the model that is read is put, if it fits there; otherwise it stays on the CPU.

    Returns:
        The model that was read, in evaluation mode.

    Raises:
        AlphapoError: the files cannot be read, or hold another model.
    """
    adapter = (folder / SETTINGS).is_file()
    inner = bare(saved)
    needed = _HEADROOM * sum(p.numel() * p.element_size() for p in inner.parameters())
    free = psutil.virtual_memory().available
    try:
        if needed > free:
            _compare(_as_stored(saved, adapter), dict(_tensors_in(folder)), folder)
            gib = f"{needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} free"
            return ReadBack(None, f"its log-probs were not compared: no second copy fits into memory ({gib})")
        lm = _load(saved, folder, adapter)
    except AlphapoError:
        raise
    except Exception as error:
        raise AlphapoError(f"the saved model cannot be read back ({first_line(error)})") from error
    _compare(saved.state_dict(), lm.state_dict(), folder)
    if device.type == "cuda" and needed < torch.cuda.mem_get_info(device)[0]:
        lm.to(device)
    return ReadBack(lm.eval())


def _load(saved: Any, folder: Path, adapter: bool) -> Any:
    """The model in `folder`, as a user would load it."""
    from transformers import AutoModelForCausalLM

    config = bare(saved).config
    # Soft-capped attention is left out by transformers' default, "sdpa".
    soft_capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    settings: dict[str, Any] = {"dtype": bare(saved).dtype, "attn_implementation": "eager" if soft_capped else None}
    kind = quantisation_of(saved)
    # Its code has run already. A configuration may name code (auto_map) beside an architecture of transformers' own.
    remote = type(bare(saved)).__module__.startswith("transformers_modules.")
    if not adapter:
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=remote, **settings)
    from peft import PeftConfig, PeftModel

    stored = PeftConfig.from_pretrained(str(folder))
    if kind != NONE:
        settings |= loading(kind, bare(saved).dtype, bare(saved).device)
    base = AutoModelForCausalLM.from_pretrained(
        stored.base_model_name_or_path, revision=stored.revision, trust_remote_code=remote, **settings
    )
    if kind != NONE:
        freeze(base)
    with handled_by_us():
        return PeftModel.from_pretrained(base, folder)


def _as_stored(saved: Any, adapter: bool) -> Mapping[str, Tensor]:
    """The model's tensors under the names that they have in its files."""
    if not adapter:
        return saved.state_dict()  # type: ignore[no-any-return]
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(saved)  # type: ignore[no-any-return]


def _tensors_in(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors in the safetensors files of `folder`, which are mapped into memory, not read."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - it has no iterator
                yield name, stored.get_tensor(name)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether all elements are the same; those that are no number (guard.non_finite=false) in the same places."""
    if torch.equal(a, b):
        return True
    nan = b.isnan()
    return torch.equal(a.isnan(), nan) and torch.equal(a.masked_fill(nan, 0), b.masked_fill(nan, 0))


def _compare(trained: Mapping[str, Tensor], read: Mapping[str, Tensor], folder: Path) -> None:
    """Compare tensors by name; of tied ones, which share their memory, one in the files is enough.

    Raises:
        AlphapoError: a tensor is missing, not of this model, or different.
    """
    stored_as = {(t.data_ptr(), t.shape): name for name, t in trained.items() if name in read}
    different, worst = [], 0.0
    for name, tensor in trained.items():
        found = read.get(name)
        if found is None:
            found = read.get(stored_as.get((tensor.data_ptr(), tensor.shape), ""))
        if found is None or found.shape != tensor.shape:
            different.append(name)
            worst = float("inf")
        elif not _equal(found.to(tensor.device), tensor):
            different.append(name)
            worst = max(
                worst, (found.double().to(tensor.device) - tensor.double()).abs().nan_to_num(torch.inf).max().item()
            )
    different += sorted(set(read) - set(trained))
    if different:
        raise AlphapoError(
            f"the model read back from {folder.name} is not the one that was trained: {len(different)} of {len(trained)} "
            f"tensors differ (first {different[0]}; by up to {worst:.2g})"
        )
