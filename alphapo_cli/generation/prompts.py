"""Prompts to generate answers to: the embedded world's, an instruction list, or the prompts of any data set.

    column                    what it becomes
    instruction               one user message; a non-empty `input` column (Alpaca's form) follows after a blank line
    prompt (or another name)  text: one user message under a chat template, itself without one; messages: as they are
    messages                  the conversation up to the answer that ends it
    chosen and rejected       the prompt that they share, as training reads it

What a row gives the chat template beside (system text, tools, ...) is read as in training, see `data.row_context`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data import row_context
from alphapo_cli.data.folders import find
from alphapo_cli.data.glassbox import world
from alphapo_cli.data.load import (
    SourceRows,
    has_evaluation,
    paths_of,
    placed,
    read_sources,
    refuse_media,
    split_paths,
)
from alphapo_cli.data.messages import MediaFound, message_list, type_name
from alphapo_cli.data.row_formats import detect_form, to_pair
from alphapo_cli.data.sources import Row
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.template import conversation_of
from alphapo_cli.data.text_pairs import ANSWER_KEYS, TOOL_ROLES, Conversation, Message, Side
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.prompt import Prompt, Prompts, as_text, named_apart, of_pair

GLASSBOX_PROMPTS = 256  # as many as the probe samples
_PROMPT = "prompt"
# Columns of answers, which generation has no use for and need not be spoken of.
_ANSWERS = ("output", "generator", "chosen", "rejected", "completion", "completions", "response", "responses", "label")
_BARE = DataConfig()


def load_prompts(cfg: DataConfig, *, continue_assistant: bool = False) -> Prompts:
    """Read the prompts of a data source.

    Args:
        cfg: the data settings. An evaluation split (`data.eval_split`) wins over the training split; `data.limit` takes
            the first rows of each source.
        continue_assistant: whether an assistant turn at the end of a prompt is the beginning of the answer; else it is
            left out.

    Returns:
        The distinct prompts.

    Raises:
        UsageError: the source is missing, unreadable or empty, a row holds no prompt, or rows hold images, video or
            audio; the message names the row.
    """
    if cfg.source == "glassbox" and cfg.path is None:
        texts = world.instructions(cfg.limit or GLASSBOX_PROMPTS)
        rows = tuple(Prompt(text, _user_message(text), "glassbox") for text in texts)
        return Prompts(rows, "the embedded world's held-out instructions", read=len(rows))
    prompts: dict[str, Prompt] = {}
    answered, unread, read = 0, Tally(), 0
    sources = _sources(cfg)
    for source in sources:
        if not source.rows:
            raise UsageError(
                f"{source.description}: holds no rows; alphapo generate needs an instruction, prompt or messages column"
            )
        column, name = _column(source.rows[0], cfg), _dataset(source, cfg)
        media = Tally()
        for row in source.rows:
            try:
                prompt, ends = _prompt(row, column, cfg, name, unread, continue_assistant)
            except MediaFound as error:
                media.add(error.what, row.where)
                continue
            if not prompt.instruction.strip():
                raise UsageError(f"{row.where}: the prompt is empty")
            answered += ends
            prompts.setdefault(prompt.key, prompt)
        refuse_media(media, len(source.rows), source.description)
        read += len(source.rows)
    description = " + ".join(source.description for source in sources)
    return Prompts(named_apart(list(prompts.values())), description, read - len(prompts), answered, unread, read)


def check_files(cfg: DataConfig) -> None:
    """Check that the files of prompts are there, by the code with which `load_prompts` finds them; reads no row.

    Args:
        cfg: the data settings.

    Raises:
        UsageError: a file is missing, or none is named. Names of the hub are believed.
    """
    if cfg.source == "glassbox" and cfg.path is None:
        return
    _check_named(cfg)
    cfg = replace(cfg, eval_path=None)
    evaluated = split_paths(cfg)
    split, setting = (cfg.eval_split or "", "data.eval_split") if evaluated else (cfg.split, "data.split")
    for path in evaluated or paths_of(cfg.path):
        find(placed(path, cfg), split, cfg.config, setting)


def _check_named(cfg: DataConfig) -> None:
    if cfg.path is None and (cfg.source != "hub" or cfg.name is None):
        key = "data.name=OWNER/DATASET" if cfg.source == "hub" else "data.path=FILE"
        raise UsageError(f"{key} is missing: which prompts?")


def _sources(cfg: DataConfig) -> list[SourceRows]:
    """The sources with their rows, of the evaluation split where one is named."""
    _check_named(cfg)
    cfg = replace(cfg, eval_path=None)  # of pairs; conf/data/ may name one
    if not has_evaluation(cfg):
        return read_sources(cfg)
    sources = read_sources(cfg, evaluation=True)
    return [replace(source, rows=source.rows[: cfg.limit]) for source in sources]


def _dataset(source: SourceRows, cfg: DataConfig) -> str:
    """The name of the data set in model_outputs.json."""
    if source.report.files:
        return source.report.files[0].partition(".")[0]
    return Path(str(cfg.name)).stem


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


def _prompt(
    row: Row, column: str | None, cfg: DataConfig, name: str, unread: Tally, continue_assistant: bool
) -> tuple[Prompt, bool]:
    """The prompt of a row, and whether an assistant turn that ended it was left out."""
    own_name = row.values.get("dataset")
    dataset = own_name if isinstance(own_name, str) and own_name else name
    if column is None:
        return _prompt_of_pair(row, cfg, dataset, unread), False
    row_context.check_media(row, (column,), cfg)
    value, context = row_context.prompt_value(row, column, cfg), row_context.context_of(row, cfg)
    answered = continued = False
    side: Side
    if isinstance(value, list):
        messages = message_list(value, row, column)
        asked = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
        if not asked or asked[-1]["role"] not in ("user", *TOOL_ROLES):
            raise UsageError(f"{row.where}: '{column}' holds no user message to answer")
        if len(asked) < len(messages):
            continued = continue_assistant and _is_beginning(messages[-1], row, column)
            answered, messages = not continued, messages if continued else asked
        context = row_context.beside(messages, context)
        side = row_context.without_foreign_nulls(messages, context.arguments.get("tools", ()))
        text = as_text(conversation_of(side, _BARE, context))
        prompt = Prompt(text, side, dataset, None, context, continued, row.where)
    elif isinstance(value, str):
        bare = column != row_context.INSTRUCTION or cfg.template == "plain"
        side = value if column != row_context.INSTRUCTION else _user_message(value)
        text = as_text(conversation_of(side, _BARE, context))
        prompt = Prompt(text, side, dataset, value if bare else None, context, where=row.where)
    else:
        raise UsageError(
            f"{row.where}: '{column}' is {'missing' if value is None else type_name(value)}, not text or messages; set "
            "data.prompt_column"
        )
    read = (column, "dataset", *_ANSWERS, *row_context.context_columns(row, prompt.context, cfg))
    read += (row_context.INPUT,) if row_context.joins_input(row, column) else ()
    row_context.count_unread(row, read, {}, cfg, unread)
    return prompt, answered


def _prompt_of_pair(row: Row, cfg: DataConfig, dataset: str, unread: Tally) -> Prompt:
    pair = to_pair(row, detect_form(row, cfg), cfg, unread)
    if pair is None:
        raise UsageError(f"{row.where}: chosen and rejected share no prompt; set data.prompt_column")
    return replace(of_pair(pair, dataset), where=row.where)


def _is_beginning(message: Message, row: Row, column: str) -> bool:
    """Whether an assistant turn has text to continue; UsageError for one with tool calls, which are no text."""
    if any(key in message for key in ANSWER_KEYS):
        keys = ", ".join(key for key in ANSWER_KEYS if key in message)
        raise UsageError(
            f"{row.where}: the assistant turn that ends '{column}' has {keys}, which generation.continue_assistant cannot "
            "continue; leave the setting out, or take the turn away"
        )
    return bool(message["content"].strip())


def _user_message(text: str) -> Conversation:
    return ({"role": "user", "content": text},)
