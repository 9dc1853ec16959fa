"""Special tokens that somebody typed: tokens, text or an error, for training and generation alike."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.spelled_tokens import spelled_in_pairs
from alphapo_cli.data.text_pairs import PromptContext, TextPair
from alphapo_cli.data.tokenise import encode_pairs, encode_prompt
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.parity import check_template
from tests.data import data_tokenizers as kinds

ESCAPE, PARSE = DataConfig(special_tokens_in_text="escape"), DataConfig()
# The token that ends a turn, in tokenizers that begin a text with a space, with nothing, and after a BOS.
KINDS: dict[str, tuple[Any, str]] = {
    "chatml": (kinds.chatml, "<|im_end|>"),
    "bpe": (kinds.bpe, "<|end|>"),
    "llama2": (kinds.llama2, "</s>"),
    "two ends": (lambda: kinds.with_template(kinds.TWO_ENDS), "</s>"),
}


def user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def text_of(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_typed_token_ends_no_turn_when_it_is_escaped(kind: str) -> None:
    tokenizer, token = KINDS[kind][0](), KINDS[kind][1]
    number = tokenizer.convert_tokens_to_ids(token)
    plain, typed = user("Name two dogs, please."), user(f"Name {token} dogs,{token}{token} please.")
    without = encode_prompt(plain, tokenizer, PARSE).count(number)
    parsed, escaped = (encode_prompt(typed, tokenizer, cfg) for cfg in (PARSE, ESCAPE))
    assert parsed.count(number) == without + 3
    assert escaped.count(number) == without
    assert f"{token} dogs,{token}{token} please." in text_of(tokenizer, escaped)
    assert text_of(tokenizer, escaped) == text_of(tokenizer, parsed)
    assert encode_prompt(plain, tokenizer, ESCAPE) == encode_prompt(plain, tokenizer, PARSE)


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_generation_read_it_alike(kind: str) -> None:
    """Prompt and answers of a pair: the same ids as generation's, and an answer that decodes to what was typed."""
    tokenizer, token = KINDS[kind][0](), KINDS[kind][1]
    number = tokenizer.convert_tokens_to_ids(token)
    typed = f"Sort {token} a list"
    pair = TextPair(typed, f"Call {token} sorted.", "Apples")
    encoded = encode_pairs([pair], tokenizer, ESCAPE)
    assert encoded.prompt[0].tolist() == encode_prompt(typed, tokenizer, ESCAPE)
    chosen = encoded.chosen[0].tolist()
    assert number not in chosen[:-1]
    assert f"Call {token} sorted." in text_of(tokenizer, chosen)
    assert encoded.counts.special_inside == 0
    assert encode_pairs([pair], tokenizer, PARSE).counts.special_inside == 1


@pytest.mark.parametrize("takes", [{"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}])
def test_the_templates_own_tokens_take_the_white_space_that_they_always_take(takes: dict[str, bool]) -> None:
    """As Phi-3's do: a row that spells a token differs from one that does not by that text alone."""
    tokenizer = kinds.with_template(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    roles = ("<|user|>", "<|assistant|>", "<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(t, special=True, **takes) for t in roles]})
    parsed = encode_prompt(user("Name XX dogs"), tokenizer, PARSE)
    at = parsed.index(tokenizer.convert_tokens_to_ids("X"))
    as_text = tokenizer("<|end|>", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    typed = user("Name <|end|> dogs")
    escaped = encode_prompt(typed, tokenizer, ESCAPE)
    assert escaped == [*parsed[:at], *as_text, *parsed[at + 2 :]]
    check_template([typed], [escaped], tokenizer, ESCAPE)
    pair = encode_pairs([TextPair("Name <|end|> dogs", "Good <|end|> dogs", "No")], tokenizer, ESCAPE)
    assert pair.prompt[0].tolist() == escaped


def test_an_end_token_that_closes_an_answer_is_none_of_its_text() -> None:
    tokenizer = kinds.chatml()
    pair, closed = (TextPair("Sort a list", chosen, "Apples") for chosen in ("Call it.", "Call it.<|im_end|>"))
    one, other = (encode_pairs([p], tokenizer, ESCAPE).chosen[0].tolist() for p in (pair, closed))
    assert one == other
    encode_pairs([closed], tokenizer, DataConfig(special_tokens_in_text="refuse"))


def test_earlier_turns_system_texts_and_thoughts_are_typed_too() -> None:
    tokenizer = kinds.with_template(kinds.TOOLS)
    number = tokenizer.eos_token_id
    messages = (
        {"role": "system", "content": "Be </s> brief."},
        {"role": "user", "content": "Name fruits"},
        {"role": "assistant", "content": "Apples </s>", "reasoning_content": "trees </s> grow"},
        {"role": "user", "content": "more"},
    )
    parsed, escaped = (encode_prompt(messages, tokenizer, cfg).count(number) for cfg in (PARSE, ESCAPE))
    assert (parsed, escaped) == (4, 1)


def test_tools_documents_and_tool_calls_are_typed_too() -> None:
    """Texts and names at any depth; what the row gives the template is counted, and refused, too."""
    tokenizer = kinds.with_template(kinds.TOOLS)
    number = tokenizer.eos_token_id
    tool = {"type": "function", "function": {"name": "find", "description": "Finds </s> fruits", "parameters": {}}}
    context = PromptContext(arguments={"tools": [tool], "documents": [{"text": "Pears </s> grow"}]})
    call = {"type": "function", "function": {"name": "find", "arguments": {"what </s>": ["apples", "</s>"]}}}
    messages = (
        {"role": "user", "content": "Name fruits"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Apples"},
    )
    parsed, escaped = (encode_prompt(messages, tokenizer, cfg, context) for cfg in (PARSE, ESCAPE))
    assert (parsed.count(number), escaped.count(number)) == (5, 1)
    assert text_of(tokenizer, escaped) == text_of(tokenizer, parsed)
    check_template([messages], [escaped], tokenizer, ESCAPE, [context])
    pair = TextPair(messages, "Apples", "Pears", context=context, where="a.jsonl, row 1")
    assert spelled_in_pairs([pair], tokenizer).shown == "</s> (1)"
    refuse = DataConfig(special_tokens_in_text="refuse")
    alone = TextPair(messages[:1], "Apples", "Pears", context=context, where="a.jsonl, row 1")
    for one in (pair, alone):
        with pytest.raises(UsageError, match="row 1: spells a special token"):
            encode_pairs([one], tokenizer, refuse)


def test_the_models_own_template_is_still_compared() -> None:
    tokenizer = kinds.chatml()
    typed = user("Name <|im_end|> dogs")
    check_template([typed], [encode_prompt(typed, tokenizer, ESCAPE)], tokenizer, ESCAPE)
    other = encode_prompt(user("Name the dogs"), tokenizer, ESCAPE)
    with pytest.raises(UsageError, match="token ids differ"):
        check_template([typed], [other], tokenizer, ESCAPE)


def test_they_are_counted_and_refused_with_the_row() -> None:
    tokenizer = kinds.chatml()
    pairs = [
        TextPair("Name fruits", "Apples", "Pears", where="a.jsonl, row 1"),
        TextPair("Name <|im_end|>", "Apples", "Pears", where="a.jsonl, row 2"),
        TextPair("Name", "Ap<|im_start|>ples", "Pears", where="a.jsonl, row 3"),
    ]
    found = spelled_in_pairs(pairs, tokenizer)
    assert (found.rows, found.shown, found.first) == (1, "<|im_end|> (1)", "a.jsonl, row 2")
    with pytest.raises(UsageError) as error:
        encode_pairs(pairs, tokenizer, DataConfig(special_tokens_in_text="refuse"))
    assert str(error.value).startswith("a.jsonl, row 2: spells a special token in its text, as do 2 of 3 pairs")
    assert "special_tokens_in_text=escape" in str(error.value)


def test_a_system_text_of_the_settings_is_typed_too() -> None:
    """It is part of each prompt that begins with none."""
    tokenizer = kinds.chatml()
    pair = TextPair("Name fruits", "Apples", "Pears", where="a.jsonl, row 1")
    system = {"role": "system", "content": "Be brief"}
    other = TextPair((system, {"role": "user", "content": "Name"}), "Apples", "Pears", where="a.jsonl, row 2")
    settings = DataConfig(system="Be <|im_end|> brief", special_tokens_in_text="refuse")
    found = spelled_in_pairs([other, pair], tokenizer, settings)
    assert (found.rows, found.shown, found.first) == (1, "<|im_end|> (1)", "a.jsonl, row 1")
    with pytest.raises(UsageError, match=r"row 1: spells a special token in its text, as do 1 of 2 pairs"):
        encode_pairs([other, pair], tokenizer, settings)
