"""A byte-level BPE tokenizer trained on the data, with a chat template, for models that start from scratch.

Bytes cover every text, so there is no unknown token. Role markers and the end of a turn are single special tokens
without white space around them: no token can straddle the boundary between prompt and answer, and a short context is
not spent on markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLE_TOKENS = ("<|user|>", "<|assistant|>", "<|system|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unsupported role ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a byte-level BPE tokenizer; the same texts give the same tokenizer.

    The padding token is not the end token. Set model_max_length before saving.

    Args:
        texts: raw content without role tokens.
        vocab_size: tokens at most, the 256 bytes and the special tokens included.

    Returns:
        A transformers PreTrainedTokenizerFast with a chat template.

    Raises:
        ValueError: `vocab_size` cannot hold the 256 bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [BOS, END, PAD, *ROLE_TOKENS]
    if vocab_size < 256 + len(special):
        raise ValueError(f"a byte-level vocabulary needs at least {256 + len(special)} tokens, not {vocab_size}")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLE_TOKENS),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
