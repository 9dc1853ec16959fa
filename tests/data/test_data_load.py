"""Reading preference data: every form, every file type, and one clear line for what is broken."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import random
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from alphapo_cli.config.compose import compose
from alphapo_cli.config.overrides import Sources, read_line
from alphapo_cli.config.schema import DataConfig, TrainConfig
from alphapo_cli.data.load import has_evaluation, load_pairs
from alphapo_cli.errors import UsageError

HH = Path(__file__).parents[3] / "shared" / "data" / "hh-rlhf" / "harmless-base-test.jsonl.gz"

ROWS: list[dict[str, Any]] = [
    {"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Stone.", "score_chosen": 4.5, "score_rejected": 1},
    {"prompt": "Name a river.", "chosen": "Seine.", "rejected": "Paris, it's\n a river", "score_chosen": 3},
    {"prompt": "Name, if you can, a tree.", "chosen": "Oak.", "rejected": "Rose.", "source": "a"},
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    else:
        whole = ".json" in path.suffixes
        text = json.dumps(rows) if whole else "".join(json.dumps(row) + "\n" for row in rows)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text, encoding="utf-8")
    return path


def load(path, **settings):
    return load_pairs(DataConfig(source="files", path=str(path), **settings))


def load_rows(tmp_path, rows, **settings):
    return load(write(tmp_path / "data.jsonl", rows), **settings)


def error_of(path, **settings):
    with pytest.raises(UsageError) as caught:
        load(path, **settings)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_error(tmp_path, rows, **settings):
    return error_of(write(tmp_path / "data.jsonl", rows), **settings)


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.json.gz", "d.csv", "d.parquet"])
def test_every_file_type_gives_the_same_pairs(tmp_path, name):
    loaded = load(write(tmp_path / name, ROWS))
    assert loaded.form == "pairs"
    assert [(p.prompt, p.chosen, p.rejected) for p in loaded] == [
        (row["prompt"], row["chosen"], row["rejected"]) for row in ROWS
    ]
    assert [p.row for p in loaded] == [1, 2, 3]
    assert [p.columns for p in loaded] == [{"score_chosen": 4.5, "score_rejected": 1}, {"score_chosen": 3}, {}]


def test_folders_globs_byte_order_marks_and_line_separators(tmp_path):
    write(tmp_path / "b.jsonl", ROWS[1:])
    (tmp_path / "a.json").write_text("\ufeff" + "\n".join(json.dumps(row) for row in ROWS[:1]), encoding="utf-8")
    (tmp_path / "README.md").write_text("no data")
    assert [p.prompt for p in load(tmp_path)] == [row["prompt"] for row in ROWS]
    assert len(load(f"{tmp_path}/b*.jsonl")) == 2
    (tmp_path / "wrapped.json").write_text(json.dumps({"data": ROWS}))
    assert len(load(tmp_path / "wrapped.json")) == 3
    odd = [{"prompt": "a\u2028b\x85c", "chosen": "x", "rejected": "y"}]
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(odd[0], ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert load(path).pairs[0].prompt == odd[0]["prompt"]


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path):
    path = write(tmp_path / "d.jsonl", ROWS)
    path.write_text(path.read_text() + "{broken\n")
    loaded = load(path, limit=2)
    assert [p.prompt for p in loaded] == [row["prompt"] for row in ROWS[:2]]
    assert loaded.counts.read == 2


def test_columns_can_be_named(tmp_path):
    rows = [{"question": "q", "good": "a", "bad": "b"}]
    loaded = load_rows(tmp_path, rows, prompt_column="question", chosen_column="good", rejected_column="bad")
    assert (loaded.pairs[0].prompt, loaded.pairs[0].chosen, loaded.pairs[0].rejected) == ("q", "a", "b")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": [user("q")], "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        {"prompt": [user("q")], "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")], "score_chosen": 1.0},
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_form_of_messages_gives_the_same_pair(tmp_path, row, suffix):
    loaded = load(write(tmp_path / f"d{suffix}", [row]))
    assert loaded.form == "messages"
    pair = loaded.pairs[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ((user("q"),), (assistant("a"),), (assistant("b"),))


def test_turns_that_both_answers_share_belong_to_the_prompt(tmp_path):
    shared = [assistant("first"), user("and?")]
    row = {"prompt": [user("q")], "chosen": [*shared, assistant("a")], "rejected": [*shared, assistant("b")]}
    pair = load_rows(tmp_path, [row]).pairs[0]
    assert pair.prompt == (user("q"), *shared)
    assert pair.chosen == (assistant("a"),)


def test_dialogues_become_messages_and_keep_their_text(tmp_path):
    start = "\n\nHuman: Hi.\n\nStill me.\n\nAssistant: Hello!\n\nHuman: Say\nmore\n\nAssistant:"
    row = {"chosen": start + " Gladly.", "rejected": start + "  No. "}
    loaded = load_rows(tmp_path, [row])
    pair = loaded.pairs[0]
    assert loaded.form == "dialogue"
    assert pair.prompt == (user("Hi.\n\nStill me."), assistant("Hello!"), user("Say\nmore"))
    assert (pair.chosen, pair.rejected) == ((assistant("Gladly."),), (assistant("No."),))
    assert pair.verbatim.prompt + pair.verbatim.chosen == row["chosen"]
    assert pair.verbatim.prompt + pair.verbatim.rejected == row["rejected"]


def test_two_turns_of_one_speaker_become_one_message(tmp_path):
    start = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant:"
    pair = load_rows(tmp_path, [{"chosen": start + " x", "rejected": start + " y"}]).pairs[0]
    assert pair.prompt == (user("a\n\nb"), assistant("c"))
    assert pair.verbatim.prompt == start


def test_rows_without_a_preference_are_counted(tmp_path):
    rows = [
        *ROWS,
        ROWS[0],
        {"prompt": "p", "chosen": " \n", "rejected": "x"},
        {"prompt": "p", "chosen": "same", "rejected": "same "},
    ]
    loaded = load_rows(tmp_path, rows)
    assert (len(loaded), loaded.counts.read) == (4, 6)
    assert (loaded.counts.emptied, loaded.counts.identical) == (1, 1)
    assert (loaded.counts.duplicates, loaded.counts.duplicates_dropped) == (1, 0)
    dropped = load_rows(tmp_path, rows, duplicates="drop")
    assert (len(dropped), dropped.counts.duplicates, dropped.counts.duplicates_dropped) == (3, 1, 1)


def generated_dialogues(rng):
    """Dialogues of the HH-RLHF form: 40 usable ones, 5 without a common prompt, 4 with an empty answer."""
    rows = []
    for n in range(49):
        turns = "".join(f"\n\nHuman: question {n}.{t}\n\nAssistant: reply {n}.{t}" for t in range(rng.randrange(4)))
        start = f"{turns}\n\nHuman: last question {n}\n\nAssistant:"
        chosen, rejected = f"{start} good {n}", f"{start} bad {n}\n\nreally"
        if n < 5:
            rejected = f"{start} bad\n\nHuman: sorry?\n\nAssistant: bad again"
        elif n < 9:
            chosen, rejected = (chosen, f"{start} ") if n % 2 else (f"{start}\n", rejected)
        rows.append({"chosen": chosen, "rejected": rejected})
    rng.shuffle(rows)
    return rows


def check_dialogues(loaded, rows):
    """Every pair against its row, found by plain string search."""
    header = "\n\nAssistant:"
    assert loaded.form == "dialogue"
    assert loaded.counts.read == len(rows)
    for pair in loaded:
        row = rows[pair.row - 1]
        prompt, _, chosen = row["chosen"].rpartition(header)
        other, _, rejected = row["rejected"].rpartition(header)
        assert prompt == other
        assert pair.verbatim.prompt == prompt + header
        assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == (chosen.strip(), rejected.strip())
        assert pair.chosen[0]["content"]
        roles = [message["role"] for message in pair.prompt]
        assert all(one != two for one, two in itertools.pairwise(roles))


def test_generated_dialogues(tmp_path):
    rows = generated_dialogues(random.Random(0))
    loaded = load_rows(tmp_path, rows)
    check_dialogues(loaded, rows)
    assert (len(loaded), loaded.counts.no_common_prompt, loaded.counts.emptied) == (40, 5, 4)


@pytest.mark.skipif(not HH.is_file(), reason="real HH-RLHF pairs are not here; the generated ones are tested")
def test_real_dialogues():
    loaded = load(HH)
    with gzip.open(HH, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    check_dialogues(loaded, rows)
    assert (loaded.counts.read, len(loaded)) == (2312, 2303)


def test_prompt_key_depends_on_the_prompt_alone(tmp_path):
    rows = [{**ROWS[0]}, {**ROWS[0], "chosen": "Pear."}, {**ROWS[0], "prompt": "Name a fruit!"}]
    first, second, third = load_rows(tmp_path, rows)
    assert first.prompt_key == second.prompt_key != third.prompt_key
    assert first.content_key != second.content_key


# What is wrong, and what the line must say.
BROKEN_ROWS = [
    ([ROWS[0], {"prompt": "p", "chosen": "c"}], ["line 2: column 'rejected' is missing (columns: prompt, chosen)"]),
    ([{"prompt": "p", "chosen": "c", "reject": "r"}], ["line 1", "did you mean data.rejected_column=reject?"]),
    ([ROWS[0], {"prompt": "p", "chosen": None, "rejected": "r"}], ["line 2: column 'chosen' is null"]),
    ([ROWS[0], {"prompt": "p", "chosen": 3, "rejected": "r"}], ["line 2: 'chosen' is a number, not text"]),
    ([ROWS[0], {"prompt": "p", "chosen": [user("x")], "rejected": "r"}], ["line 2: 'chosen' is a list, not text"]),
    ([{"chosen": "a", "rejected": "b"}], ["column 'prompt' is missing", "dialogues or as message lists"]),
    ([{"prompt": "p", "chosen": [{"role": "tool", "content": "x"}], "rejected": []}], ["role 'tool'", "assistant"]),
    ([{"prompt": "p", "chosen": [{"from": "gpt", "value": "x"}], "rejected": []}], ["'role' and 'content'", "from"]),
    (
        [{"prompt": "p", "chosen": [{"role": "assistant", "content": ["x"]}], "rejected": []}],
        ["'chosen[0]' is a list, not text"],
    ),
    ([{"chosen": [user("q")], "rejected": [user("q")]}], ["line 1: 'chosen' ends with role 'user'"]),
    ([{"chosen": [assistant("a")], "rejected": [assistant("b")]}], ["no 'prompt' column"]),
    (
        [
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            {"chosen": "x", "rejected": "y"},
        ],
        ["line 2: a dialogue begins with"],
    ),
    ([{"prompt": "p", "chosen": "same", "rejected": "same"}], ["none of its 1 rows is usable", "1 identical"]),
    ([["prompt", "chosen"]], ["line 1: holds a JSON list"]),
    ([], ["holds no pairs"]),
]


@pytest.mark.parametrize(("rows", "parts"), BROKEN_ROWS)
def test_broken_rows_are_named(tmp_path, rows, parts):
    message = rows_error(tmp_path, rows)
    assert message.startswith(f"{tmp_path}/data.jsonl: ")
    for part in parts:
        assert part in message


def test_a_broken_line_is_named_by_its_number(tmp_path):
    path = write(tmp_path / "d.jsonl", ROWS)
    path.write_text(path.read_text() + '\n{"prompt": "p", "chosen"\n')
    assert f"{path}: line 5: broken JSON (" in error_of(path)
    path = tmp_path / "e.json"
    path.write_text('[{"prompt": "p"},\n{"prompt" "q"}]')
    assert f"{path}: line 2: broken JSON (" in error_of(path)


LONG, LONGER = "1" * 400, "1" * 5000  # beyond float64; beyond what Python reads as an integer
DEEP = "[" * 100_000 + "]" * 100_000
JUST = "[" * 900 + "]" * 900  # read, but too deep to be written out in full


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.csv"])
def test_a_byte_order_mark_is_passed_over_in_every_text_format(tmp_path, name):
    content = write(tmp_path / name, ROWS).read_bytes()
    if name.endswith(".gz"):
        content = gzip.compress(b"\xef\xbb\xbf" + gzip.decompress(content))
    else:
        content = b"\xef\xbb\xbf" + content
    (tmp_path / name).write_bytes(content)
    assert [p.prompt for p in load(tmp_path / name)] == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_a_line_ends_at_a_line_feed_only(tmp_path, name, character):
    """The first three may stand in a JSON string as they are; the others must be escaped, and are then text."""
    rows = [ROWS[0] | {"chosen": f"a{character}b"}, ROWS[1]]
    text = "".join(json.dumps(row, ensure_ascii=ord(character) < 0x20) + "\n" for row in rows)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [p.chosen for p in load(tmp_path / name)] == [f"a{character}b", "Seine."]


@pytest.mark.parametrize("value", [LONG, LONGER, "1e999", "NaN", JUST])
@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_columns_that_are_no_finite_numbers_are_left_aside(tmp_path, name, value):
    row = json.dumps(ROWS[0] | {"more": 0}).replace('"more": 0', f'"more": {value}')
    (tmp_path / name).write_text(row + "\n" if name == "d.jsonl" else f"[{row}]")
    (pair,) = load(tmp_path / name)
    assert pair.columns == {"score_chosen": 4.5, "score_rejected": 1}


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        (
            '{"prompt": "p", "chosen": "half \\ud800", "rejected": "r"}',
            "'chosen' holds half a character (\\ud800) at 5",
        ),
        ('{"prompt": "\\udc00", "chosen": "c", "rejected": "r"}', "'prompt' holds half a character (\\udc00) at 0"),
        (f'{{"prompt": "p", "chosen": {LONGER}, "rejected": "r"}}', "'chosen' is a number, not text"),
        (f'{{"prompt": "p", "chosen": {JUST}, "rejected": "r"}}', "'chosen' is a list, not text"),
        (f'{{"prompt": "p", "chosen": {DEEP}, "rejected": "r"}}', "nested too deeply"),
        ('{"prompt": "é"}'.encode("latin-1"), "not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_line(tmp_path, bad, part):
    bad = bad if isinstance(bad, bytes) else bad.encode()
    good = json.dumps(ROWS[0], ensure_ascii=False).encode()
    path = tmp_path / "d.jsonl"
    path.write_bytes(good + b"\n\n" + bad + b"\n" + good + b"\n")
    message = error_of(path)
    assert message.startswith(f"{path}: line 3: ")
    assert part in message
    assert len(message) < 300
    assert load(path, limit=1).pairs[0].prompt == ROWS[0]["prompt"]  # what is not asked for is not looked at
    whole = tmp_path / "d.json"
    whole.write_bytes(b"[" + good + b",\n\n" + bad + b",\n" + good + b"]\n")
    message = error_of(whole)
    # Values of a list are counted, the text's own faults are found by their line.
    assert message.startswith((f"{whole}: row 2: ", f"{whole}: line 3: "))
    assert part in message


def test_half_characters_in_messages(tmp_path):
    rows = [{"prompt": [user("q")], "chosen": [assistant("x\ud83d")], "rejected": [assistant("b")]}]
    assert "line 1: 'chosen[0]' holds half a character (\\ud83d) at 1" in rows_error(tmp_path, rows)
    mixed = [{"prompt": [user("q")], "chosen": "x\ud83d", "rejected": "b"}]
    assert "line 1: 'chosen' holds half a character" in rows_error(tmp_path, mixed)
    # Two halves make one character.
    assert load_rows(tmp_path, [{"prompt": "q", "chosen": "\ud83d\ude00", "rejected": "b"}]).pairs[0].chosen == "😀"


def test_a_csv_that_is_not_utf8_is_named_by_its_line(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes(b"prompt,chosen,rejected\na,b,c\n" + "d,é,f\n".encode("latin-1"))
    assert error_of(path).startswith(f"{path}: line 3: not UTF-8")


def test_a_quote_that_is_not_closed_takes_no_rows_with_it(tmp_path):
    """Python's csv would read three rows as two, the second with an answer of two lines."""
    path = tmp_path / "d.csv"
    path.write_text('prompt,chosen,rejected\np1,a,b\np2,c,"d\np3,e,f\n')
    assert error_of(path).startswith(f"{path}: line 3: broken CSV (unexpected end of data)")
    path.write_text('prompt,chosen,rejected\np1,a,b\np2,"c\\"",d\np3,e,f\n')
    assert error_of(path).startswith(f"{path}: line 3: broken CSV")
    path.write_text('prompt,chosen,rejected\r\n"p ""1""",a 5" pipe,"b,\r\nc"\r\n')
    assert load(path).pairs[0].rejected == "b,\r\nc"


@pytest.mark.parametrize("form", [json.dumps, str])
def test_message_lists_written_out_as_text_are_not_trained_on_as_text(tmp_path, form):
    """pandas writes them so into CSV files."""
    rows = [{"prompt": "q", "chosen": form([user("q"), assistant("a")]), "rejected": form([user("q"), assistant("b")])}]
    path = write(tmp_path / "d.csv", rows)
    assert "row 1: 'chosen' is a message list written out as text" in error_of(path)
    assert load(path, format="pairs").pairs[0].chosen == rows[0]["chosen"]


def test_a_csv_header_that_names_a_column_twice(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("chosen,rejected,prompt,prompt,,\nb,c,x,y,,\n")
    assert error_of(path) == f"{path}: its header names 'prompt' 2 times; rename all but one"


def test_the_column_that_is_meant_can_be_typed(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("prompt, chosen, rejected\na,b,c\n")
    hint = re.search(r"did you mean (.*)\?$", error_of(path)).group(1)
    line = [*shlex.split(hint), "data.rejected_column=' rejected'", "data=jsonl", "model=from_scratch"]
    cfg = compose("train", TrainConfig, [read_line(line, Sources())], Sources()).data
    assert load_pairs(replace(cfg, path=str(path))).pairs[0].chosen == "b"


ROWS_OF_ONE = {"prompt": ["p"], "chosen": ["c"], "rejected": ["r"]}


def test_missing_and_unreadable_files(tmp_path):
    write(tmp_path / "pairs.jsonl", ROWS)
    assert "no such file; did you mean 'pairs.jsonl'?" in error_of(tmp_path / "pair.jsonl")
    assert "the folder" in error_of(tmp_path / "nowhere" / "pairs.jsonl")
    assert "no data file matches" in error_of(tmp_path / "*.csv")
    (tmp_path / "empty").mkdir()
    assert "no data file in this folder" in error_of(tmp_path / "empty")
    (tmp_path / "d.txt").write_text("x")
    assert "unknown file type; alphapo reads .jsonl" in error_of(tmp_path / "d.txt")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "p"}' * 1000)[:40])
    assert "not a whole gzip file" in error_of(tmp_path / "d.jsonl.gz")
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    assert "not a whole gzip file" in error_of(tmp_path / "plain.jsonl.gz")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no")
    assert "not a readable Parquet file" in error_of(tmp_path / "d.parquet")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}\n'.encode("latin-1"))
    assert "not UTF-8" in error_of(tmp_path / "latin.jsonl")
    (tmp_path / "d.csv").write_text("prompt,chosen,rejected\na,b,c,d\n")
    assert "row 1: more fields than the header names" in error_of(tmp_path / "d.csv")
    invalid = pyarrow.array([b"a\xff"]).cast(pyarrow.large_binary()).view(pyarrow.large_string())
    pyarrow.parquet.write_table(pyarrow.table({**ROWS_OF_ONE, "chosen": invalid}), tmp_path / "bytes.parquet")
    assert "bytes.parquet: not a readable Parquet file ('utf-8' codec" in error_of(tmp_path / "bytes.parquet")
    assert error_of("") == "data.path (or data.eval_path) is empty: type data.path=FILE"
    assert "File name too long" in error_of(tmp_path / f"{'x' * 300}.jsonl")
    assert "~nobody-of-that-name/d.jsonl: cannot be looked at" in error_of("~nobody-of-that-name/d.jsonl")
    (tmp_path / "number.json").write_text("3")
    assert "holds a JSON number; a list of objects is expected" in error_of(tmp_path / "number.json")


def test_unset_sources_say_what_to_type():
    with pytest.raises(UsageError, match=r"type data\.path=FILE"):
        load_pairs(DataConfig(source="files"))
    with pytest.raises(UsageError, match=r"type data\.name=OWNER/DATASET"):
        load_pairs(DataConfig(source="hub"))
    with pytest.raises(UsageError, match=r"set data\.eval_path"):
        load_pairs(DataConfig(source="files", path="x.jsonl"), evaluation=True)


def test_hub_rows(monkeypatch):
    asked: dict[str, str] = {}

    def load_dataset(name, config, *, data_dir, split, revision):
        asked.update(name=name, config=config, split=split, revision=revision)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    cfg = DataConfig(source="hub", name="me/pairs", config="c", split="train", revision="r", eval_split="test", limit=2)
    loaded = load_pairs(cfg)
    assert asked == {"name": "me/pairs", "config": "c", "split": "train", "revision": "r"}
    assert [p.prompt for p in loaded] == [row["prompt"] for row in ROWS[:2]]
    assert loaded.pairs[0].columns == {"score_chosen": 4.5, "score_rejected": 1}
    assert has_evaluation(cfg)
    assert len(load_pairs(cfg, evaluation=True)) == 3  # the probe has its own size
    assert asked["split"] == "test"


def test_a_local_file_wins_over_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", None)
    path = write(tmp_path / "d.jsonl", ROWS)
    cfg = DataConfig(source="hub", name="me/pairs", eval_split="test", path=str(path))
    assert len(load_pairs(cfg)) == 3
    assert not has_evaluation(cfg)
    cfg.eval_path = str(write(tmp_path / "e.jsonl", ROWS[:1]))
    assert has_evaluation(cfg)
    assert len(load_pairs(cfg, evaluation=True)) == 1


def test_the_hub_without_network(monkeypatch, tmp_path):
    cfg = DataConfig(source="hub", name="alphapo-test/no-such-data")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"no-such-data': the hub is switched off .*data\.path=FILE") as error:
        load_pairs(cfg)
    assert "\n" not in str(error.value)

    def unreachable(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(UsageError, match=r"the hub cannot be reached \(Name or service not known\)"):
        load_pairs(cfg)
    assert constants.HF_HUB_OFFLINE is False
