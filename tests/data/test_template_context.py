"""What reaches the chat template, what it leaves out, and what becomes of answers that it cuts or refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alphapo_cli.config.schema import DataConfig, ProbeConfig
from alphapo_cli.data.load import load_pairs
from alphapo_cli.data.prepare import prepare
from alphapo_cli.data.template import style_of
from alphapo_cli.data.text_pairs import PromptContext, TextPair
from alphapo_cli.data.tokenise import encode_pairs, encode_prompt
from alphapo_cli.errors import UsageError
from tests.data import data_tokenizers as kinds

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
OTHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def user(text="Weather?"):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def pair_of(chosen, rejected=None, prompt=None, **more):
    return TextPair(tuple(prompt or [user()]), (chosen,), (rejected or answer("No idea."),), **more)


def encode(pairs, template, **settings):
    tokenizer = kinds.with_template(template)
    return tokenizer, encode_pairs(pairs, tokenizer, DataConfig(**settings))


def texts(tokenizer, encoded, position=0):
    sides = (encoded.prompt, encoded.chosen, encoded.rejected)
    return [tokenizer.decode(side[position], skip_special_tokens=False) for side in sides]


def refusal(pairs, template, **settings):
    with pytest.raises(UsageError) as caught:
        encode(pairs, template, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------- what the template gets


def test_tools_and_calls_are_trained_as_transformers_writes_them():
    prompt = [user(), answer("", tool_calls=[CALL]), {"role": "tool", "content": "warm"}]
    pair = pair_of(answer("Look:", tool_calls=[OTHER]), prompt=prompt, context=PromptContext(None, {"tools": [SCHEMA]}))
    tokenizer, encoded = encode([pair], kinds.TOOLS)
    whole = tokenizer.apply_chat_template([*prompt, *pair.chosen], tools=[SCHEMA], tokenize=False)
    start, chosen, rejected = texts(tokenizer, encoded)
    assert start + chosen == whole.rstrip()
    assert json.dumps(SCHEMA) in start
    assert "tool: warm" in start
    assert '"city": "Oslo"' in chosen
    assert rejected == "No idea.</s>"
    assert not encoded.unused


def test_documents_arguments_and_the_rows_system_text_are_written():
    context = PromptContext("Be brief.", {"documents": [{"text": "Rome is warm."}], "mood": "good"})
    tokenizer, encoded = encode([pair_of(answer("Warm."), context=context)], kinds.TOOLS, system="Be long.")
    start = texts(tokenizer, encoded)[0]
    assert start == "<s>document: Rome is warm.\nmood: good\nsystem: Be brief.user: Weather?assistant: "
    assert not encoded.unused


def test_arguments_of_the_settings_hold_for_every_row_and_a_rows_own_win():
    pairs = [pair_of(answer("Warm.")), pair_of(answer("Cold."), context=PromptContext(None, {"mood": "bad"}))]
    tokenizer, encoded = encode(pairs, kinds.TOOLS, chat_template_kwargs={"mood": "good"})
    assert ["mood: good" in texts(tokenizer, encoded, n)[0] for n in range(2)] == [True, False]
    assert "mood: bad" in texts(tokenizer, encoded, 1)[0]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_written_whatever_the_data_call_it(name):
    tokenizer, encoded = encode([pair_of(answer("Warm.", **{name: "South."}))], kinds.TOOLS)
    assert texts(tokenizer, encoded)[1] == "<think>South.</think>Warm.</s>"
    assert not encoded.unused


def test_generation_is_fed_what_training_conditions_on():
    context = PromptContext("Be brief.", {"tools": [SCHEMA], "mood": "good"})
    pair = pair_of(answer("Warm."), context=context)
    tokenizer, encoded = encode([pair], kinds.TOOLS)
    assert encode_prompt(pair.prompt, tokenizer, DataConfig(), context) == encoded.prompt[0].tolist()


def test_calls_without_text_are_null_where_only_then_they_are_shown():
    tokenizer, encoded = encode([pair_of(answer("", tool_calls=[CALL]))], kinds.CALLS_WITHOUT_TEXT)
    assert texts(tokenizer, encoded)[1] == '<call>weather {"city": "Rome"}</call></s>'
    # And empty where null would be written out.
    writes_none = kinds.TOOLS.replace("message['content'] or ''", "message['content'] | string")
    tokenizer, encoded = encode([pair_of(answer("", tool_calls=[CALL]))], writes_none)
    assert texts(tokenizer, encoded)[1].startswith("<call>")


def test_arguments_are_text_where_the_template_joins_them_to_text():
    joins = kinds.TOOLS.replace("call.function | tojson", "call.function.name + ' ' + call.function.arguments")
    tokenizer, encoded = encode([pair_of(answer("Look:", tool_calls=[CALL]))], joins)
    assert texts(tokenizer, encoded)[1] == 'Look:<call>weather {"city": "Rome"}</call></s>'


def test_a_token_that_closes_a_call_does_not_close_the_answer():
    closes = kinds.TOOLS.replace("</call>", "<|end|>")
    tokenizer, encoded = encode([pair_of(answer("", tool_calls=[CALL]))], closes)
    assert texts(tokenizer, encoded)[1].endswith("}<|end|></s>")
    # Nor one that is written out in a text.
    tokenizer, encoded = encode([pair_of(answer("Look: {}<|end|>"))], kinds.TOOLS)
    assert texts(tokenizer, encoded)[1] == "Look: {}<|end|></s>"


def test_the_settings_that_change_the_text_change_the_key_of_the_cache(tmp_path):
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(8)]
    rows_with: list[list[dict[str, Any]]] = [
        [{**row, **more} for row in rows] for more in ({}, {"system": "s"}, {"tools": [SCHEMA]})
    ]
    keys = []
    for number, (data, settings) in enumerate(
        [*((rows, {}) for rows in rows_with), (rows, {"chat_template_kwargs": {"mood": "x"}})]
    ):
        file = tmp_path / f"{number}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in data))
        cfg = DataConfig(source="files", path=str(file), **settings)
        made = prepare(
            cfg, ProbeConfig(pairs=1), kinds.with_template(kinds.TOOLS), train_pairs=load_pairs(cfg), probe_pairs=None,
            cache_dir=tmp_path / "cache",
        )  # fmt: skip
        keys.append(made.key)
    assert len(set(keys)) == 4


# --------------------------------------------------------------------------------------- what it leaves out of prompts


def test_what_the_template_leaves_out_of_prompts_is_counted():
    context = PromptContext("Be brief.", {"tools": [SCHEMA], "documents": [{"text": "x"}]})
    prompt = [
        user(),
        answer("", tool_calls=[CALL]),
        {"role": "tool", "content": "warm", "tool_call_id": "1", "name": "w"},
    ]
    deaf = "{% for m in messages if m['role'] in ('user', 'assistant') %}{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}assistant: "
    pairs = [pair_of(answer("Warm."), prompt=prompt, context=context), pair_of(answer("Cold."))]
    encoded = encode(
        pairs, deaf.replace("endfor %}assistant: ", "endfor %}{% if add_generation_prompt %}assistant: {% endif %}")
    )[1]
    assert encoded.unused.counts == {
        "tools": 1, "documents": 1, "system": 1, "messages of role tool": 1, "messages[].tool_calls": 1,
        "messages[].tool_call_id": 1, "messages[].name": 1,
    }  # fmt: skip
    assert encoded.unused.first["tools"] == 0


def test_without_a_template_everything_beside_the_text_is_counted():
    pair = TextPair("q", "a", "b", context=PromptContext("Be brief.", {"tools": [SCHEMA]}))
    encoded = encode_pairs([pair], kinds.plain(), DataConfig())
    assert encoded.unused.counts == {"system": 1, "tools": 1}


def test_thoughts_of_earlier_answers_that_a_template_cuts_are_counted_and_no_loss():
    prompt = [user(), answer("<think>Hm.</think>Warm."), user("And Oslo?")]
    tokenizer, encoded = encode([pair_of(answer("Cold."), prompt=prompt)], kinds.CUTS)
    assert "Hm." not in texts(tokenizer, encoded)[0]
    assert encoded.unused.counts == {"reasoning of earlier answers": 1}


def test_an_argument_that_changes_nothing_is_named():
    """A misspelt enable_thinking would pass in silence."""
    encoded = encode([pair_of(answer("Warm."))] * 1, kinds.TOOLS, chat_template_kwargs={"mod": "good", "mood": "good"})[
        1
    ]
    assert encoded.unused.counts == {"chat_template_kwargs.mod": 1}


def test_settings_that_need_a_template_or_are_alphapos_own_are_refused():
    with pytest.raises(UsageError, match=r"data\.chat_template_kwargs needs a chat template"):
        style_of(kinds.plain(), DataConfig(chat_template_kwargs={"mood": "good"}))
    with pytest.raises(UsageError, match=r"data\.chat_template_kwargs sets tools, .*a column of its own"):
        style_of(kinds.bpe(), DataConfig(chat_template_kwargs={"tools": []}))


# --------------------------------------------------------------------------------------- what it leaves out of answers

THOUGHT = pair_of(
    answer("<think>\nSouth.\n</think>\n\nWarm."), answer("<think>\nNorth.\n</think>\n\nCold."), where="d: line 1"
)
PLAIN = pair_of(answer("Warm."), answer("Cold."), where="d: line 2")

# template, pair -> what is said of it, and the advice
LOSSES = {
    "a thought in the text": (kinds.CUTS, THOUGHT, "leaves out an answer's text up to '</think>'", "cuts answers at '</think>': take that out"),
    "reasoning apart": (
        kinds.CALLS_WITHOUT_TEXT, pair_of(answer("Warm.", reasoning_content="South."), where="d: line 1"),
        "leaves out an answer's reasoning_content", "write the reasoning into the answer's text, as <think>...</think>",
    ),
    "tool calls": (
        kinds.BARE, pair_of(answer("Look:", tool_calls=[CALL]), where="d: line 1"), "leaves out an answer's tool_calls",
        "change its chat_template.jinja",
    ),
    "the text beside tool calls": (
        kinds.TOOLS.replace("{{ message['content'] or '' }}", "{% if not message.tool_calls %}{{ message['content'] }}{% endif %}"),
        pair_of(answer("Look:", tool_calls=[CALL]), where="d: line 1"), "a part of an answer's text beside tool calls", "change its",
    ),
    "the second of two calls": (
        kinds.TOOLS.replace("message.tool_calls or []", "(message.tool_calls or [])[:1]"),
        pair_of(answer("", tool_calls=[CALL, OTHER]), where="d: line 1"), "leaves out an answer's tool_calls", "change its",
    ),
    "arguments of a call": (
        kinds.TOOLS.replace("call.function | tojson", "call.function.name"),
        pair_of(answer("", tool_calls=[CALL]), where="d: line 1"), "leaves out an answer's arguments of tool_calls", "change its",
    ),
    "a thought that must be apart": (
        kinds.TOOLS.replace("message['content'] or ''", "(message['content'] or '').split('</think>')[-1]"), THOUGHT,
        "leaves out an answer's text up to '</think>'", "give the reasoning as 'reasoning_content'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_refused_with_its_number_the_first_row_and_what_to_do(name):
    template, pair, cause, advice = LOSSES[name]
    good = pair_of(answer("Yes."), answer("No."))
    message = refusal([good, pair, pair], template)
    assert cause in message
    assert " in 2 of 3 pairs (the first: d: line 1)" in message
    assert advice in message
    assert message.endswith("keep trains on what is left of them, data.on_template_loss=skip leaves such pairs out")


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_may_be_skipped(name):
    template, pair, _, _ = LOSSES[name]
    encoded = encode([pair, pair_of(answer("Yes."), answer("No.")), pair], template, on_template_loss="skip")[1]
    assert (encoded.kept, encoded.counts.lost, encoded.counts.lost_kept) == ((1,), 2, 0)
    ((_, rows, first),) = encoded.left_out
    assert (rows, first) == (2, 0)


def test_a_loss_may_be_kept_where_something_is_left():
    tokenizer, encoded = encode([PLAIN, THOUGHT], kinds.CUTS, on_template_loss="keep")
    assert (encoded.kept, encoded.counts.lost, encoded.counts.lost_kept) == ((0, 1), 0, 1)
    assert [text.strip() for text in texts(tokenizer, encoded, 1)[1:]] == ["Warm.</s>", "Cold.</s>"]
    nothing = pair_of(answer("<think>\nSouth.</think>"), where="d: line 3")
    encoded = encode([PLAIN, nothing], kinds.CUTS, on_template_loss="keep")[1]
    assert (encoded.kept, encoded.counts.lost) == ((0,), 1)


def test_where_no_answer_is_left_the_reason_and_the_advice_are_said():
    message = refusal([THOUGHT], kinds.CUTS, on_template_loss="skip")
    assert message.startswith("no pair is left to train on: this tokenizer: its chat template leaves out")
    assert "(1 of 1 pairs, the first: d: line 1); its chat_template.jinja cuts answers at '</think>'" in message


def test_a_thought_that_the_template_splits_off_and_writes_again_is_no_loss():
    moves = kinds.TOOLS.replace(
        "{{ message['content'] or '' }}",
        "{% set parts = (message['content'] or '').split('</think>') %}"
        "{% if parts | length > 1 %}<think>{{ parts[0].split('<think>')[-1] | trim }}</think> {% endif %}{{ parts[-1] | trim }}",
    )
    tokenizer, encoded = encode([THOUGHT], moves)
    assert texts(tokenizer, encoded)[1] == "<think>South.</think> Warm.</s>"
    assert not encoded.left_out


def test_an_answer_that_begins_like_the_end_of_the_prompt_keeps_its_first_characters():
    """The prompt ends with `<think>`; `<b>` begins with the same character and is another word."""
    tokenizer, encoded = encode([pair_of(answer("<b>Warm</b>"))], kinds.THINK)
    assert texts(tokenizer, encoded)[1] == "<b>Warm</b></s>"


# ------------------------------------------------------------------------------------ templates of reasoning models


def test_plain_answers_where_the_prompt_opens_a_thought_say_what_switches_it_off():
    message = refusal([PLAIN, THOUGHT], kinds.OPENS)
    assert "writes the prompt differently with and without the answer in 1 of 2 pairs (the first: d: line 2)" in message
    assert "for these answers type data.chat_template_kwargs.enable_thinking=false" in message
    assert "on_template_loss=keep" not in message  # there is nothing to keep
    tokenizer, encoded = encode([PLAIN], kinds.OPENS, chat_template_kwargs={"enable_thinking": False})
    assert texts(tokenizer, encoded) == ["<s>user: Weather?assistant: <think></think>", "Warm.</s>", "Cold.</s>"]
    tokenizer, encoded = encode([THOUGHT], kinds.OPENS)
    assert texts(tokenizer, encoded)[1] == "South.\n</think>\n\nWarm.</s>"
    both = [THOUGHT, pair_of(answer("Warm."), answer("Cold."), context=PromptContext(None, {"enable_thinking": False}))]
    assert encode(both, kinds.OPENS)[1].kept == (0, 1)


def test_a_template_that_wants_a_thought_says_how_to_give_one():
    message = refusal([PLAIN], kinds.WANTS_THOUGHTS)
    assert "its chat template refuses: an answer has a thought (1 of 1 pairs, the first: d: line 2)" in message
    assert "it wants a thought before an answer: begin the answers with <think></think>" in message
    encoded = encode([PLAIN, THOUGHT, PLAIN], kinds.WANTS_THOUGHTS)[1]
    assert (encoded.kept, encoded.counts.refused) == ((1,), 2)
    assert list(encoded.left_out) == [("refuses: an answer has a thought", 2, 0)]


def test_a_template_without_system_texts_says_how_to_leave_them_out():
    pair = TextPair("q", "a", "b", context=PromptContext("Be brief."), where="d: line 1")
    with pytest.raises(UsageError, match=r"refuses: no system message.*add data\.ignore_columns=\[system\]"):
        encode_pairs([pair], kinds.llama2(), DataConfig())
    with pytest.raises(UsageError, match=r"refuses: no system message.*leave data\.system out"):
        encode_pairs([TextPair("q", "a", "b")], kinds.llama2(), DataConfig(system="Be brief."))


def test_a_template_may_fail_in_any_way_on_one_row():
    """A missing key, a division: what the template's program does, not only what it raises on purpose."""
    fails = kinds.BARE.replace(
        "{{ message['content'] }}", "{{ message['content'] }}{{ 1 // (message['content'] | length - 1) }}"
    )
    encoded = encode([pair_of(answer("x")), pair_of(answer("yes"), answer("no"))], fails)[1]
    assert (encoded.kept, encoded.counts.refused) == ((1,), 1)


# ----------------------------------------------------------------------------------------- the table and the numbers


@pytest.mark.parametrize("mode", ["skip", "keep"])
def test_the_table_counts_every_row_once_and_says_what_was_not_used(tmp_path, mode):
    thought = {"prompt": [user("a")], "chosen": [answer("<think>x</think>Warm.")], "rejected": [answer("No.")]}
    rows: list[dict[str, Any]] = [
        *({"prompt": [user(f"q{n}")], "chosen": [answer(f"Warm {n}.", mood="x")], "rejected": [answer("Cold.")]} for n in range(9)),
        {"prompt": [user("same")], "chosen": [answer("Warm.")], "rejected": [answer("Warm. ")]},
        {"prompt": [user("empty")], "chosen": [answer(" ")], "rejected": [answer("Warm.")]},
        {"prompt": [user("two")], "chosen": [answer("Warm."), user("?"), answer("x")], "rejected": [answer("Warm.")]},
        thought, {**thought, "prompt": [user("b")], "system": "Be brief."}, {**thought, "prompt": [user("c"), user("d")]},
    ]  # fmt: skip
    refuses = kinds.CUTS.replace(
        "{{ bos_token }}",
        "{{ bos_token }}{% if messages | length > 1 and messages[1]['role'] == 'user' and messages[0]['role'] == 'user' %}{{ raise_exception('alternate') }}{% endif %}",
    )
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "origin": "web"}) + "\n" for row in rows))
    cfg = DataConfig(source="files", path=str(file), on_template_loss=mode)
    made = prepare(
        cfg,
        ProbeConfig(pairs=2),
        kinds.with_template(refuses),
        train_pairs=load_pairs(cfg),
        probe_pairs=None,
        cache_dir=tmp_path,
    )
    report, table = made.report, dict(made.table)
    left_out = ("no_common_prompt", "emptied", "identical", "duplicates_dropped", "template_refused", "template_lost")
    assert report["pairs_read"] == 15
    assert report["pairs_usable"] + sum(report[name] for name in left_out) == 15
    assert report["train_pairs"] + report["probe_pairs"] == report["pairs_usable"]
    assert [report[name] for name in left_out] == [1, 1, 1, 0, 1, 2 if mode == "skip" else 0]
    assert report["template_lost_kept"] == (0 if mode == "skip" else 2)
    assert report["columns_not_used"] == {"origin": 14}  # not of the row without a common prompt
    assert report["not_rendered"] == {"messages[].mood": 9}
    assert table["columns not used"] == "origin (14)"
    assert table["not in the chat text"] == "messages[].mood (9)"
    assert table["skipped: refused by the template"] == f"1: it refuses: alternate (the first: {file}: line 15)"
    what = "skipped" if mode == "skip" else "kept"
    assert table[f"{what}: cut by the template"] == (
        f"2: it leaves out an answer's text up to '</think>' (the first: {file}: line 13)"
    )
    again = prepare(
        cfg,
        ProbeConfig(pairs=2),
        kinds.with_template(refuses),
        train_pairs=load_pairs(cfg),
        probe_pairs=None,
        cache_dir=tmp_path,
    )
    assert (again.report, again.table) == (report, made.table)  # from the cache


def test_numbers_are_counted_where_the_objective_does_not_read_them(tmp_path):
    rows = [
        {"prompt": f"q{n}", "chosen": f"Warm {n}.", "rejected": "Cold.", "weight": n / 9, "mark": 1, "flag": True}
        for n in range(9)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [{**rows[0], "weight": None, "id": "a"}, *rows[1:]]))
    cfg = DataConfig(source="files", path=str(file), ignore_columns=["mark"])
    loaded = load_pairs(cfg)
    made = prepare(
        cfg, ProbeConfig(pairs=2), kinds.bpe(), train_pairs=loaded, probe_pairs=None, cache_dir=tmp_path / "cache"
    )
    assert all("mark" not in pair.columns for pair in loaded)  # data.ignore_columns: whatever they hold
    nothing, weights = made.read_by([]), made.read_by(["weight", "flag"])
    assert nothing.report["columns_not_used"] == {"id": 1, "mark": 9, "weight": 8, "flag": 9}
    assert dict(nothing.table)["columns not used"] == "mark (9), id (1), flag (9), weight (8)"
    assert [label for label, _ in nothing.table] == [label for label, _ in made.table]
    assert (weights.report, weights.table) == (made.report, made.table)
    assert dict(weights.table)["columns not used"] == "mark (9), id (1)"


def test_what_a_tool_returns_within_an_answer_is_read_and_not_trained():
    told = (answer("", tool_calls=[CALL]), {"role": "tool", "content": "warm"}, answer("It is warm."))
    pair = TextPair((user(),), told, (answer("No idea."),), context=PromptContext(None, {"tools": [SCHEMA]}))
    tokenizer, encoded = encode([pair], kinds.TOOLS, trajectories=True)
    turns, ids = encoded.turns[0][0].tolist(), encoded.chosen[0].tolist()
    said = {turn: tokenizer.decode([i for i, t in zip(ids, turns, strict=True) if t == turn]) for turn in (0, -1, 1)}
    assert said[0] == f"<call>{json.dumps(CALL['function'])}</call></s>"
    assert said[-1].startswith("tool: warm")
    assert said[1].endswith("is warm.</s>")
