"""What the chat template writes around an answer, of which two settings count more tokens to it, as SimPO does.

Usually a completion is the answer and the end token at which generation stops. `data.completion_includes_header` counts
the assistant's header before it too, `data.second_end_token` all that the template writes after it and an EOS.

SimPO renders an answer by itself. Here it is the end of the rendered conversation, which is the same text for templates
that write every message alike, and no second system text for those that put one before whatever comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.prompt_boundary import encodings_of, ids_of, split
from alphapo_cli.data.template import EXAMPLES, Style, style_of, template_of
from alphapo_cli.data.template_errors import TemplateRefusal
from alphapo_cli.errors import UsageError

OTHER_HEADER = (
    "the chat template writes something else before an answer than what it feeds to generation, so that training and "
    "generation would see different prompts"
)


@dataclass(frozen=True)
class Header:
    """What the template writes before an answer and training counts to it: text, and ids as completions begin with."""

    text: str = ""
    ids: tuple[int, ...] = ()


def header_of(tokenizer: Any, cfg: DataConfig) -> Header:
    """The header that completions begin with, which generation is fed after the prompt of training.

    Its ids are those that it has before an answer. They may be others at the end of a text (two line breaks are one
    token there for GPT-2's tokenizer), and a model is fed what it was trained on.

    Args:
        tokenizer: a fast transformers tokenizer.
        cfg: template settings.

    Returns:
        The header; empty without `data.completion_includes_header`.

    Raises:
        UsageError: a tokenizer that `style_of` refuses, a template that refuses every conversation, or one whose tokens
            cross from the header to the answer.
    """
    if not cfg.completion_includes_header:
        return Header()
    style_of(tokenizer, cfg)
    prompt, fed, whole = _example(tokenizer, cfg)
    if not (fed.startswith(prompt) and whole.startswith(fed)):
        raise UsageError(f"data.completion_includes_header: {OTHER_HEADER}; leave it out")
    (encoding,), ids = encodings_of(tokenizer, [whole]), ids_of(tokenizer, [prompt])[0]
    completion = split(ids, prompt, whole.removeprefix(prompt), encoding, tokenizer).ids
    answer = sum(start >= len(fed) for start, stop in encoding.offsets if stop > start)
    found = completion[: len(completion) - answer]
    text = fed.removeprefix(prompt)
    if not text:
        return Header()
    if any(start < len(fed) < stop for start, stop in encoding.offsets):
        raise UsageError(
            f"data.completion_includes_header: {tokenizer.name_or_path or 'this tokenizer'} has tokens that cross from the "
            "header to the answer, so that generation could not be fed the header alone; leave it out"
        )
    return Header(text, tuple(found))


def closed(ids: list[int], ends: bool, style: Style) -> list[int]:
    """A completion's ids with the end that the template does not write.

    Args:
        ids: the completion.
        ends: whether the template closed it with an end token.
        style: the tokenizer's.

    Returns:
        The ids, with an end token or, with `data.second_end_token`, an EOS at their end.
    """
    if style.second_end_id is not None:
        return ids if ids[-1:] == [style.second_end_id] else [*ids, style.second_end_id]
    return ids if ends else [*ids, style.end_id]


def special_inside(ids: list[int], special: set[int]) -> int:
    """Number of special tokens before the last token of a completion."""
    return sum(token in special for token in ids[:-1])


def special_of_template(special: set[int], tokenizer: Any, cfg: DataConfig, style: Style) -> int:
    """Number of special tokens before the last token of a completion that the template and these settings write."""
    if not style.chat or (not cfg.completion_includes_header and style.second_end_id is None):
        return 0
    prompt, fed, whole = _example(tokenizer, cfg)
    completion = whole.removeprefix(prompt if cfg.completion_includes_header else fed)
    return special_inside(closed(ids_of(tokenizer, [completion])[0], True, style), special)


def _example(tokenizer: Any, cfg: DataConfig) -> tuple[str, str, str]:
    """Of a short conversation: the prompt, the prompt as generation is fed it, and the whole."""
    template, refusal = template_of(tokenizer, cfg), None
    for messages in EXAMPLES:
        try:
            prompt = messages[:-1]
            return template.render(prompt), template.render(prompt, generation=True), template.render(messages)
        except TemplateRefusal as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def without_end(text: str, ends: tuple[str, ...]) -> str:
    """`text` without the end tokens that close it; unchanged without any."""
    body = text.rstrip()
    if not body.endswith(ends):
        return text
    while body.endswith(ends):
        body = body[: -len(next(end for end in ends if body.endswith(end)))].rstrip()
    return body


def cut_after_end(text: str, style: Style) -> tuple[str, bool]:
    r"""Cut `text` after the end token, or without one after the first of the tokens that close it ("<|a|>\n<|b|>").

    Tokens may close a tool call before the end token closes the answer.

    Args:
        text: the rendered answer.
        style: the tokenizer's end token and other tokens that may close an answer.

    Returns:
        The text, and whether it ends with an end token.
    """
    body, kept, ended = text.rstrip(), None, False
    while body.endswith(style.ends):
        token = next(end for end in style.ends if body.endswith(end))
        if token == style.end or not ended:
            kept, ended = body, ended or token == style.end
        body = body[: -len(token)].rstrip()
    return (body, False) if kept is None else (kept, True)
