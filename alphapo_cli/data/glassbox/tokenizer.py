"""Tokenizer and model configuration of the embedded world's base policy.

One token per word, so that the probe's token log-probs and the samples can be read directly. The tokenizer is saved
with its chat template and loads with plain `AutoTokenizer`.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from alphapo_cli.data.glassbox.world import vocabulary

PAD, BOS, EOS, USER, ASSISTANT, UNK = SPECIAL = ("<pad>", "<s>", "</s>", "<user>", "<assistant>", "<unk>")
MAX_POSITIONS = 128

# One <s> for the conversation, one </s> after every answer. Roles other than user and assistant have no token.
CHAT_TEMPLATE = (
    "{{- '<s>' }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- ' <user> ' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' %}{{- ' <assistant> ' + message['content'] + ' </s>' }}"
    "{%- else %}{{- raise_exception('the embedded world knows the roles user and assistant only') }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- ' <assistant>' }}{%- endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer with its chat template; decoding returns the words joined by single spaces."""
    ids = {word: i for i, word in enumerate([*SPECIAL, *vocabulary()])}
    core = Tokenizer(WordLevel(ids, unk_token=UNK))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        # Cleaning up would glue punctuation marks to words, and the text would no longer be the world's.
        clean_up_tokenization_spaces=False,
    )


def base_config() -> dict[str, Any]:
    """Keyword arguments of transformers.LlamaConfig for the base policy: 2 layers, width 128, about 360k parameters."""
    return {
        "vocab_size": len(SPECIAL) + len(vocabulary()),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": False,
        "pad_token_id": SPECIAL.index(PAD),
        "bos_token_id": SPECIAL.index(BOS),
        "eos_token_id": SPECIAL.index(EOS),
    }
