"""Prompts to generate answers to: the embedded world's, an instruction list, or the prompts of any data set.

    column                    what it becomes
    instruction               one user message; a non-empty `input` column (Alpaca's form) follows after a blank line
    prompt (or another name)  text: one user message under a chat template, itself without one; messages: as they are
    messages                  the conversation up to the answer that ends it
    chosen and rejected       the prompt that they share, as training reads it

What a row gives the chat template beside (system text, tools, ...) is read as in training, see `data.row_context`.

`instruction` identifies a row of model_outputs.json in every later step: a repeated prompt is answered once, and of two
conversations that read the same as text each is written as JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data import row_context
from alphapo_cli.data.glassbox import world
from alphapo_cli.data.load import SourceRows, has_evaluation, read_sources, refuse_media
from alphapo_cli.data.messages import MediaFound, message_list, type_name
from alphapo_cli.data.row_formats import detect_form, to_pair
from alphapo_cli.data.sources import Row
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.template import conversation_of
from alphapo_cli.data.text_pairs import (
    ANSWER_KEYS,
    NO_CONTEXT,
    TOOL_ROLES,
    Conversation,
    PromptContext,
    Side,
    digest,
    essential,
)
from alphapo_cli.errors import UsageError

GLASSBOX_PROMPTS = 256  # as many as the probe samples
_PROMPT = "prompt"
# Columns of answers, which generation has no use for and need not be spoken of.
_ANSWERS = ("output", "generator", "chosen", "rejected", "completion", "completions", "response", "responses", "label")


@dataclass(frozen=True)
class Prompt:
    """One prompt: `side` under a chat template, `plain` without one (None: it needs a template).

    `context`: what the row gives the template beside the messages.
    """

    instruction: str
    side: Side
    dataset: str
    plain: str | None = None
    context: PromptContext = NO_CONTEXT

    @property
    def key(self) -> str:
        """Digest of all that makes it another prompt."""
        return digest([self.instruction, essential(conversation_of(self.side, _BARE)), self.context.content])


_BARE = DataConfig()


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts in source order.

    Attributes:
        rows: the prompts.
        description: their source.
        repeated: rows dropped as repetitions.
        answered: rows that end with an answer, which is left out.
        unread: rows by column that nobody reads.
        read: all rows.
    """

    rows: tuple[Prompt, ...]
    description: str
    repeated: int = 0
    answered: int = 0
    unread: Tally = field(default_factory=Tally)
    read: int = 0


def load_prompts(cfg: DataConfig) -> Prompts:
    """Read the prompts of a data source.

    Args:
        cfg: the data settings. An evaluation split (`data.eval_split`) wins over the training split; `data.limit` takes
            the first rows of each source.

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
                prompt, ends = _prompt(row, column, cfg, name, unread)
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
    return Prompts(_named_apart(list(prompts.values())), description, read - len(prompts), answered, unread, read)


def _named_apart(prompts: list[Prompt]) -> tuple[Prompt, ...]:
    """The prompts; of several that read the same, all but a single text are named by their JSON."""
    times: dict[str, int] = {}
    for prompt in prompts:
        times[prompt.instruction] = times.get(prompt.instruction, 0) + 1

    def named(prompt: Prompt) -> Prompt:
        messages = conversation_of(prompt.side, _BARE, prompt.context)
        single = len(messages) == 1 and not prompt.context
        if times[prompt.instruction] == 1 or single:
            return prompt
        arguments = {"arguments": dict(prompt.context.arguments)} if prompt.context.arguments else {}
        return replace(prompt, instruction=_json({"messages": messages, **arguments}))

    return tuple(map(named, prompts))


def _sources(cfg: DataConfig) -> list[SourceRows]:
    """The sources with their rows, of the evaluation split where one is named."""
    if cfg.path is None and (cfg.source != "hub" or cfg.name is None):
        key = "data.name=OWNER/DATASET" if cfg.source == "hub" else "data.path=FILE"
        raise UsageError(f"{key} is missing: which prompts?")
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


def _prompt(row: Row, column: str | None, cfg: DataConfig, name: str, unread: Tally) -> tuple[Prompt, bool]:
    """The prompt of a row, and whether an answer that ended it was left out."""
    own_name = row.values.get("dataset")
    dataset = own_name if isinstance(own_name, str) and own_name else name
    if column is None:
        return _prompt_of_pair(row, cfg, dataset, unread), False
    row_context.check_media(row, (column,), cfg)
    value, context = row_context.prompt_value(row, column, cfg), row_context.context_of(row, cfg)
    answered = False
    side: Side
    if isinstance(value, list):
        messages = message_list(value, row, column)
        if messages and messages[-1]["role"] == "assistant":
            messages, answered = messages[:-1], True
        if not messages or messages[-1]["role"] not in ("user", *TOOL_ROLES):
            raise UsageError(f"{row.where}: '{column}' holds no user message to answer")
        context = row_context.beside(messages, context)
        side = row_context.without_foreign_nulls(messages, context.arguments.get("tools", ()))
        prompt = Prompt(_as_text(conversation_of(side, _BARE, context)), side, dataset, None, context)
    elif isinstance(value, str):
        bare = column != row_context.INSTRUCTION or cfg.template == "plain"
        side = value if column != row_context.INSTRUCTION else _user_message(value)
        text = _as_text(conversation_of(side, _BARE, context))
        prompt = Prompt(text, side, dataset, value if bare else None, context)
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
    if pair.verbatim is not None:  # a dialogue: messages under a chat template, its own text without one
        return Prompt(pair.verbatim.prompt, pair.prompt, dataset, pair.verbatim.prompt, pair.context)
    side = pair.prompt
    text = _as_text(conversation_of(side, _BARE, pair.context))
    return Prompt(text, side, dataset, side if isinstance(side, str) else None, pair.context)


def _user_message(text: str) -> Conversation:
    return ({"role": "user", "content": text},)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _as_text(messages: Conversation) -> str:
    """A conversation as one text: the only message itself, or every turn with its role; tool calls as JSON."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    turns = []
    for message in messages:
        more = [_json(message[key]) for key in ANSWER_KEYS if key in message]
        turns.append(f"{message['role'].capitalize()}: {' '.join(filter(None, [message['content'], *more]))}")
    return "\n\n".join(turns)
