"""A tiny judge on disk: a random Llama over 20 words, among them m and M, so that the top 20 log-probs hold both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "m", "M", ",", ".", "and", "sure", "please", "name", "list", "enjoy", "thanks",
         "!", "one", "two", "three", "four")  # fmt: skip
TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ ' ' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ,' }}{% endif %}"
)


def tokenizer(template: str | None = TEMPLATE, words: Sequence[str] | None = None) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words or WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        chat_template=template, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def save(folder: Path, context: int = 512, template: str | None = TEMPLATE) -> Path:
    """Heads of 32, the smallest that vLLM has on the CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=context, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder
