"""What a message and its row may hold beside role and text: kept in one form, refused, or counted as not used."""

from __future__ import annotations

import datetime
import json

import pyarrow
import pyarrow.parquet
import pytest

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.load import load_pairs
from alphapo_cli.data.text_pairs import NO_CONTEXT
from alphapo_cli.errors import UsageError

USER = {"role": "user", "content": "Weather in Rome?"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
SCHEMA = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def load(tmp_path, *rows, **settings):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_pairs(DataConfig(source="files", path=str(file), **settings))


def pair_of(tmp_path, row, **settings):
    (pair,) = load(tmp_path, row, **settings)
    return pair


def row_of(chosen, **more):
    return {"prompt": [USER], "chosen": [chosen], "rejected": [answer("No idea.")], **more}


def error_of(tmp_path, *rows, **settings):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, *rows, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ tool calls


@pytest.mark.parametrize(
    "written",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
        {"tool_calls": [{"name": "weather", "arguments": {"city": "Rome"}}]},
        {"tool_calls": CALL},
        {"function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}},
    ],
    ids=["as it is", "as JSON text", "arguments as JSON text", "bare", "one without a list", "legacy"],
)
@pytest.mark.parametrize("content", [{"content": ""}, {"content": None}, {}], ids=["empty", "null", "missing"])
def test_a_tool_call_has_one_form_however_it_is_written(tmp_path, written, content):
    pair = pair_of(tmp_path, row_of({"role": "assistant", **content, **written}))
    assert pair.chosen == (answer("", tool_calls=[CALL]),)


def test_arguments_that_are_no_json_stay_as_the_model_wrote_them(tmp_path):
    broken = {"type": "function", "function": {"name": "weather", "arguments": '{"city": '}}
    assert pair_of(tmp_path, row_of(answer("", tool_calls=[broken]))).chosen == (answer("", tool_calls=[broken]),)


def test_answers_that_differ_in_their_calls_alone_are_a_pair(tmp_path):
    other = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Male"}}}
    rows = [
        {"prompt": [USER], "chosen": [answer("", tool_calls=[CALL])], "rejected": [answer(None, tool_calls=[call])]}
        for call in (other, CALL)
    ]
    found = load(tmp_path, *rows)
    assert (len(found), found.counts.identical, found.counts.emptied) == (1, 1, 0)


def test_a_tool_may_return_nothing_a_number_or_an_object(tmp_path):
    told = [
        {"role": "tool", "content": value, "tool_call_id": "1"}
        for value in (None, 7, {"warm": True}, [{"type": "text", "text": "x"}])
    ]
    pair = pair_of(tmp_path, {**row_of(answer("Warm.")), "prompt": [USER, answer(None, tool_calls=[CALL]), *told]})
    assert [m["content"] for m in pair.prompt if m["role"] == "tool"] == ["", "7", '{"warm": true}', "x"]
    assert pair.prompt[-1]["tool_call_id"] == "1"


def test_null_and_empty_keys_are_no_keys(tmp_path):
    """Parquet gives every message the keys of all of them."""
    rows = [row_of(answer("Warm.", name=None), tools=None), row_of(answer("", tool_calls=[CALL]), tools=[SCHEMA])]
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    first, second = load_pairs(DataConfig(source="files", path=str(file)))
    assert first.chosen == (answer("Warm."),)
    assert second.chosen == (answer("", tool_calls=[CALL]),)
    assert second.context.arguments == {"tools": [SCHEMA]}


def test_the_arguments_of_other_functions_that_tables_fill_in_are_left_out(tmp_path):
    """`to_json` of a table writes them as nulls; a null that the function knows is the model's own."""
    filled = {"city": "Rome", "when": None, "unit": None}
    schema = json.loads(json.dumps(SCHEMA))
    schema["function"]["parameters"]["properties"]["unit"] = {"type": "string", "enum": None}
    call = {"type": "function", "function": {"name": "weather", "arguments": filled}}
    pair = pair_of(tmp_path, row_of(answer("", tool_calls=[call]), tools=[schema]))
    assert pair.chosen[0]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome", "unit": None}
    assert pair.context.arguments["tools"][0]["function"]["parameters"]["properties"]["unit"] == {"type": "string"}
    unknown = pair_of(tmp_path, row_of(answer("", tool_calls=[call])))
    assert unknown.chosen[0]["tool_calls"][0]["function"]["arguments"] == filled


@pytest.mark.parametrize(
    "written",
    [[SCHEMA], json.dumps([SCHEMA]), [json.dumps(SCHEMA)], SCHEMA, [SCHEMA["function"]]],
    ids=["as it is", "as JSON text", "each as JSON text", "one without a list", "bare"],
)
def test_tools_have_one_form_however_they_are_written(tmp_path, written):
    assert pair_of(tmp_path, row_of(answer("Warm."), tools=written)).context.arguments == {"tools": [SCHEMA]}


@pytest.mark.parametrize("nothing", [None, [], "", "[]", "  "])
def test_a_row_without_tools_has_none(tmp_path, nothing):
    assert pair_of(tmp_path, row_of(answer("Warm."), tools=nothing if nothing != "  " else None)).context is NO_CONTEXT


def test_tools_that_are_none_say_how_to_leave_them_unread(tmp_path):
    row = row_of(answer("Warm."), tools="hammer, saw")
    message = error_of(tmp_path, row)
    assert "rows.jsonl: line 1: 'tools' is text and no list of tool schemas" in message
    assert message.endswith("data.ignore_columns=[tools]")
    found = load(tmp_path, row, ignore_columns=["tools"])
    assert (found.pairs[0].context, found.unread.counts) == (NO_CONTEXT, {"tools": 1})
    assert pair_of(tmp_path, {**row, "functions": [SCHEMA]}, tools_column="functions").context.arguments == {
        "tools": [SCHEMA]
    }


# --------------------------------------------------------------------------------------- other keys, parts, columns


def test_text_parts_and_thoughts_become_text_and_reasoning(tmp_path):
    parts = [
        {"type": "thinking", "thinking": "Hm."},
        {"type": "text", "text": "Warm."},
        {"type": "output_text", "text": "Dry."},
    ]
    pair = pair_of(tmp_path, row_of(answer(parts)))
    assert pair.chosen == (answer("Warm.\nDry.", reasoning_content="Hm."),)


def test_dates_and_other_types_of_tables_become_text(tmp_path):
    file = tmp_path / "rows.parquet"
    when = datetime.datetime(2026, 1, 2, 3)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row_of(answer("Warm.", when=when))]), file)
    (pair,) = load_pairs(DataConfig(source="files", path=str(file)))
    assert pair.chosen == (answer("Warm.", when="2026-01-02T03:00:00"),)


def test_keys_that_say_nothing_of_the_content_make_no_other_prompt_and_no_other_pair(tmp_path):
    rows = [
        {"prompt": [{**USER, "timestamp": n}], "chosen": [answer("Warm.", id=f"a{n}")], "rejected": [answer("No.")]}
        for n in range(2)
    ]
    found = load(tmp_path, *rows)
    assert found.counts.duplicates == 1
    one, other = found
    assert (one.prompt_key, one.content_key) == (other.prompt_key, other.content_key)
    assert one.template_key != other.template_key  # a template may write them
    bare = pair_of(tmp_path, {"prompt": [USER], "chosen": [answer("Warm.")], "rejected": [answer("No.")]})
    assert (bare.prompt_key, bare.content_key, bare.template_key) == (one.prompt_key, one.content_key, bare.content_key)
    whole = [USER, {**answer("Yes?"), "id": "x"}, USER]
    other_ids = [{**message, "id": "y"} for message in whole]
    shared = load(tmp_path, {"chosen": [*whole, answer("Warm.")], "rejected": [*other_ids, answer("No.")]})
    assert len(shared.pairs[0].prompt) == 3


def test_what_is_beside_the_messages_makes_another_prompt(tmp_path):
    row = row_of(answer("Warm."))
    rows = [row, {**row, "system": "Be brief."}, {**row, "tools": [SCHEMA]}, {**row, "chat_template_kwargs": {"a": 1}}]
    found = load(tmp_path, *rows)
    assert found.counts.duplicates == 0
    assert len({pair.prompt_key for pair in found}) == len({pair.content_key for pair in found}) == 4


def test_a_list_of_answers_may_hold_calls_and_reasoning(tmp_path):
    answers = [
        {"content": None, "tool_calls": [CALL], "score": 2, "model": "m"},
        {"content": "No.", "reasoning_content": "Hm.", "score": 1},
        {"content": "Never.", "score": 0},
    ]
    found = load(tmp_path, {"prompt": "Weather?", "responses": answers})
    (pair,) = found
    assert pair.chosen == (answer("", tool_calls=[CALL]),)
    assert pair.rejected == (answer("Never."),)
    assert pair.others == ((answer("No.", reasoning_content="Hm."),),)
    assert found.unread.counts == {"responses[].model": 1}


def test_columns_that_nobody_reads_are_counted_and_numbers_are_at_hand(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score": 1.5, "source": "web", "empty": "", "history": []}
    found = load(tmp_path, row, {**row, "prompt": "r", "source": None, "system_prompt": "Be kind."})
    assert found.unread.counts == {"source": 1, "system_prompt": 1}
    assert found.unread.first["system_prompt"].endswith("rows.jsonl: line 2")
    assert found.pairs[0].columns == {"score": 1.5}


# ------------------------------------------------------------------------------------------- system text and input


def test_a_system_column_is_the_conversations_system_text_where_it_has_none(tmp_path):
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "system": "Be brief."}
    assert pair_of(tmp_path, row).context.system == "Be brief."
    own = [{"role": "system", "content": "Be kind."}, USER]
    found = load(tmp_path, {**row_of(answer("Warm.")), "prompt": own, "system": "Be brief."})
    assert (found.pairs[0].context, found.unread.counts) == (NO_CONTEXT, {"system": 1})
    same = load(tmp_path, {**row_of(answer("Warm.")), "prompt": own, "system": "Be kind."})
    assert same.unread.counts == {}
    named = load(tmp_path, {**row, "system": None, "persona": "A pirate."}, system_column="persona")
    assert (named.pairs[0].context.system, named.unread.counts) == ("A pirate.", {})


def test_the_input_of_an_instruction_follows_it(tmp_path):
    row = {"instruction": "Translate.", "input": "The road", "chosen": "La route", "rejected": "Road"}
    assert pair_of(tmp_path, row, prompt_column="instruction").prompt == "Translate.\n\nThe road"
    assert pair_of(tmp_path, {**row, "input": " "}, prompt_column="instruction").prompt == "Translate."
    messages = {**row, "chosen": [answer("La route")], "rejected": [answer("Road")]}
    assert pair_of(tmp_path, messages, prompt_column="instruction").prompt[0]["content"] == "Translate.\n\nThe road"
    lists = {"instruction": "Add.", "input": "1 2", "responses": ["3", "4"], "scores": [1, 0]}
    assert pair_of(tmp_path, lists, prompt_column="instruction").prompt == "Add.\n\n1 2"
    one = {"instruction": "Add.", "input": "1 2", "completion": "3", "label": True}
    assert pair_of(tmp_path, one, prompt_column="instruction").prompt == "Add.\n\n1 2"
    assert error_of(tmp_path, row).endswith("did you mean data.prompt_column=instruction?")
    other = load(tmp_path, {**row, "prompt": "q"})
    assert other.unread.counts == {"instruction": 1, "input": 1}


def test_a_prompt_that_the_conversations_do_not_have_is_counted_as_not_used(tmp_path):
    whole = {
        "chosen": [{"role": "user", "content": "Weather?"}, answer("Warm.")],
        "rejected": [{"role": "user", "content": "Weather?"}, answer("Cold.")],
    }
    assert load(tmp_path, {**whole, "prompt": " Weather? "}).unread.counts == {}
    assert load(tmp_path, {**whole, "prompt": "Time?"}).unread.counts == {"prompt": 1}
    alpaca = {**whole, "instruction": "Time?", "input": "In Rome"}
    assert load(tmp_path, alpaca, prompt_column="instruction").unread.counts == {"instruction": 1, "input": 1}
    asked = {**row_of(answer("Warm.")), "instruction": [{"role": "user", "content": "Weather?"}], "input": "In Rome"}
    del asked["prompt"]
    assert load(tmp_path, asked, prompt_column="instruction").unread.counts == {"input": 1}
    spoken = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    assert load(tmp_path, {**spoken, "prompt": "z"}).unread.counts == {"prompt": 1}


@pytest.mark.parametrize("written", [{"a": 1}, '{"a": 1}'])
def test_a_row_may_bring_arguments_of_the_template(tmp_path, written):
    assert pair_of(tmp_path, row_of(answer("Warm."), chat_template_kwargs=written)).context.arguments == {"a": 1}


def test_arguments_that_are_not_the_templates_are_refused(tmp_path):
    taken = error_of(tmp_path, row_of(answer("Warm."), chat_template_kwargs={"add_generation_prompt": False}))
    assert "line 1: 'chat_template_kwargs' sets add_generation_prompt" in taken
    assert "is text, not an object" in error_of(tmp_path, row_of(answer("Warm."), chat_template_kwargs="on"))


def test_documents_are_arguments_where_they_are_objects(tmp_path):
    found = load(tmp_path, row_of(answer("Warm."), documents=[{"text": "Rome is warm."}]))
    assert found.pairs[0].context.arguments == {"documents": [{"text": "Rome is warm."}]}
    assert load(tmp_path, row_of(answer("Warm."), documents="Rome is warm.")).unread.counts == {"documents": 1}


# -------------------------------------------------------------------------------------------- images, video, audio

IMAGE = [{"type": "image_url", "image_url": {"url": "x.png"}}, {"type": "text", "text": "Where?"}]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"images": ["rome.png"]}, "image in column 'images'"),
        ({"image": "rome.png"}, "image in column 'image'"),
        ({"image_path": "rome.png"}, "image in column 'image_path'"),
        ({"image_1": "rome.png", "image_2": None}, "image in column 'image_1'"),
        ({"videos": ["rome.mp4"]}, "video in column 'videos'"),
        ({"audio": {"path": "rome.wav"}}, "audio in column 'audio'"),
        ({"prompt": [{"role": "user", "content": IMAGE}]}, "image in the messages of 'prompt'"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "audio in the messages",
        ),
        ({"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "video in the messages"),
        ({"prompt": [{**USER, "images": ["rome.png"]}]}, "image in the messages of 'prompt'"),
    ],
)
def test_what_is_not_text_is_refused_with_its_number_and_first_row(tmp_path, more, what):
    plain = row_of(answer("Warm."))
    message = error_of(tmp_path, plain, {**plain, **more}, plain, {**plain, **more})
    assert "rows.jsonl: 2 of 4 rows hold what is not text" in message
    assert what in message
    assert "the first: " in message
    assert "rows.jsonl: line 2)" in message
    assert ("data.ignore_columns=" in message) == ("in column" in what)


def test_pictures_of_a_table_are_known_by_their_bytes(tmp_path):
    rows = [{"prompt": "Where?", "chosen": "Rome.", "rejected": "Oslo.", "view": {"bytes": b"\x89PNG", "path": None}}]
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    with pytest.raises(UsageError, match=r"1 of 1 rows hold what is not text \(image in column 'view'"):
        load_pairs(DataConfig(source="files", path=str(file)))


@pytest.mark.parametrize("nothing", [[], None, "", 0, False])
def test_a_column_of_pictures_without_any_is_no_obstacle(tmp_path, nothing):
    assert len(load(tmp_path, row_of(answer("Warm."), images=nothing))) == 1


def test_their_text_trains_where_the_column_is_to_be_ignored(tmp_path):
    found = load(tmp_path, row_of(answer("Warm."), images=["rome.png"]), ignore_columns=["images"])
    assert found.unread.counts == {"images": 1}


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "assistant", "content": None}, "the content of 'chosen[0]' is null, not text"),
        ({"role": "assistant"}, "'chosen[0]' is not a message with 'role' and 'content' (keys: role)"),
        ({"role": "gpt", "content": "x"}, "'chosen[0]' has role 'gpt'; supported are system"),
        ({"role": "assistant", "content": [{"type": "file", "file": {}}]}, "a part of type 'file' (keys: type, file)"),
        ({"role": "assistant", "content": "", "tool_calls": [3]}, "'chosen[0].tool_calls' is not a list of tool calls"),
        ({"role": "assistant", "content": "x", "name": "\ud83d"}, "'chosen[0]' holds half a character"),
    ],
)
def test_messages_that_cannot_be_read_are_named(tmp_path, message, says):
    found = error_of(tmp_path, row_of(message))
    assert found.split("rows.jsonl: ")[1].startswith("line 1: ")
    assert says in found


def test_answers_of_several_turns_say_what_reads_them(tmp_path):
    several = [answer("", tool_calls=[CALL]), {"role": "tool", "content": "warm"}, answer("Warm.")]
    row = {"prompt": [USER], "chosen": several, "rejected": [answer("No.")]}
    assert error_of(tmp_path, row).endswith("; data.trajectories=true reads answers of several turns")
    assert load(tmp_path, row, trajectories=True).pairs[0].chosen == tuple(several)


def test_messages_stored_as_one_object_of_lists_are_messages(tmp_path):
    """As `datasets` has stored lists of objects."""
    lists = {"role": ["user", "assistant"], "content": ["Weather?", "Warm."]}
    rows = [{"chosen": lists, "rejected": {**lists, "content": ["Weather?", "No."]}}]
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    (pair,) = load_pairs(DataConfig(source="files", path=str(file)))
    assert (pair.chosen, pair.rejected) == ((answer("Warm."),), (answer("No."),))
