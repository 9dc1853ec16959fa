"""Whether an architecture can be packed, by what its model does with a packed row rather than by its name.

An architecture that is not known by name runs a row of a few tokens, packed, and its two answers one at a time. Where
attention goes through transformers' registered functions and positions come from `position_ids`, the two agree to
round-off; where one layer does it in another way, an answer sees the other one and they do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alphapo_cli.modeling.layout.attention import UNREAD_MASK
from alphapo_cli.modeling.layout.numbers import has_numbers
from alphapo_cli.modeling.layout.packing import Packing, Segment

# Of the hidden states, relative: float32 rounds to 1e-7 and 16 bits to 1e-2 over many layers; another context is 1e-1.
_TOLERANCE = {4: 1e-3, 8: 1e-6}
_NARROW = 3e-2
_SHARED, _OWN = 3, (2, 1)  # tokens of a prompt and of two answers


@torch.no_grad()
def disagrees(model: Any, own: str | None) -> str | None:
    """Run a prepared model, bare, on a packed row and on the row's answers.

    Args:
        model: the model, whose last layer returns `Packing.rows` alone.
        own: the name of its own attention, with which the answers are run one at a time.

    Returns:
        Why it cannot be packed; None if it can. A model without numbers (on the meta device) is believed.
    """
    if not has_numbers(model.get_input_embeddings().weight):
        return None
    vocabulary = model.get_input_embeddings().weight.shape[0]
    total = _SHARED + sum(_OWN)
    ids = (torch.arange(total, device=model.device) * 7 + 5) % vocabulary
    mode = model.training
    model.eval()
    seen: list[Any] = []
    ours = model.config._attn_implementation
    try:
        packed = _packed(model, ids, seen)
        model.config._attn_implementation = own
        alone = _alone(model, ids)
    except Exception as error:  # its forward does not take what a packed row needs
        return f"it does not run a packed row ({type(error).__name__})"
    finally:
        model.config._attn_implementation = ours
        model.train(mode)
    if packed.shape != alone.shape:
        return "its attention does not go through transformers' registered functions"
    apart = ((packed - alone).double().norm() / alone.double().norm()).item()
    if not apart <= _TOLERANCE.get(packed.dtype.itemsize, _NARROW):
        return f"a packed row gives other hidden states than its answers one at a time (by {apart:.0e})"
    return _window_fault(model.config, seen)


def _packed(model: Any, ids: Tensor, seen: list[Any]) -> Tensor:
    """Hidden states [K, H] of the packed row at the positions that predict a token."""
    row = torch.arange(_SHARED - 1, len(ids), device=ids.device)
    packing = Recorded((Segment(_SHARED, _OWN, _SHARED - 1),), row)
    positions = torch.cat([torch.arange(_SHARED), *(torch.arange(_SHARED, _SHARED + n) for n in _OWN)])
    out = model.base_model(
        input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0).to(ids.device), attention_mask=UNREAD_MASK,
        packing=packing, use_cache=False,
    )  # fmt: skip
    seen += packing.windows
    states: Tensor = out.last_hidden_state[0]
    return states


def _alone(model: Any, ids: Tensor) -> Tensor:
    """The same, from each answer behind its prompt."""
    start, parts = _SHARED, []
    for n, length in enumerate(_OWN):
        whole = torch.cat([ids[:_SHARED], ids[start : start + length]])
        states = model.base_model(input_ids=whole.unsqueeze(0), attention_mask=None, use_cache=False).last_hidden_state[
            0
        ]
        parts.append(states[_SHARED - 1 if n == 0 else _SHARED :])
        start += length
    return torch.cat(parts)


class Recorded(Packing):
    """A packing that records the window of each attention over it."""

    @property
    def windows(self) -> list[int | None]:
        """The windows, in order of the calls."""
        found: list[int | None] = self._masks.setdefault("windows", [])
        return found

    def causal(self, queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
        """See `Packing.causal`."""
        self.windows.append(window)
        return super().causal(queries, keys, window, device)

    def block_mask(self, pruned: bool, window: int | None, device: torch.device) -> Any:
        """See `Packing.block_mask`."""
        self.windows.append(window)
        return super().block_mask(pruned, window, device)


def _window_fault(config: Any, windows: list[int | None]) -> str | None:
    """Why attention that is local in the model would not be in a packed row: windows are longer than the row tried."""
    text = config.get_text_config()
    kinds = list(getattr(text, "layer_types", None) or ())
    others = sorted({kind for kind in kinds if kind not in ("full_attention", "sliding_attention")})
    if others:
        return f"it has layers of {others[0]}"
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if window is None:
        return None
    layers = kinds.count("sliding_attention") if kinds else text.num_hidden_layers
    local = sum(found is not None for found in windows) * text.num_hidden_layers
    if local != layers * len(windows):
        return "its sliding window is in a mask alone"
    return None
