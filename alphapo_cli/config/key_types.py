"""What the typed configuration takes at a key: a text, a number, keys of the user's choice."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, ListConfig, OmegaConf, StringNode

FREE = (
    "data.chat_template_kwargs",
    "judge.chat_template_kwargs",
    "judge.extra_body",
    "measures",
    "scorers",
    "select",
)  # groups whose keys are not the schema's
# The type that a key of the schema takes, for messages.
_KINDS: dict[type, str] = {
    BooleanNode: "true or false",
    IntegerNode: "a whole number",
    FloatNode: "a number",
    StringNode: "a text",
    ListConfig: "a list such as [a,b]",
}


def expected(cfg: DictConfig, key: str) -> str | None:
    """What the schema takes at `key`, for a message; None where there is no such key."""
    node = node_at(cfg, key)
    expected = next((text for kind, text in _KINDS.items() if isinstance(node, kind)), None)
    if node is None or expected is None:
        return None
    return f"must be {expected}{' or null' if node._is_optional() else ''}"


def node_at(cfg: DictConfig, key: str) -> Any:
    """The typed node at `key`, None where there is none."""
    parent, _, name = key.rpartition(".")
    holder = OmegaConf.select(cfg, parent) if parent else cfg
    return holder._get_node(name, validate_access=False) if isinstance(holder, DictConfig) else None


def takes_text(schema: type[Any], key: str) -> bool:
    """Whether the schema takes a text, or a list of texts, at `key`."""
    return is_text(OmegaConf.structured(schema), key)


def is_text(cfg: DictConfig, key: str) -> bool:
    """Whether the configuration takes a text, or a list of texts, at `key`."""
    node = node_at(cfg, key)
    if isinstance(node, StringNode) or (isinstance(node, ListConfig) and node._metadata.element_type is str):
        return True
    parent, _, name = key.rpartition(".")
    holder = OmegaConf.get_type(OmegaConf.select(cfg, parent)) if node is not None and parent else None
    return (
        holder is not None
        and is_dataclass(holder)
        and any(f.name == name for f in fields(holder) if "texts" in f.metadata)
    )


def is_free(key: str) -> bool:
    """Whether `key` is or lies in a group whose keys the user chooses."""
    return any(f"{key}.".startswith(f"{group}.") for group in FREE)
