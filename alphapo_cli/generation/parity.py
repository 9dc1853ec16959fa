"""Token parity between training and generation, checked before the first token is generated.

A second BOS, another chat template or a different system prompt changes every answer, and no metric shows it. So prompt
ids are compared with those that training recorded (a run), with the tokenizer's own chat template (any other model),
and with those that the engine reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.answer_frame import header_of
from alphapo_cli.data.special_text import stripped_around
from alphapo_cli.data.template import Style, conversation_of, style_of, template_of
from alphapo_cli.data.text_pairs import NO_CONTEXT, PromptContext, Side
from alphapo_cli.data.tokenise import encode_prompt
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.run_settings import RunRecord


def check_run(record: RunRecord, tokenizer: Any, data: DataConfig) -> None:
    """Check that generation tokenises a run's training prompts as training did.

    Args:
        record: prompts and ids that training recorded.
        tokenizer: the tokenizer of the generation.
        data: the data settings of the generation.

    Raises:
        UsageError: the ids of a prompt differ; the message shows both lists and the first differing position.
    """
    whole = replace(data, max_prompt_length=None)
    prefix, header = style_of(tokenizer, data).prefix, len(header_of(tokenizer, data).ids)
    for number, recorded in enumerate(record.prompts, start=1):
        ours = encode_prompt(recorded.prompt, tokenizer, whole, recorded.context)
        if not _equal_or_truncated(ours, recorded.ids, record, len(prefix), header):
            _refuse(f"training prompt {number}", "training saw", recorded.ids, "generation makes", ours, tokenizer)


def check_template(
    prompts: Sequence[Side],
    ids: Sequence[Sequence[int]],
    tokenizer: Any,
    data: DataConfig,
    contexts: Sequence[PromptContext] | None = None,
    continued: Sequence[bool] | None = None,
) -> None:
    """Check prompt ids against those of the model's own chat template, for a model without a training record.

    One difference is allowed: a tokenizer that puts BOS before every text and whose template writes none gets one
    leading BOS, as in training. Without a chat template nothing is compared. Texts are compared in place of ids with
    `data.completion_includes_header`, whose header has the ids that it has before an answer, which may be others than at
    the end of a text, and where `data.special_tokens_in_text=escape` makes text of what the template takes for tokens.

    Args:
        prompts: text or messages.
        ids: token ids of each prompt.
        tokenizer: the tokenizer of the generation.
        data: the data settings of the generation.
        contexts: what each row gives the template beside its messages; None: nothing.
        continued: whether each prompt ends within an answer; None: none does.

    Raises:
        UsageError: the ids of a prompt differ; the message shows both lists and the first differing position.
    """
    style = style_of(tokenizer, data)
    if not style.chat:
        return
    given, within = contexts or [NO_CONTEXT] * len(prompts), continued or [False] * len(prompts)
    for number, (prompt, ours, context, goes_on) in enumerate(zip(prompts, ids, given, within, strict=True), start=1):
        template = template_of(tokenizer, replace(data, special_tokens_in_text="parse"), context)
        own = template.apply(
            conversation_of(prompt, data, context),
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
            tokenize=True,
            return_dict=False,
        )
        bos = len(style.prefix) == 1 and tuple(own[:1]) != style.prefix and list(ours) == [*style.prefix, *own]
        by_text = data.completion_includes_header or data.special_tokens_in_text == "escape"
        same_text = by_text and _text(own, style, tokenizer) == _text(ours, style, tokenizer)
        if list(ours) != list(own) and not bos and not same_text:
            _refuse(f"prompt {number}", "the model's chat template makes", own, "generation makes", ours, tokenizer)


def _text(ids: Sequence[int], style: Style, tokenizer: Any) -> str:
    """The text of token ids, without the BOS that a tokenizer puts before it."""
    lead = len(style.prefix) if tuple(ids[: len(style.prefix)]) == style.prefix else 0
    text = str(tokenizer.decode(list(ids[lead:]), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return stripped_around(text, tokenizer)  # where a token is text, the white space around it is, too


def check_engine(number: int, ours: Sequence[int], reported: Sequence[int], tokenizer: Any) -> None:
    """Check that the engine read the prompt ids it was sent.

    Args:
        number: the prompt's number in messages, from 1.
        ours: ids that were sent.
        reported: ids that the engine reports.
        tokenizer: shows the differing tokens.

    Raises:
        UsageError: the ids differ; the message shows both lists and the first differing position.
    """
    if list(ours) != list(reported):
        _refuse(f"prompt {number}", "generation makes", ours, "the engine was given", reported, tokenizer)


def _equal_or_truncated(
    ours: Sequence[int], recorded: Sequence[int], record: RunRecord, lead: int, header: int
) -> bool:
    """Whether `recorded` equals `ours`, or is `ours` truncated from the left except for `lead` ids (BOS)."""
    if list(ours) == list(recorded):
        return True
    kept = len(recorded) - header  # ids of the completion's header, which is not truncated with the prompt
    # Training never truncates below these lengths (data.truncation.truncate): a shorter list is no truncated prompt.
    cut = kept == record.max_prompt_length or kept >= record.max_length // 2
    same = first_difference(ours, recorded)
    tail = list(recorded[same:])
    return cut and len(recorded) < len(ours) and same <= max(1, lead) and list(ours[len(ours) - len(tail) :]) == tail


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first position, from 0, at which the lists differ; the shorter length where one is a prefix of the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _refuse(what: str, first: str, expected: Sequence[int], second: str, found: Sequence[int], tokenizer: Any) -> None:
    at = first_difference(expected, found)
    raise UsageError(
        f"{what}: token ids differ at position {at} ({_token(expected, at, tokenizer)} against "
        f"{_token(found, at, tokenizer)}); {first} {list(expected)}, {second} {list(found)}; check the chat template, "
        "its BOS, data.system and data.chat_template_kwargs"
    )


def _token(ids: Sequence[int], at: int, tokenizer: Any) -> str:
    return repr(tokenizer.convert_ids_to_tokens(int(ids[at]))) if at < len(ids) else "the end"
