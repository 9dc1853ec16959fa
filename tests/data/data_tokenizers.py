"""Small tokenizers of the kinds that differ in how they begin and end a text, built offline."""

from __future__ import annotations

import functools
import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from alphapo_cli.data.bpe import train_bpe

CORPUS = [
    "Name three fruits, please. Apples, pears and plums are fruits that grow on trees.",
    "How do I sort a list in Python? Call sorted(list) and it returns a new list in order.",
    "The quick brown fox jumps over the lazy dog while the other dogs are sleeping.",
    "What is the capital of France? The capital of France is Paris, on the river Seine.",
] * 3

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a default assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}{{ bos_token }}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] | trim }} [/INST]"
    "{% else %} {{ message['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
# Ends every conversation with a second token, as Phi-3 does.
TWO_ENDS = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# Opens the answer with a thought that finished conversations do not show, as DeepSeek-R1 does.
THINK = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
)
# Writes the day into the system message, as Llama 3.2 does.
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ bos_token }}system: Today Date: {{ date_string }}\n"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Writes neither a beginning nor an end.
BARE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# Writes tools, documents, tool calls, what a tool returned, and reasoning.
TOOLS = (
    "{{ bos_token }}{% if tools %}tools: {{ tools | tojson }}\n{% endif %}"
    "{% for document in documents or [] %}document: {{ document['text'] }}\n{% endfor %}"
    "{% if mood %}mood: {{ mood }}\n{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message['content'] or '' }}"
    "{% for call in message.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Shows tool calls of messages without a text, alone, as older templates do.
CALLS_WITHOUT_TEXT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {% if message['content'] is none %}"
    "{% for call in message.tool_calls %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>"
    "{% endfor %}{% else %}{{ message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Cuts a thought off every answer, and opens one in the generation prompt, as distilled reasoning models do.
CUTS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "assistant: {{ message['content'].split('</think>')[-1] }}{{ eos_token }}{% else %}"
    "{{ message['role'] }}: {{ message['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
)
# Writes an empty thought before an answer without one, but opens one in the generation prompt while thinking is on.
OPENS = (
    "{% set on = enable_thinking if enable_thinking is defined else true %}{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}assistant: "
    "{% if '</think>' not in message['content'] %}<think></think>{% endif %}{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ message['role'] }}: {{ message['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {{ '<think>\n' if on else '<think></think>' }}{% endif %}"
)
# Refuses answers without a thought.
WANTS_THOUGHTS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' and '</think>' not in message['content'] %}"
    "{{ raise_exception('an answer has a thought') }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def _byte_level(special: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=2
        ),
    )
    return backend


def _adds_bos(backend: Tokenizer, bos: str) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )


@functools.cache
def bpe() -> Any:
    """The project's own tokenizer: template writes BOS, the tokenizer adds none."""
    return train_bpe(CORPUS, 420)


@functools.cache
def llama2() -> Any:
    """Metaspace BPE with byte fallback; template and post-processor both write BOS."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.train_from_iterator(
        [word for text in CORPUS for word in text.split()] + CORPUS,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False),
    )
    state = json.loads(backend.to_str())
    vocab = state["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    state["model"]["byte_fallback"] = True
    backend = Tokenizer.from_str(json.dumps(state))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _adds_bos(backend, "<s>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = LLAMA2
    return tokenizer


@functools.cache
def chatml() -> Any:
    """No BOS, a default system prompt, a line break after the end token; the end token is not the EOS."""
    backend = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@functools.cache
def plain() -> Any:
    """Byte-level without template; the tokenizer adds BOS."""
    backend = _byte_level(["<s>", "</s>", "<|end|>"])
    _adds_bos(backend, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<|end|>"]
    )


def with_template(template: str) -> Any:
    """`plain` with a chat template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(plain().backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|end|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def word_level(words: list[str], unk: str | None = "<unk>") -> Any:
    """Knows `words` and nothing else; without `unk` it drops the rest silently."""
    names = ["<unk>", "</s>", *dict.fromkeys(words)]
    vocab = {name: i for i, name in enumerate(names)}
    if unk is None:
        model: Any = models.BPE(vocab={c: i for i, c in enumerate(["</s>", *dict.fromkeys("".join(words))])}, merges=[])
    else:
        model = models.WordLevel(vocab, unk_token=unk)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token=unk)
