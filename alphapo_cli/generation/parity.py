"""Are these the ids that training saw? Checked before the first token is generated.

A second BOS, another template or a system prompt that training did not have changes every answer, and no figure shows
it. So ids are compared with what training recorded (a run), with the tokenizer's own chat template (a bare model), and
with what the engine says it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.template import TODAY, style_of
from alphapo_cli.data.text_pairs import Side
from alphapo_cli.data.tokenise import encode_prompt
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.run_settings import RunRecord


def check_run(record: RunRecord, tokenizer: Any, data: DataConfig) -> None:
    """Generation must make the ids that training recorded from the same prompts.

    Raises:
        UsageError: it does not; both lists and the first differing position.
    """
    whole = replace(data, max_prompt_length=None)
    prefix = style_of(tokenizer, data).prefix
    for number, recorded in enumerate(record.prompts, start=1):
        ours = encode_prompt(recorded.prompt, tokenizer, whole)
        if not _training_cut(ours, recorded.ids, record, len(prefix)):
            _refuse(f"training prompt {number}", "training saw", recorded.ids, "generation makes", ours, tokenizer)


def check_template(prompts: Sequence[Side], ids: Sequence[Sequence[int]], tokenizer: Any, data: DataConfig) -> None:
    """For a bare model: our ids must be those of the tokenizer's own chat template.

    A tokenizer that puts BOS before every text and whose template writes none gets one leading BOS from us, as in
    training; that is the one difference allowed. Without a chat template there is nothing to compare with.

    Raises:
        UsageError: they are not; both lists and the first differing position.
    """
    style = style_of(tokenizer, data)
    if not style.chat:
        return
    for number, (prompt, ours) in enumerate(zip(prompts, ids, strict=True), start=1):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if data.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": data.system}, *messages]
        own = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            strftime_now=TODAY.strftime,  # the day that training saw, in templates that write one
        )
        bos = len(style.prefix) == 1 and tuple(own[:1]) != style.prefix and list(ours) == [*style.prefix, *own]
        if list(ours) != list(own) and not bos:
            _refuse(f"prompt {number}", "the model's chat template makes", own, "generation makes", ours, tokenizer)


def check_engine(number: int, ours: Sequence[int], reported: Sequence[int], tokenizer: Any) -> None:
    """The engine must have been given our ids.

    Raises:
        UsageError: it was not; both lists and the first differing position.
    """
    if list(ours) != list(reported):
        _refuse(f"prompt {number}", "generation makes", ours, "the engine was given", reported, tokenizer)


def _training_cut(ours: Sequence[int], recorded: Sequence[int], record: RunRecord, lead: int) -> bool:
    """Equal, or what training leaves of a prompt too long for it: the beginning is gone, but for a BOS."""
    if list(ours) == list(recorded):
        return True
    kept = len(recorded)
    # Training never cuts below these lengths (data.tokenise.truncate), so a shorter list is no cut prompt.
    cut = kept == record.max_prompt_length or kept >= record.max_length // 2
    same = first_difference(ours, recorded)
    tail = list(recorded[same:])
    return cut and kept < len(ours) and same <= max(1, lead) and list(ours[len(ours) - len(tail) :]) == tail


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first position, from 0, at which the lists differ; the shorter length where one begins the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _refuse(what: str, first: str, expected: Sequence[int], second: str, found: Sequence[int], tokenizer: Any) -> None:
    at = first_difference(expected, found)
    raise UsageError(
        f"{what}: token ids differ at position {at} ({_token(expected, at, tokenizer)} against "
        f"{_token(found, at, tokenizer)}); {first} {list(expected)}, {second} {list(found)}; check the chat template, "
        "its BOS and data.system"
    )


def _token(ids: Sequence[int], at: int, tokenizer: Any) -> str:
    return repr(tokenizer.convert_ids_to_tokens(int(ids[at]))) if at < len(ids) else "the end"
