"""Where prompts come from: the embedded world, an instruction list, or the prompts of any data set.

    column                    what it becomes
    instruction               one user message; a non-empty `input` column (Alpaca's form) follows after a blank line
    prompt (or another name)  text: one user message under a chat template, itself without one; messages: as they are
    messages                  the conversation up to the answer that ends it
    chosen and rejected       the prompt that they share, as training reads it

`instruction` is the text under which an answer stands in model_outputs.json. It names the row in every later step, so
a prompt that comes twice is answered once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.glassbox import world
from alphapo_cli.data.load import has_evaluation
from alphapo_cli.data.row_formats import detect_form, message_list, to_pair
from alphapo_cli.data.sources import Row, find_files, read_files, read_hub
from alphapo_cli.data.text_pairs import Conversation, Side
from alphapo_cli.errors import UsageError

GLASSBOX_PROMPTS = 256  # as many as the probe samples
_PROMPT = "prompt"


@dataclass(frozen=True)
class Prompt:
    """What is asked: `side` under a chat template, `plain` without one (None: it makes no sense without)."""

    instruction: str
    side: Side
    dataset: str
    plain: str | None = None


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts in source order; `repeated`: how many rows came again and are answered once."""

    rows: tuple[Prompt, ...]
    description: str
    repeated: int = 0


def load_prompts(cfg: DataConfig) -> Prompts:
    """The prompts that `data` names; an evaluation split wins over the training split. `data.limit`: the first rows.

    Raises:
        UsageError: nothing is there, it cannot be read, or a row holds no prompt (which row).
    """
    if cfg.source == "glassbox" and cfg.path is None:
        texts = world.instructions(cfg.limit or GLASSBOX_PROMPTS)
        rows = tuple(Prompt(text, _user(text), "glassbox") for text in texts)
        return Prompts(rows, "the embedded world's held-out instructions")
    source, name, description = _read(cfg)
    if not source:
        raise UsageError(
            f"{description}: holds no rows; alphapo generate needs an instruction, prompt or messages column"
        )
    column = _column(source[0], cfg)
    found: dict[str, Prompt] = {}
    for row in source:
        prompt = _prompt(row, column, cfg, name)
        if not prompt.instruction.strip():
            raise UsageError(f"{row.where}: the prompt is empty")
        found.setdefault(prompt.instruction, prompt)
    return Prompts(tuple(found.values()), description, len(source) - len(found))


def _read(cfg: DataConfig) -> tuple[Sequence[Row], str, str]:
    """(rows, name of the data set, its description)"""
    if cfg.path is not None:
        first = find_files(cfg.path)[0]
        return read_files(cfg.path, cfg.limit), first.name.partition(".")[0], cfg.path
    if cfg.source == "hub" and cfg.name is not None:
        split = str(cfg.eval_split) if has_evaluation(cfg) else cfg.split
        rows = read_hub(cfg.name, cfg.config, split, cfg.revision, cfg.limit, cfg.data_dir)
        one_file = cfg.name.count("/") > 1
        return rows, Path(cfg.name).stem, cfg.name if one_file else f"{cfg.name}:{split}"
    key = "data.name=OWNER/DATASET" if cfg.source == "hub" else "data.path=FILE"
    raise UsageError(f"{key} is missing: which prompts?")


def _column(row: Row, cfg: DataConfig) -> str | None:
    """The column that holds prompts; None for pairs whose answers hold them.

    Raises:
        UsageError: there is none.
    """
    if cfg.prompt_column != _PROMPT:
        candidates: tuple[str, ...] = (cfg.prompt_column,)
    else:
        candidates = ("instruction", _PROMPT, "messages")
    for name in candidates:
        if row.values.get(name) is not None:
            return name
    if row.values.get(cfg.chosen_column) is not None and row.values.get(cfg.rejected_column) is not None:
        return None
    raise UsageError(
        f"{row.where}: no column {' or '.join(repr(name) for name in candidates)} "
        f"(columns: {', '.join(map(str, row.values)) or 'none'}); set data.prompt_column"
    )


def _prompt(row: Row, column: str | None, cfg: DataConfig, name: str) -> Prompt:
    given = row.values.get("dataset")
    dataset = given if isinstance(given, str) and given else name
    if column is None:
        return _of_pair(row, cfg, dataset)
    value = row.values.get(column)
    if isinstance(value, list):
        messages = message_list(value, row, column)
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages or messages[-1]["role"] != "user":
            raise UsageError(f"{row.where}: '{column}' holds no user message to answer")
        return Prompt(_spoken(messages), messages, dataset)
    if not isinstance(value, str):
        raise UsageError(f"{row.where}: '{column}' is {_kind(value)}, not text or messages; set data.prompt_column")
    if column == "instruction":
        context = row.values.get("input")
        text = f"{value}\n\n{context}" if isinstance(context, str) and context.strip() else value
        return Prompt(text, _user(text), dataset, text if cfg.template == "plain" else None)
    return Prompt(value, value, dataset, value)


def _of_pair(row: Row, cfg: DataConfig, dataset: str) -> Prompt:
    pair = to_pair(row, detect_form(row, cfg), cfg)
    if pair is None:
        raise UsageError(f"{row.where}: chosen and rejected share no prompt; set data.prompt_column")
    if pair.verbatim is not None:  # a dialogue: messages under a chat template, its own text without one
        return Prompt(pair.verbatim.prompt, pair.prompt, dataset, pair.verbatim.prompt)
    side = pair.prompt
    return Prompt(side, side, dataset, side) if isinstance(side, str) else Prompt(_spoken(side), side, dataset)


def _user(text: str) -> Conversation:
    return ({"role": "user", "content": text},)


def _spoken(messages: Conversation) -> str:
    """A conversation as one text: the only user message itself, or every turn with its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
