"""Prompts from every kind of source, and bad input: exit code 2, one line, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alphapo_cli.config.schema import DataConfig
from alphapo_cli.data.glassbox import world
from alphapo_cli.generation.prompts import load_prompts
from tests.conftest import Ran, write_rows

Alphapo = Callable[..., Ran]
ASK = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
SYSTEM = {"role": "system", "content": "Be brief."}

# row -> (instruction in model_outputs.json, prompt under a chat template, text without one)
FORMS: list[tuple[dict[str, Any], str, Any, str | None]] = [
    ({"instruction": "Why?", "output": "x", "generator": "y"}, "Why?", (ASK,), None),
    ({"instruction": "Add.", "input": "1 2"}, "Add.\n\n1 2", ({"role": "user", "content": "Add.\n\n1 2"},), None),
    ({"instruction": "Why?", "input": ""}, "Why?", (ASK,), None),
    ({"prompt": "Why?"}, "Why?", "Why?", "Why?"),
    ({"prompt": "Why?", "messages": [ASK, ANSWER]}, "Why?", "Why?", "Why?"),
    ({"prompt": [ASK]}, "Why?", (ASK,), None),
    ({"messages": [ASK, ANSWER]}, "Why?", (ASK,), None),
    ({"messages": [SYSTEM, ASK]}, "System: Be brief.\n\nUser: Why?", (SYSTEM, ASK), None),
    (
        {"messages": [ASK, ANSWER, ASK]}, "User: Why?\n\nAssistant: Because.\n\nUser: Why?", (ASK, ANSWER, ASK), None,
    ),
    ({"chosen": [ASK, ANSWER], "rejected": [ASK, {**ANSWER, "content": "No."}]}, "Why?", (ASK,), None),
    (
        {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
        "\n\nHuman: Why?\n\nAssistant:", (ASK,), "\n\nHuman: Why?\n\nAssistant:",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "instruction", "side", "plain"), FORMS)
def test_every_form_of_a_prompt(
    row: dict[str, Any], instruction: str, side: Any, plain: str | None, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "some_set.jsonl", [row])
    (found,) = load_prompts(DataConfig(source="files", path=str(file))).rows
    assert (found.instruction, found.side, found.plain, found.dataset) == (instruction, side, plain, "some_set")


def test_a_list_in_json_its_datasets_and_repetitions(tmp_path: Path) -> None:
    file = tmp_path / "alpaca_eval.json"
    rows = [{"instruction": text, "dataset": "koala" if text == "b" else None} for text in "abca"]
    file.write_text(json.dumps(rows))
    found = load_prompts(DataConfig(source="files", path=str(file)))
    assert [(p.instruction, p.dataset) for p in found.rows] == [
        ("a", "alpaca_eval"),
        ("b", "koala"),
        ("c", "alpaca_eval"),
    ]
    assert found.repeated == 1
    assert [p.instruction for p in load_prompts(DataConfig(source="files", path=str(file), limit=2)).rows] == ["a", "b"]


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
SCHEMA = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def load_rows(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> Any:
    file = write_rows(tmp_path / "rows.jsonl", list(rows))
    return load_prompts(DataConfig(source="files", path=str(file), **settings))


def test_conversations_that_read_the_same_are_told_apart(tmp_path: Path) -> None:
    """`instruction` identifies an answer in every later step; one text that looks like a conversation keeps its own."""
    looks = {"messages": [{"role": "user", "content": "User: Why?\n\nAssistant: Because.\n\nUser: Why?"}]}
    found = load_rows(tmp_path, {"messages": [ASK, ANSWER, ASK]}, looks, looks)
    assert [p.instruction for p in found.rows] == [
        json.dumps({"messages": [dict(sorted(m.items())) for m in (ASK, ANSWER, ASK)]}),
        looks["messages"][0]["content"],
    ]
    assert found.repeated == 1
    same = {"prompt": "Why?"}
    found = load_rows(tmp_path, same, {**same, "tools": [SCHEMA]}, {**same, "chat_template_kwargs": {"mood": "ü"}})
    assert len({p.instruction for p in found.rows}) == 3
    assert found.rows[0].instruction == "Why?"
    assert "ü" in found.rows[2].instruction


def test_an_answer_that_ends_a_conversation_is_counted(tmp_path: Path) -> None:
    found = load_rows(
        tmp_path, {"messages": [ASK, ANSWER]}, {"messages": [SYSTEM, ASK, ANSWER]}, {"messages": [ASK, ANSWER, ASK]}
    )
    assert (len(found.rows), found.answered, found.read) == (3, 2, 3)


def test_what_a_row_gives_the_template_is_read_as_in_training(tmp_path: Path) -> None:
    told = [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "it"}]
    found = load_rows(
        tmp_path, {"messages": told, "tools": json.dumps([SCHEMA]), "system": "Be brief.", "origin": "web"}
    )
    (prompt,) = found.rows
    assert prompt.side == (ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}, told[2])
    assert (prompt.context.system, prompt.context.arguments) == ("Be brief.", {"tools": [SCHEMA]})
    calls = json.dumps([CALL], sort_keys=True)
    assert prompt.instruction == f"System: Be brief.\n\nUser: Why?\n\nAssistant: {calls}\n\nTool: it"
    assert found.unread.counts == {"origin": 1}
    (text,) = load_rows(tmp_path, {"prompt": "Why?", "system": "Be brief."}).rows
    assert (text.instruction, text.side) == ("System: Be brief.\n\nUser: Why?", "Why?")
    (pair,) = load_rows(tmp_path, {"prompt": "Why?", "chosen": "a", "rejected": "b", "tools": [SCHEMA]}).rows
    assert pair.context.arguments == {"tools": [SCHEMA]}
    (joined,) = load_rows(tmp_path, {"instruction": "Add.", "input": "1 2"}, ignore_columns=["input"]).rows
    assert joined.instruction == "Add."


def test_columns_of_answers_need_not_be_spoken_of(tmp_path: Path) -> None:
    row = {"instruction": "Why?", "output": "x", "generator": "y", "chosen": "a", "rejected": "b", "score": 1}
    assert load_rows(tmp_path, row).unread.counts == {}


def test_a_folder_with_splits_and_several_sources(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_rows(tmp_path / "set" / f"{name}.jsonl", [{"prompt": name}])
    other = write_rows(tmp_path / "other.jsonl", [{"instruction": "other"}])

    def texts(**settings: Any) -> list[tuple[str, str]]:
        cfg = DataConfig(source="files", **{"path": str(tmp_path / "set"), **settings})
        return [(p.instruction, p.dataset) for p in load_prompts(cfg).rows]

    assert texts() == [("train", "train")]
    assert texts(eval_split="test") == texts(split="test") == [("test", "test")]
    assert texts(path=[str(tmp_path / "set"), str(other)]) == [("train", "train"), ("other", "other")]


def test_a_column_of_another_name(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "q.jsonl", [{"question": "Why?", "prompt": "not this"}])
    (found,) = load_prompts(DataConfig(source="files", path=str(file), prompt_column="question")).rows
    assert found.instruction == "Why?"


def test_alpaca_evals_list_is_one_file_of_the_hub(
    alphapo: Alphapo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's own cache holds it, without network; without it, what to type."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    line = ("generate", "generation=transformers", "data=alpaca_eval", "data.limit=2", "generation.max_new_tokens=2")
    refused(alphapo(*line), tmp_path, "tatsu-lab/alpaca_eval/alpaca_eval.json", "not in the cache", "data.path=FILE")
    folder = tmp_path / "hub" / "datasets--tatsu-lab--alpaca_eval"
    commit = "0123456789" * 4
    rows = [
        {"dataset": "koala", "instruction": text, "output": "x", "generator": "y"} for text in ("name", "list", "one")
    ]
    for path, text in (("refs/main", commit), (f"snapshots/{commit}/alpaca_eval.json", json.dumps(rows))):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    ran = alphapo(*line)
    assert ran.code == 0, ran.err
    found = json.loads((ran.path / "model_outputs.json").read_text())
    assert [(row["dataset"], row["instruction"]) for row in found] == [("koala", "name"), ("koala", "list")]


def test_without_settings_the_worlds_held_out_instructions() -> None:
    assert [p.instruction for p in load_prompts(DataConfig()).rows] == world.instructions(256)
    assert [p.instruction for p in load_prompts(DataConfig(limit=300)).rows] == world.instructions(300)


# ------------------------------------------------------------------------------------------------------- bad input


def refused(ran: Ran, tmp_path: Path, *parts: str) -> None:
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert ran.fault.startswith("alphapo: ")
    for part in parts:
        assert part in ran.fault
    assert not (tmp_path / "runs").exists()


ROWS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no prompt": ([{"instruction": "a"}, {"text": "b"}], ("line 2", "'instruction'")),
    "no column": ([{"text": "b"}], ("line 1", "'instruction' or 'prompt' or 'messages'", "columns: text", "data.prompt_column")),
    "not text": ([{"prompt": 3}], ("line 1", "'prompt'", "not text or messages")),
    "empty": ([{"instruction": "  "}], ("line 1", "the prompt is empty")),
    "no user": ([{"messages": [SYSTEM]}], ("line 1", "no user message")),
    "no rows": ([], ("prompts.jsonl", "holds no rows")),
    "no object": ([3], ("line 1", "object")),
    "pictures": (
        [{"prompt": "a"}, {"prompt": "b", "images": ["x.png"]}],
        ("1 of 2 rows hold what is not text (image in column 'images'", "line 2", "data.ignore_columns=[images]"),
    ),
    "pictures in messages": (
        [{"messages": [{"role": "user", "content": [{"type": "image"}]}]}], ("1 of 1 rows", "image in the messages of 'messages'"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_broken_rows(name: str, alphapo: Alphapo, tmp_path: Path) -> None:
    rows, parts = ROWS[name]
    file = write_rows(tmp_path / "prompts.jsonl", rows)
    refused(alphapo("generate", f"data.path={file}"), tmp_path, *parts)


LINES: dict[str, tuple[str, tuple[str, ...]]] = {
    "no prompts": ("./nothing", ("./nothing: answers to which prompts? give data=...",)),
    "no model": ("./nothing data=glassbox", ("model=./nothing", "no such directory")),
    "no file": ("data=jsonl data.path=nothing.jsonl", ("nothing.jsonl", "no such file")),
    "no path": ("data=jsonl", ("data.path=FILE is missing",)),
    "typo": ("generation.temprature=0", ("generation.temprature", "did you mean 'generation.temperature'?")),
    "in another group": ("data.top_p=1", ("'data.top_p'", "did you mean 'generation.top_p'?")),
    "range": ("generation.top_p=1.5", ("generation.top_p=1.5", "at most 1")),
    "choice": ("generation=vlm", ("generation=vlm", "did you mean 'vllm'?")),
    "pairs only": ("data.duplicates=drop", ("data.duplicates", "training pairs")),
    "weights": ("data.weights=[1]", ("data.weights", "training pairs")),
    "messages as text": (
        "data.limit=3 data.template=plain",
        ("data.template=plain and 3 of 3 prompts are", "leave data.template=auto"),
    ),
    "another stage": ("trainer=small", ("trainer=small", "generate has no group 'trainer'")),
    "too many": ("data.limit=5000", ("held-out instructions, not 5000",)),
    "too long": (
        "data.limit=8 generation=transformers generation.max_new_tokens=126",
        ("8 of 8 prompts are too long", "context is 128", "may have 126", "generation.max_new_tokens"),
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_bad_lines(name: str, alphapo: Alphapo, tmp_path: Path) -> None:
    line, parts = LINES[name]
    refused(alphapo("generate", *line.split()), tmp_path, *parts)


def test_the_configuration_shows_the_source_that_is_read(alphapo: Alphapo) -> None:
    for line, source in ((["data.path=x.jsonl"], "files"), (["data=jsonl"], "files"), ([], "glassbox")):
        ran = alphapo("generate", *line, "--print-config")
        assert f"  source: {source}\n" in ran.out, ran.err


def test_some_prompts_too_long_are_counted_not_cut(alphapo: Alphapo, tmp_path: Path) -> None:
    rows = [{"instruction": "name one fruit . " * n} for n in (1, 9, 40, 2, 33)]
    file = write_rows(tmp_path / "prompts.jsonl", rows)
    # 4 n words, <s>, <user> and <assistant>: 163 tokens at most; 28 + 100 is the most that fits.
    refused(
        alphapo("generate", "generation=transformers", f"data.path={file}", "generation.max_new_tokens=100"),
        tmp_path, "3 of 5 prompts are too long", "the longest has 163 tokens", "context is 128",
    )  # fmt: skip


def test_instructions_need_a_chat_template(trained: Ran, alphapo: Alphapo, tmp_path: Path) -> None:
    model = shutil.copytree(trained.path / "model", tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    line = ("generate", str(model), "generation=transformers", "data=glassbox", "data.limit=3")
    refused(alphapo(*line), tmp_path, "no chat template", "3 of 3 prompts", "data.template=plain")
    file = write_rows(tmp_path / "prompts.jsonl", [{"instruction": "name one fruit ."}])
    refused(alphapo(*line, f"data.path={file}"), tmp_path, "no chat template")
    plain = alphapo(*line, f"data.path={file}", "data.template=plain")
    assert plain.code == 0, plain.err
