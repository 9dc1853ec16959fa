"""Ids against transformers' own rendering and against decoding, for tokenizers of every kind."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.text_pairs import TextPair, Verbatim
from alphapo_cli.data.tokenise import encode_pairs, encode_prompt, end_token_id
from alphapo_cli.errors import UsageError
from tests.data import data_tokenizers as kinds

KINDS = {"bpe": kinds.bpe, "llama2": kinds.llama2, "chatml": kinds.chatml, "plain": kinds.plain}
END = {"bpe": "<|end|>", "llama2": "</s>", "chatml": "<|im_end|>", "plain": "</s>"}
BOS = {"bpe": "<|bos|>", "llama2": "<s>", "chatml": None, "plain": "<s>"}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def text_pair(prompt="What is the capital of France?", chosen="Paris is it.", rejected="London, I think.", **more):
    return TextPair(prompt, chosen, rejected, **more)


def encode_one(pair, tokenizer, **settings):
    encoded = encode_pairs([pair], tokenizer, DataConfig(**settings))
    sides = encoded.prompt[0].tolist(), encoded.chosen[0].tolist(), encoded.rejected[0].tolist()
    return *sides, encoded


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", ["bpe", "llama2", "chatml"])
def test_prompt_ids_are_what_transformers_feeds_to_generation(kind):
    tokenizer = KINDS[kind]()
    prompt, *_ = encode_one(text_pair(), tokenizer)
    messages = [user("What is the capital of France?")]
    fed = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert prompt == fed
    assert encode_prompt("What is the capital of France?", tokenizer, DataConfig()) == fed
    assert encode_prompt(tuple(messages), tokenizer, DataConfig()) == fed


@pytest.mark.parametrize("kind", ["bpe", "chatml", "llama2"])
def test_prompt_and_completion_are_the_conversation_as_transformers_writes_it(kind):
    tokenizer = KINDS[kind]()
    prompt, chosen, _, _ = encode_one(text_pair(), tokenizer)
    whole = tokenizer.apply_chat_template(
        [user("What is the capital of France?"), assistant("Paris is it.")], tokenize=True, return_dict=False
    )
    # ChatML writes a line break behind the end token, which is not the model's to write.
    assert whole[: len(prompt) + len(chosen)] == prompt + chosen
    assert decode(tokenizer, whole[len(prompt) + len(chosen) :]).strip() == ""


def test_default_system_prompt_stays_in_the_prompt():
    tokenizer = kinds.chatml()
    prompt, chosen, rejected, _ = encode_one(text_pair(), tokenizer)
    assert "default assistant" in decode(tokenizer, prompt)
    assert decode(tokenizer, chosen) == "Paris is it.<|im_end|>"
    assert decode(tokenizer, rejected) == "London, I think.<|im_end|>"


def test_system_setting_is_used_where_the_prompt_has_none():
    tokenizer = kinds.chatml()
    prompt, *_ = encode_one(text_pair(), tokenizer, system="Be brief.")
    assert decode(tokenizer, prompt).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    own = TextPair(({"role": "system", "content": "Own."}, user("Hi")), (assistant("a"),), (assistant("b"),))
    prompt, *_ = encode_one(own, tokenizer, system="Be brief.")
    assert "Own." in decode(tokenizer, prompt)
    assert "Be brief." not in decode(tokenizer, prompt)


def test_bos_is_added_once_when_only_the_tokenizer_writes_it():
    tokenizer = kinds.with_template(kinds.BARE)
    prompt, chosen, _, _ = encode_one(text_pair(), tokenizer)
    assert prompt[0] == tokenizer.bos_token_id
    assert (prompt + chosen).count(tokenizer.bos_token_id) == 1


def test_a_template_without_end_token_gets_the_tokenizers():
    tokenizer = kinds.with_template(kinds.BARE)
    _, chosen, _, _ = encode_one(text_pair(), tokenizer)
    assert decode(tokenizer, chosen) == " Paris is it.</s>"


def test_a_second_end_token_of_the_template_is_not_the_completions():
    tokenizer = kinds.with_template(kinds.TWO_ENDS)
    _, chosen, _, _ = encode_one(text_pair(), tokenizer)
    assert decode(tokenizer, chosen) == "Paris is it.<|end|>"
    assert end_token_id(tokenizer, DataConfig()) == tokenizer.convert_tokens_to_ids("<|end|>")


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_token_written_out_in_the_data_is_not_doubled(kind):
    tokenizer = KINDS[kind]()
    _, chosen, _, encoded = encode_one(text_pair(chosen=f"Paris is it.{END[kind]}\n"), tokenizer)
    _, expected, _, _ = encode_one(text_pair(), tokenizer)
    assert chosen == expected
    assert encoded.counts.special_inside == 0


def test_special_tokens_inside_an_answer_are_counted():
    _, _, _, encoded = encode_one(text_pair(chosen="one <|im_end|> two"), kinds.chatml())
    assert encoded.counts.special_inside == 1


def test_generation_prompt_that_opens_a_thought():
    tokenizer = kinds.with_template(kinds.THINK)
    prompt, chosen, _, _ = encode_one(text_pair(), tokenizer)
    assert decode(tokenizer, prompt).endswith("assistant: <think>\n")
    assert decode(tokenizer, chosen) == "Paris is it.</s>"


def test_an_answer_that_opens_like_the_generation_prompt_goes_on_behind_it():
    tokenizer = kinds.with_template(kinds.THINK)
    prompt, chosen, _, _ = encode_one(text_pair(chosen="<think>\nwell</think>Paris."), tokenizer)
    assert decode(tokenizer, prompt + chosen).endswith("assistant: <think>\nwell</think>Paris.</s>")


def test_a_template_that_writes_the_prompt_differently_with_an_answer_is_named():
    template = "{{ messages | length }}{% for m in messages %} {{ m['content'] }}{% endfor %}"
    with pytest.raises(
        UsageError, match=r"writes the prompt differently.*1 of 1 pairs .the first: row 7.*data\.template=plain"
    ):
        encode_one(text_pair(row=7), kinds.with_template(template))


def test_a_template_that_drops_the_answer_is_named():
    with pytest.raises(UsageError, match="leaves out the assistant's answer"):
        encode_one(text_pair(), kinds.with_template("{{ messages[0]['content'] }}"))


def test_conversations_that_the_template_refuses_are_counted():
    good = TextPair((user("Hi"),), (assistant("a"),), (assistant("b"),))
    bad = TextPair((user("Hi"), assistant("Yes?")), (assistant("a"),), (assistant("b"),))
    encoded = encode_pairs([bad, good], kinds.llama2(), DataConfig())
    assert encoded.kept == (1,)
    assert encoded.counts.refused == 1
    with pytest.raises(UsageError, match=r"no pair is left.*refuses: roles must alternate"):
        encode_pairs([bad], kinds.llama2(), DataConfig())


def test_messages_without_template_say_what_to_type():
    pair = TextPair((user("Hi"),), (assistant("a"),), (assistant("b"),))
    for tokenizer, options in ((kinds.plain(), {}), (kinds.bpe(), {"template": "plain"})):
        with pytest.raises(UsageError, match=r"need a chat template: set model\.path") as error:
            encode_one(pair, tokenizer, **options)
        assert error.value.exit_code == 2
        assert "\n" not in str(error.value)


def test_impossible_settings_are_refused():
    with pytest.raises(UsageError, match=r"no chat template; set data\.template=plain"):
        encode_one(text_pair(), kinds.plain(), template="chat")
    with pytest.raises(UsageError, match=r"data\.system needs a chat template"):
        encode_one(text_pair(), kinds.plain(), system="x")


def test_dialogues_are_verbatim_without_template_and_messages_with_one():
    verbatim = Verbatim("\n\nHuman: Hi there\n\nAssistant:", " Hello.", " Go away.")
    pair = TextPair((user("Hi there"),), (assistant("Hello."),), (assistant("Go away."),), verbatim=verbatim)
    tokenizer = kinds.plain()
    prompt, chosen, _, encoded = encode_one(pair, tokenizer)
    assert encoded.template == "plain"
    assert decode(tokenizer, prompt) == "<s>\n\nHuman: Hi there\n\nAssistant:"
    assert decode(tokenizer, chosen) == " Hello.</s>"
    assert prompt == tokenizer(verbatim.prompt)["input_ids"] == encode_prompt(verbatim.prompt, tokenizer, DataConfig())
    tokenizer = kinds.bpe()
    prompt, chosen, _, _ = encode_one(pair, tokenizer)
    assert decode(tokenizer, prompt + chosen) == "<|bos|><|user|>Hi there<|end|><|assistant|>Hello.<|end|>"
    prompt, chosen, _, _ = encode_one(pair, tokenizer, template="plain")
    assert decode(tokenizer, prompt + chosen) == "\n\nHuman: Hi there\n\nAssistant: Hello.<|end|>"


@pytest.mark.parametrize("kind", ["plain", "llama2"])
def test_a_token_over_the_boundary_is_split_without_changing_the_text(kind):
    tokenizer = KINDS[kind]()
    # "fruits" is one token of both vocabularies, "fru" + "its" is not.
    assert len(tokenizer(" fruits", add_special_tokens=False)["input_ids"]) < 3
    prompt, chosen, rejected, encoded = encode_one(
        text_pair("Name three fru", "its, please", "gal meals"), tokenizer, template="plain"
    )
    assert encoded.counts.boundary == 1
    assert encoded.counts.inexact == 0
    assert prompt == tokenizer("Name three fru")["input_ids"]
    assert decode(tokenizer, prompt + chosen[:-1]).removeprefix("<s>").strip() == "Name three fruits, please"
    assert decode(tokenizer, prompt + rejected[:-1]).removeprefix("<s>").strip() == "Name three frugal meals"


LONG = text_pair("Which of the dogs and foxes are sleeping on the river?", "The lazy ones are.", "Nobody at all.")


def test_truncation_by_hand():
    tokenizer = kinds.plain()
    full_prompt, full_chosen, full_rejected, _ = encode_one(LONG, tokenizer)
    assert len(full_prompt) > 12
    prompt, chosen, rejected, encoded = encode_one(LONG, tokenizer, max_prompt_length=5)
    assert prompt == [tokenizer.bos_token_id, *full_prompt[-4:]]
    assert (chosen, rejected) == (full_chosen, full_rejected)
    assert encoded.counts.truncated_prompts == encoded.counts.truncated_pairs == 1
    assert encode_prompt(LONG.prompt, tokenizer, DataConfig(max_prompt_length=5)) == prompt

    longest = max(len(full_chosen), len(full_rejected))
    room = len(full_prompt) + longest - 1  # one token too many: the prompt gives it up
    prompt, chosen, rejected, _ = encode_one(LONG, tokenizer, max_length=room)
    assert prompt == [tokenizer.bos_token_id, *full_prompt[2:]]
    assert (chosen, rejected) == (full_chosen, full_rejected)

    prompt, chosen, rejected, encoded = encode_one(LONG, tokenizer, max_length=6)
    assert prompt == [tokenizer.bos_token_id, *full_prompt[-2:]]
    assert (chosen, rejected) == (full_chosen[:3], full_rejected[:3])
    assert encoded.counts.truncated_completions == 2


def test_answers_that_are_the_same_once_cut_are_left_out():
    same = text_pair("Hi there", "apples and pears", "apples and plums")
    other = text_pair("Hi there", "apples", "plums")
    encoded = encode_pairs([same, other], kinds.plain(), DataConfig(max_length=2))
    assert encoded.kept == (1,)
    assert encoded.counts.identical == 1


def test_empty_prompt_needs_a_bos():
    prompt, *_ = encode_one(text_pair(""), kinds.plain())
    assert prompt == [kinds.plain().bos_token_id]
    with pytest.raises(UsageError, match="no pair is left to train on: 1 empty"):
        encode_one(text_pair(""), kinds.chatml(), template="plain")


def test_unknown_words_are_an_error_that_names_one():
    tokenizer = kinds.word_level(["name", "three", "fruits", "apples", "pears"])
    encode_one(text_pair("name three fruits", " apples", " pears"), tokenizer)
    # Of 8 tokens (3 of the prompt, apples and its end, twice zucchini and their end) 2 are unknown.
    strange = text_pair("name three fruits", " apples", " zucchini zucchini")
    with pytest.raises(UsageError, match=r"25\.0% of the tokens are unknown \(for example 'zucchini'\)"):
        encode_one(strange, tokenizer)
    encode_one(strange, tokenizer, max_unknown=0.25)


def test_tokenizers_that_drop_what_they_do_not_know_are_caught():
    tokenizer = kinds.word_level(["name", "three", "fruits", "apples", "pears"], unk=None)
    encode_one(text_pair("name three fruits", " apples", " pears"), tokenizer)
    with pytest.raises(UsageError, match=r"of the characters are unknown \(for example 'Яблоко'\)"):
        encode_one(text_pair("name three fruits", " Яблоко", " pears"), tokenizer)


def test_a_tokenizer_without_end_token_is_refused():
    tokenizer = kinds.word_level(["a"])
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="no end-of-text token; set eos_token"):
        encode_one(text_pair(), tokenizer)


def test_order_and_batch_change_nothing():
    pairs = [text_pair(f"Question {n}?", f"yes {n}", f"no {n}") for n in range(700)]
    tokenizer = kinds.bpe()
    together = encode_pairs(pairs, tokenizer, DataConfig())
    for n in (0, 511, 512, 699):
        prompt, chosen, rejected, _ = encode_one(pairs[n], tokenizer)
        assert together.prompt[n].tolist() == prompt
        assert together.chosen[n].tolist() == chosen
        assert together.rejected[n].tolist() == rejected


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>▁\r\x85"), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    prompt=WORDS,
    chosen=WORDS,
    rejected=WORDS,
    max_length=st.sampled_from([2, 3, 7, 16, 2048]),
    max_prompt_length=st.sampled_from([None, 1, 4]),
)
def test_every_sequence_is_well_formed(kind, prompt, chosen, rejected, max_length, max_prompt_length):
    tokenizer = KINDS[kind]()
    assume(chosen.strip() and rejected.strip() and chosen.strip() != rejected.strip())
    config = DataConfig(max_length=max_length, max_prompt_length=max_prompt_length, max_unknown=1)
    refused = ""
    try:
        encoded = encode_pairs([TextPair(prompt, chosen, rejected)], tokenizer, config)
    except UsageError as error:
        refused = str(error)
    if refused:  # only cutting can make different answers the same
        assert max_length <= 16
        assert "1 identical after tokenisation" in refused
        return
    end = tokenizer.convert_tokens_to_ids(END[kind])
    start = encoded.prompt[0].tolist()
    assert len(start) >= 1
    cut = encoded.counts
    if cut.truncated_prompts == 0:
        assert start == encode_prompt(prompt, tokenizer, config)
    if max_prompt_length is not None:
        assert len(start) <= max_prompt_length
    for text, ids in ((chosen, encoded.chosen[0].tolist()), (rejected, encoded.rejected[0].tolist())):
        assert ids
        assert len(start) + len(ids) <= max_length
        if BOS[kind] is not None:
            bos = tokenizer.convert_tokens_to_ids(BOS[kind])
            assert (start[0], (start + ids).count(bos)) == (bos, 1)
        if cut.truncated_completions == 0:
            assert (ids[-1], ids.count(end)) == (end, 1)
            assert decode(tokenizer, ids[:-1]).strip() == text.strip()
        if cut.truncated_pairs == 0 and kind == "plain":
            assert decode(tokenizer, start + ids) == f"<s>{prompt}{text}</s>"
