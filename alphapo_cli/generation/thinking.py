"""Whether a chat template makes a model think before it answers, the argument that switches it off, and thoughts in answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.template import render_prompt, style_of
from alphapo_cli.data.thoughts import is_mark, opens_thought
from alphapo_cli.errors import AlphapoError

# As templates call it: Qwen 3, GLM, SmolLM 3, Gemma 4; DeepSeek 3.1, Granite, Kimi.
_SWITCHES = ("enable_thinking", "thinking")
_MESSAGES = ({"role": "user", "content": "Which city?"},)


@dataclass(frozen=True)
class Thinking:
    """What a chat template does.

    `opens`: its prompts end with the opening mark of a thought; `switch`: the argument that makes it leave thoughts out, such
    as enable_thinking=false, None where it has none or has it already.
    """

    opens: bool = False
    switch: str | None = None


def thinking_of(tokenizer: Any, cfg: DataConfig) -> Thinking:
    """Find out by rendering a question with and without each switch.

    Args:
        tokenizer: the model's.
        cfg: template settings; arguments that they give count as given.

    Returns:
        What the template does; nothing where it does not take a plain question.
    """
    try:
        usual = _prompt(tokenizer, cfg)
        opens = opens_thought(usual)
        for name in _SWITCHES:
            off = _prompt(tokenizer, replace(cfg, chat_template_kwargs={**cfg.chat_template_kwargs, name: False}))
            if off != usual and not opens_thought(off):
                return Thinking(opens, f"{name}=false")
    except AlphapoError:
        return Thinking()
    return Thinking(opens)


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """An answer as text, without special tokens.

    Those that mark a thought stay, so that whoever reads the answer can tell the thought from it and take it away.

    Args:
        tokenizer: the model's.
        ids: the answer's token ids.

    Returns:
        The text.
    """
    special = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if any(token in special and is_mark(special[token]) for token in ids):
        kept = [token for token in ids if token not in special or is_mark(special[token])]
        return str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _prompt(tokenizer: Any, cfg: DataConfig) -> str:
    return render_prompt(_MESSAGES, tokenizer, cfg, style_of(tokenizer, cfg))
