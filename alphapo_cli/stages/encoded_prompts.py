"""Prompts as token ids for generation, what the chat template leaves out of them, and how long answers may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.left_out import unused_of
from alphapo_cli.data.special_text import masked
from alphapo_cli.data.spelled_tokens import Spelled, check_spelled, spelled, texts_of_prompt
from alphapo_cli.data.tally import Tally
from alphapo_cli.data.template import conversation_of, render_prompt, style_of, template_of
from alphapo_cli.data.template_loss import idle_arguments
from alphapo_cli.data.text_pairs import ABSENT, TextPair
from alphapo_cli.data.tokenise import encode_prompt
from alphapo_cli.errors import UsageError
from alphapo_cli.generation import parity
from alphapo_cli.generation.prompt import Prompts
from alphapo_cli.generation.run_settings import run_record
from alphapo_cli.generation.schema import GenerateConfig
from alphapo_cli.generation.target_model import TargetModel

LONGEST = 2048  # the default of generation.max_new_tokens, where the model's context allows it
_LOOKED_AT = 64  # prompts in which an argument of the template must make a difference


def encode(prompts: Prompts, subject: TargetModel, data: DataConfig) -> list[list[int]]:
    """The token ids of every prompt; UsageError where chat prompts meet a model without a chat template."""
    tokenizer = subject.tokenizer
    style = style_of(tokenizer, data)
    bare = [prompt for prompt in prompts.rows if prompt.plain is None]
    if bare and not style.chat:
        asked = data.template == "plain"
        who = "data.template=plain" if asked else f"model={subject.asked}: its tokenizer has no chat template"
        fix = (
            "leave data.template=auto"
            if asked
            else "take an instruction-tuned model (data.template=plain feeds bare text)"
        )
        raise UsageError(f"{who} and {len(bare)} of {len(prompts.rows)} prompts are instructions or messages; {fix}")
    # Prompts are not truncated: those that are too long are an error (see `longest_answer`).
    data = replace(data, max_prompt_length=None)
    return [
        encode_prompt(
            prompt.side if style.chat or prompt.plain is None else prompt.plain, tokenizer, data, prompt.context,
            continued=prompt.continued,
        )
        for prompt in prompts.rows
    ]  # fmt: skip


def spelled_in_prompts(prompts: Prompts, subject: TargetModel, data: DataConfig) -> Spelled:
    """Prompts that spell special tokens; UsageError where the settings refuse them."""
    found = spelled(
        ((prompt.where, texts_of_prompt(prompt.side, prompt.context, data)) for prompt in prompts.rows),
        subject.tokenizer,
    )
    check_spelled(found, len(prompts.rows), "prompts", data)
    return found


def unused_of_prompts(prompts: Prompts, subject: TargetModel, data: DataConfig) -> Tally:
    """What the chat template leaves out of the prompts, and arguments that change nothing; rows by name."""
    tokenizer, unused = subject.tokenizer, Tally()
    style = style_of(tokenizer, data)
    for number, prompt in enumerate(prompts.rows, 1):
        context = prompt.context
        if style.chat:
            if prompt.continued:
                continue  # found by rendering with a generation prompt, which does not follow a turn that has begun
            conversation = masked(conversation_of(prompt.side, data, context), tokenizer, data)
            text = render_prompt(prompt.side, tokenizer, data, style, context)
            names = list(unused_of(text, conversation, template_of(tokenizer, data, context), context, data))
        else:
            names = [*([data.system_column] if context.system is not None else []), *context.arguments]
        for name in names:
            unused.add(name, number)
    alone = [TextPair(prompt.side, ABSENT, ABSENT, context=prompt.context) for prompt in prompts.rows[:_LOOKED_AT]]
    for name in idle_arguments(alone, tokenizer, data, style):
        unused.add(name, 1, len(prompts.rows))
    return unused


def check_ids(cfg: GenerateConfig, subject: TargetModel, prompts: Prompts, ids: Sequence[list[int]]) -> None:
    """Compare token ids with those that training saw, of a run, or with the chat template's, of another model.

    Args:
        cfg: the configuration.
        subject: the model.
        prompts: the prompts.
        ids: their token ids.

    Raises:
        UsageError: ids differ, or a run recorded none and the settings do not do without.
    """
    if subject.run is not None:
        record = run_record(subject.run, unverified=cfg.generation.accept_unverified_prompts)
        if record is not None:
            parity.check_run(record, subject.tokenizer, cfg.data)
            return
    contexts, continued = zip(*((prompt.context, prompt.continued) for prompt in prompts.rows), strict=True)
    sides = [prompt.side for prompt in prompts.rows]
    parity.check_template(sides, ids, subject.tokenizer, cfg.data, contexts, continued)


def longest_answer(cfg: GenerateConfig, subject: TargetModel, ids: tuple[list[int], ...]) -> int:
    """The largest number of tokens of an answer.

    Args:
        cfg: the configuration.
        subject: the model.
        ids: token ids of every prompt.

    Returns:
        generation.max_new_tokens, else LONGEST or half of the model's context.

    Raises:
        UsageError: a prompt is empty, or prompt and answer exceed the model's context.
    """
    context, asked = subject.context, cfg.generation.max_new_tokens
    limit = asked or min(LONGEST, context // 2 if context is not None else LONGEST)
    empty = sum(not row for row in ids)
    if empty:
        raise UsageError(f"{empty} prompts have no tokens; there is nothing to continue")
    longest = max(map(len, ids))
    if context is not None and longest + limit > context:
        many = sum(len(row) + limit > context for row in ids)
        raise UsageError(
            f"{many} of {len(ids)} prompts are too long: the longest has {longest} tokens, the model's context is "
            f"{context} and an answer may have {limit} (generation.max_new_tokens); lower that, or leave the prompts out"
        )
    return limit
