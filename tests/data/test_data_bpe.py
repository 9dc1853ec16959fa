"""The tokenizer for models that start from scratch: reproducible, lossless, and usable without the project."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alphapo_cli.data.bpe import train_bpe
from tests.data import data_tokenizers as kinds


def test_the_same_texts_give_the_same_tokenizer():
    texts = [f"{a} {b} number {n}" for n, (a, b) in enumerate(zip("abcdefghij" * 9, "klmnopqrst" * 9, strict=True))]
    one, two = train_bpe(texts, 400), train_bpe(iter(texts), 400)
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    assert len(one) <= 400
    assert len(one(" number number")["input_ids"]) == 2


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back(text):
    tokenizer = kinds.bpe()
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_special_tokens_are_distinct_and_none_is_unknown():
    tokenizer = kinds.bpe()
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    ids += [tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ("user", "assistant", "system")]
    assert len(set(ids)) == 6
    assert None not in ids
    assert tokenizer.unk_token is None
    for token in ids:
        assert tokenizer.decode([token], skip_special_tokens=True) == ""


def test_it_loads_in_plain_transformers_with_its_template(tmp_path):
    tokenizer = train_bpe(kinds.CORPUS, 420)
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital?"},
        {"role": "assistant", "content": "Paris"},
    ]
    expected = "<|bos|><|system|>Be brief.<|end|><|user|>What is the capital?<|end|>"
    assert loaded.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True) == (
        f"{expected}<|assistant|>"
    )
    assert loaded.apply_chat_template(messages, tokenize=False) == f"{expected}<|assistant|>Paris<|end|>"
    ids = loaded.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids.count(loaded.bos_token_id) == 1
    assert loaded.model_max_length == 77
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<|bos|>", "<|end|>", "<|pad|>")
    with pytest.raises(Exception, match="unsupported role tool"):
        loaded.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 262 tokens, not 261"):
        train_bpe(["a"], 261)
    assert len(train_bpe(["a"], 262)) == 262
