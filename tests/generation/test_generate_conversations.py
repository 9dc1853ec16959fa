"""Conversations: known by their messages, and continued where they end in an answer that has begun."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.tokenise import encode_prompt
from alphapo_cli.errors import UsageError
from alphapo_cli.generation.prompts import load_prompts
from tests.conftest import Ran, write_rows
from tests.data import data_tokenizers as kinds
from tests.generation.generate_world import chat_model, load

Alphapo = Callable[..., Ran]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


# The second and the third read the same as text.
ROWS = [
    [user("Name three fruits")],
    [user("hi"), assistant("hello"), user("Name three fruits")],
    [user("User: hi\n\nAssistant: hello\n\nUser: Name three fruits")],
    [user("hi"), assistant("hello"), user("Name three fruits")],
    [user("Name three fruits"), assistant("Apples, pears and")],
]


def read(tmp_path: Path, rows: list[Any], **settings: Any) -> Any:
    file = write_rows(tmp_path / "prompts.jsonl", [{"messages": row} for row in rows])
    limit = settings.pop("limit", None)
    return load_prompts(DataConfig(source="files", path=str(file), limit=limit), **settings)


def test_two_conversations_of_one_text_are_two_prompts_with_seeds_of_their_own(tmp_path: Path) -> None:
    found = read(tmp_path, ROWS)
    assert len(found.rows) == 3
    assert (found.repeated, found.answered) == (2, 1)  # the last one is the first without its answer
    assert len({prompt.seed_text for prompt in found.rows}) == len({p.instruction for p in found.rows}) == 3


def test_a_seed_does_not_depend_on_what_else_is_asked(tmp_path: Path) -> None:
    whole, part = read(tmp_path, ROWS), read(tmp_path, ROWS, limit=2)
    assert [p.seed_text for p in part.rows] == [p.seed_text for p in whole.rows[:2]]
    assert part.rows[0].seed_text == "Name three fruits"  # as ever for a single message
    assert json.loads(part.rows[1].seed_text)["messages"][1] == assistant("hello")


def test_an_answer_that_has_begun_is_continued_on_request(tmp_path: Path, alphapo: Alphapo) -> None:
    found = read(tmp_path, ROWS, continue_assistant=True)
    assert (len(found.rows), found.answered) == (4, 0)
    begun = found.rows[3]
    tokenizer = kinds.chatml()
    ids = encode_prompt(begun.side, tokenizer, DataConfig(), continued=True)
    own = tokenizer.apply_chat_template(ROWS[4], continue_final_message=True, return_dict=False)
    assert ids == own
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\nApples, pears and")
    model = chat_model(tmp_path / "model")
    line = ("generate", str(model), "data=jsonl", f"data.path={tmp_path / 'prompts.jsonl'}", "generation=transformers")
    short = "generation.max_new_tokens=3"
    without = alphapo(*line, short)
    assert "1 of 5 conversations end with an answer, which is left out" in without.err
    assert "generation.continue_assistant=true" in without.err
    assert load(without.path / "summary.json")["data"]["answers_left_out"] == 1
    ran = alphapo(*line, short, "generation.continue_assistant=true")
    assert ran.code == 0, ran.err
    assert "which is left out" not in ran.err
    assert len(load(ran.path / "model_outputs.json")) == 4


def test_what_is_no_text_is_not_continued(tmp_path: Path) -> None:
    call = {"function": {"name": "look", "arguments": {}}, "type": "function"}
    with pytest.raises(UsageError, match=r"line 1: the assistant turn .* has tool_calls, .* cannot continue"):
        read(tmp_path, [[user("hi"), assistant("", tool_calls=[call])]], continue_assistant=True)
    empty = read(tmp_path, [[user("hi"), assistant(" ")]], continue_assistant=True)
    assert (empty.rows[0].continued, empty.answered) == (False, 1)


def test_a_name_makes_another_conversation_and_the_place_of_a_system_text_does_not(tmp_path: Path) -> None:
    rows = [
        {"messages": [user("hi")]},
        {"messages": [{**user("hi"), "name": "Bob"}]},
        {"messages": [{"role": "system", "content": "Be brief"}, user("hi")]},
        {"messages": [user("hi")], "system": "Be brief"},
    ]
    file = write_rows(tmp_path / "prompts.jsonl", rows)
    found = load_prompts(DataConfig(source="files", path=str(file)))
    assert (len(found.rows), found.repeated) == (3, 1)
    assert len({prompt.seed_text for prompt in found.rows}) == len({p.instruction for p in found.rows}) == 3
    assert found.rows[0].seed_text == found.rows[0].instruction == "hi"
