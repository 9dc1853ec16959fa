"""Prompts to generate answers to: the embedded world's, an instruction list, or the prompts of any data set.

    column                    what it becomes
    instruction               one user message; a non-empty `input` column (Alpaca's form) follows after a blank line
    prompt (or another name)  text: one user message under a chat template, itself without one; messages: as they are
    messages                  the conversation up to the answer that ends it
    chosen and rejected       the prompt that they share, as training reads it

`instruction` identifies a row of model_outputs.json in every later step, so a repeated prompt is answered once.
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
    """One prompt: `side` under a chat template, `plain` without one (None: it needs a template)."""

    instruction: str
    side: Side
    dataset: str
    plain: str | None = None


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts in source order; `repeated`: number of rows dropped as repetitions."""

    rows: tuple[Prompt, ...]
    description: str
    repeated: int = 0


def load_prompts(cfg: DataConfig) -> Prompts:
    """Read the prompts of a data source.

    Args:
        cfg: the data settings. A hub data set's evaluation split wins over its training split; `data.limit` takes the
            first rows.

    Returns:
        The distinct prompts.

    Raises:
        UsageError: the source is missing, unreadable or empty, or a row holds no prompt; the message names the row.
    """
    if cfg.source == "glassbox" and cfg.path is None:
        texts = world.instructions(cfg.limit or GLASSBOX_PROMPTS)
        rows = tuple(Prompt(text, _user_message(text), "glassbox") for text in texts)
        return Prompts(rows, "the embedded world's held-out instructions")
    source, name, description = _read(cfg)
    if not source:
        raise UsageError(
            f"{description}: holds no rows; alphapo generate needs an instruction, prompt or messages column"
        )
    column = _column(source[0], cfg)
    prompts: dict[str, Prompt] = {}
    for row in source:
        prompt = _prompt(row, column, cfg, name)
        if not prompt.instruction.strip():
            raise UsageError(f"{row.where}: the prompt is empty")
        prompts.setdefault(prompt.instruction, prompt)
    return Prompts(tuple(prompts.values()), description, len(source) - len(prompts))


def _read(cfg: DataConfig) -> tuple[Sequence[Row], str, str]:
    """The rows, the name of the data set, and its description for messages."""
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
    """Find the column with prompts.

    Returns:
        Its name; None for pairs, whose answers include the prompt.

    Raises:
        UsageError: the row has neither such a column nor a pair.
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
    own_name = row.values.get("dataset")
    dataset = own_name if isinstance(own_name, str) and own_name else name
    if column is None:
        return _prompt_of_pair(row, cfg, dataset)
    value = row.values.get(column)
    if isinstance(value, list):
        messages = message_list(value, row, column)
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages or messages[-1]["role"] != "user":
            raise UsageError(f"{row.where}: '{column}' holds no user message to answer")
        return Prompt(_as_text(messages), messages, dataset)
    if not isinstance(value, str):
        raise UsageError(f"{row.where}: '{column}' is {_kind(value)}, not text or messages; set data.prompt_column")
    if column == "instruction":
        context = row.values.get("input")
        text = f"{value}\n\n{context}" if isinstance(context, str) and context.strip() else value
        return Prompt(text, _user_message(text), dataset, text if cfg.template == "plain" else None)
    return Prompt(value, value, dataset, value)


def _prompt_of_pair(row: Row, cfg: DataConfig, dataset: str) -> Prompt:
    pair = to_pair(row, detect_form(row, cfg), cfg)
    if pair is None:
        raise UsageError(f"{row.where}: chosen and rejected share no prompt; set data.prompt_column")
    if pair.verbatim is not None:  # a dialogue: messages under a chat template, its own text without one
        return Prompt(pair.verbatim.prompt, pair.prompt, dataset, pair.verbatim.prompt)
    side = pair.prompt
    return Prompt(side, side, dataset, side) if isinstance(side, str) else Prompt(_as_text(side), side, dataset)


def _user_message(text: str) -> Conversation:
    return ({"role": "user", "content": text},)


def _as_text(messages: Conversation) -> str:
    """A conversation as one text: the only user message itself, or every turn with its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
