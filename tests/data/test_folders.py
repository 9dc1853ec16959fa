"""Folders of data: which files are read, by which split, and what is said of the others."""

from __future__ import annotations

import json

import datasets
import pyarrow
import pytest
from datasets.data_files import get_data_patterns, resolve_pattern
from hypothesis import given, settings
from hypothesis import strategies as st

from alphapo_cli.config.schema import DataConfig, ProbeConfig
from alphapo_cli.data.file_hashes import fingerprints
from alphapo_cli.data.folders import find
from alphapo_cli.data.load import has_evaluation, load_pairs
from alphapo_cli.data.prepare import prepare
from alphapo_cli.data.splits import by_name
from alphapo_cli.errors import UsageError
from tests.data import data_tokenizers as kinds
from tests.data.test_data_load import write


def rows(name, count=4):
    return [{"prompt": f"{name} {n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(count)]


def folder(tmp_path, *names, count=4):
    """Data files of those relative names; the prompts name the file."""
    for name in names:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in (".jsonl", ".parquet"):
            write(file, rows(name, count))
        else:
            file.write_text("not data")
    return tmp_path


def cfg_of(path, **more):
    return DataConfig(source="files", path=str(path), **more)


def files_of(path, *, evaluation=False, **more):
    """The files whose rows were read."""
    found = load_pairs(cfg_of(path, **more), evaluation=evaluation)
    return list(dict.fromkeys(pair.prompt.split(" ")[0] for pair in found))


def error_of(path, **more):
    with pytest.raises(UsageError) as caught:
        load_pairs(cfg_of(path, **more))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(path, tmp_path, **more):
    cfg = cfg_of(path, **more)
    made = prepare(
        cfg, ProbeConfig(pairs=1), kinds.bpe(), train_pairs=load_pairs(cfg),
        probe_pairs=load_pairs(cfg, evaluation=True) if has_evaluation(cfg) else None, cache_dir=tmp_path / "cache",
    )  # fmt: skip
    return made, [(label, value) for label, value in made.table]


# ----------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train.jsonl", "test.jsonl"),
        ("train/a.jsonl", "test/a.jsonl"),
        ("my_training_set.jsonl", "my.dev.jsonl"),
        ("a/train/x.jsonl", "a/validation/x.jsonl"),
        ("train.jsonl", "evaluation-1.jsonl"),
    ],
)
def test_a_folder_of_several_splits_trains_on_one_and_says_so(tmp_path, names):
    path = folder(tmp_path / "set", *names)
    assert files_of(path) == [names[0]]
    made, lines = table(path, tmp_path)
    (left,) = made.report["sources"][0]["splits_left"]
    assert left == ("validation" if "dev" in names[1] or "validation" in names[1] else "test")
    assert ("splits", f"train; not read: {left} (1 file); data.eval_split={left} makes one the probe") in lines
    assert ("files", f"1: {names[0].rpartition('/')[2]}") in lines
    assert ("data", f"{path}:train (pairs)") in lines
    assert not has_evaluation(cfg_of(path))


def test_the_other_split_is_the_probe_where_it_is_asked_for(tmp_path):
    path = folder(tmp_path / "set", "train.jsonl", "test.jsonl")
    cfg = cfg_of(path, eval_split="test")
    assert has_evaluation(cfg)
    assert files_of(path, eval_split="test", evaluation=True) == ["test.jsonl"]
    made, lines = table(path, tmp_path, eval_split="test")
    assert (len(made.train), len(made.probe)) == (4, 1)
    assert ("probe from", f"{path}:test (pairs)") in lines
    assert "splits" not in dict(lines)
    assert made.report["probe_source"] == f"{path}:test (pairs)"


def test_splits_are_asked_for_by_name(tmp_path):
    path = folder(tmp_path, "train.jsonl", "test.jsonl", "dev.jsonl")
    assert files_of(path, split="test") == ["test.jsonl"]
    assert files_of(path, split="train+test") == ["train.jsonl", "test.jsonl"]
    assert files_of(path, split="all") == ["train.jsonl", "dev.jsonl", "test.jsonl"]
    assert error_of(path, split="tset") == (
        f"{path}: has no split 'tset'; did you mean 'test'? (splits: train, validation, test); type data.split=NAME"
    )
    assert "slices are for data sets of the hub" in error_of(path, split="train[:10]")
    with pytest.raises(UsageError, match=r"has no split 'tests'.*type data\.eval_split=NAME"):
        load_pairs(cfg_of(path, eval_split="tests"), evaluation=True)
    with pytest.raises(
        UsageError, match=r"holds several splits \(train, validation, test\); type data\.eval_split=NAME"
    ):
        load_pairs(DataConfig(source="files", path="x", eval_path=str(path)), evaluation=True)


def test_a_folder_of_one_split_is_read_whatever_its_name(tmp_path):
    assert files_of(folder(tmp_path, "test-1.jsonl", "test-2.jsonl")) == ["test-1.jsonl", "test-2.jsonl"]


def test_a_folder_of_one_split_is_not_probed_on_itself(tmp_path):
    """data=hh_rlhf names an evaluation split that a copy need not have."""
    for name in ("train", "test"):
        path = folder(tmp_path / name, f"{name}-1.jsonl")
        assert not has_evaluation(cfg_of(path, eval_split="test"))
        assert files_of(path, eval_split="test") == [f"{name}-1.jsonl"]


def test_what_stands_beside_a_test_set_trains(tmp_path):
    """The hub would read the test set alone."""
    assert files_of(folder(tmp_path, "a.jsonl", "b.jsonl", "test.jsonl")) == ["a.jsonl", "b.jsonl"]


def test_what_stands_beside_a_training_set_is_named(tmp_path):
    path = folder(tmp_path / "set", "train.jsonl", "extra.jsonl", "more.jsonl.zst", "README.md", "LICENSE")
    assert files_of(path) == ["train.jsonl"]
    assert ("files not read", "2: extra.jsonl, more.jsonl.zst") in table(path, tmp_path)[1]


def test_files_without_splits_are_read_as_ever(tmp_path):
    path = folder(tmp_path / "set", "a.jsonl", "b.jsonl", "deeper/c.jsonl", "config.json", ".hidden.jsonl")
    assert files_of(path, split="test") == ["a.jsonl", "b.jsonl"]
    assert not has_evaluation(cfg_of(path, eval_split="test"))
    lines = table(path, tmp_path)[1]
    assert ("files", "2: a.jsonl, b.jsonl") in lines
    assert ("files not read", "1: deeper/c.jsonl") in lines
    assert files_of(folder(tmp_path / "other", "deeper/c.jsonl")) == ["deeper/c.jsonl"]


def test_a_pattern_means_all_that_it_matches(tmp_path):
    folder(tmp_path, "train.jsonl", "test.jsonl")
    assert files_of(f"{tmp_path}/*.jsonl") == ["test.jsonl", "train.jsonl"]


def test_shards_keep_the_names_of_their_splits(tmp_path):
    """As the hub's copy of UltraFeedback, whole or its folder data/ alone: train_prefs is not train_sft."""
    names = [
        f"data/{split}-0000{n}-of-00002.parquet"
        for split in ("train_prefs", "train_sft", "test_prefs")
        for n in range(2)
    ]
    path = folder(tmp_path, *names)
    for place, prefix in ((path, "data/"), (path / "data", "data/")):
        assert files_of(place, split="train_prefs") == [
            f"{prefix}train_prefs-0000{n}-of-00002.parquet" for n in range(2)
        ]
        assert "has no split 'train'" in error_of(place)
        assert "(splits: test_prefs, train_prefs, train_sft)" in error_of(place)
    assert has_evaluation(cfg_of(path, split="train_prefs", eval_split="test_prefs"))


def test_parts_of_one_file_are_no_splits(tmp_path):
    names = ("part-00000-of-00002.parquet", "part-00001-of-00002.parquet", "other-00000-of-00001.parquet")
    assert sorted(files_of(folder(tmp_path, *names))) == sorted(names)


@pytest.mark.parametrize("prefix", ["data/", "", "a/train/"])
def test_a_part_of_the_shards_is_no_data_set(tmp_path, prefix):
    """An interrupted download would train on other data without a word; what is named by file is what is meant."""
    there, lost = (f"{prefix}train-0000{n}-of-00002-abc.parquet" for n in (0, 1))
    path = folder(tmp_path, there, f"{prefix}test-00000-of-00001.parquet")
    message = error_of(path, split="all")
    assert message.startswith(f"{path}: holds a part of a data set: train-00001-of-00002 is not there; copy it whole")
    assert files_of(path / there) == files_of(f"{path}/{prefix}train*") == [there]
    folder(tmp_path, lost)
    assert files_of(path, split="train" if prefix else "all")[-2:] == [there, lost] or prefix == ""


def test_a_part_that_the_readme_chooses_is_meant(tmp_path):
    path = folder(tmp_path, *(f"train-0000{n}-of-00002.parquet" for n in range(2)))
    entry = "configs:\n- data_files:\n  - split: train\n    path: train-00000-*"
    (path / "README.md").write_text(f"---\n{entry}\n---\n")
    assert files_of(path) == ["train-00000-of-00002.parquet"]
    (path / "train-00001-of-00002.parquet").unlink()
    assert "train-00001-of-00002 is not there" in error_of(path)


def test_files_of_no_known_type_are_named(tmp_path):
    assert "(b.ndjson is of another type)" in error_of(folder(tmp_path, "b.ndjson", "c.jsonl.zst"))
    assert find(str(folder(tmp_path, "train.jsonl"))).unread == ("b.ndjson", "c.jsonl.zst")


WORDS = (
    "train",
    "training",
    "test",
    "testing",
    "eval",
    "evaluation",
    "valid",
    "validation",
    "dev",
    "val",
    "data",
    "x",
    "retrain",
    "trains",
)
PART = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).flatmap(
    lambda words: st.sampled_from(["-", "_", ".", " ", "0"]).map(lambda between: between.join(words))
)
PATHS = st.lists(st.lists(PART, min_size=1, max_size=3).map("/".join), min_size=1, max_size=4, unique=True)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(paths=PATHS)
def test_splits_by_name_are_the_hubs(tmp_path_factory, paths):
    """Against the patterns of `datasets`, for files whose names hold such words in any place."""
    place = tmp_path_factory.mktemp("names")
    names = [f"{path}.jsonl" for path in paths if not path.startswith(".")]
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    theirs = {
        str(split): sorted(
            {file.removeprefix(f"{place}/") for pattern in patterns for file in resolved(pattern, place)}
        )
        for split, patterns in get_data_patterns(str(place)).items()
    }
    found = {split: sorted(files) for split, files in by_name(sorted(names)).items()}
    assert (found or {"train": sorted(names)}) == theirs


def resolved(pattern, place):
    try:
        return resolve_pattern(pattern, str(place))
    except FileNotFoundError:
        return []


# --------------------------------------------------------------------------------------- folders of other makers


def test_what_save_to_disk_wrote(tmp_path):
    whole = datasets.Dataset.from_list(rows("one", 6))
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    assert [pair.prompt for pair in load_pairs(cfg_of(tmp_path / "one"))] == whole["prompt"]
    both = datasets.DatasetDict({"train": whole, "test": datasets.Dataset.from_list(rows("two", 3))})
    both.save_to_disk(tmp_path / "two")
    assert files_of(tmp_path / "two") == ["one"]
    assert files_of(tmp_path / "two", split="test") == ["two"]
    assert files_of(tmp_path / "two", eval_split="test", evaluation=True) == ["two"]
    assert files_of(tmp_path / "two" / "test") == ["two"]
    lines = table(tmp_path / "two", tmp_path)[1]
    assert ("splits", "train; not read: test (1 file); data.eval_split=test makes one the probe") in lines
    shuffled = whole.shuffle(seed=1).select(range(4))
    shuffled.save_to_disk(tmp_path / "some")
    assert [pair.prompt for pair in load_pairs(cfg_of(tmp_path / "some"))] == shuffled["prompt"]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    other = [messages[0], {"role": "assistant", "content": "b"}]
    datasets.Dataset.from_list([{"chosen": messages, "rejected": other}]).save_to_disk(tmp_path / "messages")
    (pair,) = load_pairs(cfg_of(tmp_path / "messages"))
    assert (pair.prompt, pair.chosen) == ((messages[0],), (messages[1],))


def test_damaged_copies_of_what_save_to_disk_wrote(tmp_path):
    datasets.Dataset.from_list(rows("one", 6)).save_to_disk(tmp_path / "one")
    state = tmp_path / "one" / "state.json"
    written = json.loads(state.read_text())
    (tmp_path / "one" / "data-00000-of-00001.arrow").rename(tmp_path / "gone.arrow")
    assert "data-00000-of-00001.arrow" in error_of(tmp_path / "one")
    state.write_text(json.dumps({**written, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    assert "save dataset.flatten_indices() instead" in error_of(tmp_path / "one")
    state.write_text(json.dumps({**written, "_data_files": []}))
    assert "state.json names no data files" in error_of(tmp_path / "one")
    state.write_text("{")
    assert f"{state}: cannot be read" in error_of(tmp_path / "one")


def test_arrow_files_of_either_kind(tmp_path):
    made = pyarrow.Table.from_pylist(rows("x"))
    for name, kind in (("stream.arrow", pyarrow.ipc.new_stream), ("file.arrow", pyarrow.ipc.new_file)):
        with pyarrow.OSFile(str(tmp_path / name), "wb") as sink, kind(sink, made.schema) as writer:
            writer.write_table(made)
        assert len(load_pairs(cfg_of(tmp_path / name))) == 4
    (tmp_path / "broken.arrow").write_bytes(b"ARROW?")
    assert f"{tmp_path}/broken.arrow: not a readable Arrow file" in error_of(tmp_path / "broken.arrow")


def test_a_copy_of_a_hub_data_set_reads_what_its_readme_names(tmp_path):
    path = folder(tmp_path / "set", "easy/one.jsonl", "hard/one.jsonl", "hard/held.jsonl", "dataset_infos.json")
    head = """configs:
- config_name: easy
  data_files: easy/*.jsonl
- config_name: hard
  default: true
  data_files:
  - split: train
    path: hard/one.jsonl
  - split: held
    path: [hard/held.jsonl]
"""
    (path / "README.md").write_text(f"---\nlicense: mit\n{head}---\n# Some set\n", encoding="utf-8")
    assert files_of(path) == ["hard/one.jsonl"]
    assert files_of(path, eval_split="held", evaluation=True) == ["hard/held.jsonl"]
    assert files_of(path, config="easy") == ["easy/one.jsonl"]
    assert "data.config=esy" in error_of(path, config="esy")
    assert "did you mean 'easy'? (configurations: easy, hard)" in error_of(path, config="esy")
    (path / "README.md").write_text(f"---\n{head.replace('  default: true', '')}---\n", encoding="utf-8")
    assert "holds several data sets (configurations: easy, hard); type data.config=NAME" in error_of(path)
    (path / "hard/one.jsonl").unlink()
    assert "hard/one.jsonl, which is not there; copy it again" in error_of(path, config="hard")
    (path / "README.md").write_text("---\nlicense: [\n---\n", encoding="utf-8")
    assert files_of(path) == ["easy/one.jsonl", "hard/held.jsonl"]


def test_a_folder_of_a_data_set_may_be_named(tmp_path):
    """As data.data_dir does on the hub: HH-RLHF's harmless-base."""
    path = folder(tmp_path, "harmless/train.jsonl", "harmless/test.jsonl", "helpful/train.jsonl")
    assert files_of(path) == ["harmless/train.jsonl", "helpful/train.jsonl"]
    assert files_of(path, data_dir="harmless") == ["harmless/train.jsonl"]
    assert files_of(path, data_dir="harmless", eval_split="test", evaluation=True) == ["harmless/test.jsonl"]


def test_other_folders_are_refused_by_what_they_are(tmp_path):
    model = folder(tmp_path / "model", "model.safetensors")
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "tokenizer.json").write_text("{}")
    assert error_of(model) == f"{model}: is the folder of a model, not of data; did you mean model.path={model}?"
    run = folder(tmp_path / "run", "metrics.jsonl")
    for name in ("manifest.json", "config.yaml"):
        (run / name).write_text("{}")
    assert "is the directory of a run, not of data" in error_of(run)
    cache = folder(tmp_path / "datasets--me--set", "snapshots/abc/train.jsonl", "refs/main")
    (cache / "refs/main").write_text("abc")
    assert error_of(cache) == f"{cache}: is the hub's cache of a repository; type data.path={cache}/snapshots/abc"
    assert "no data file in this folder" in error_of(folder(tmp_path / "none", "notes.txt"))


def test_a_change_of_what_is_read_is_seen_and_of_what_is_left_is_not(tmp_path):
    path = folder(tmp_path, "train.jsonl", "test.jsonl")
    alone, probed = cfg_of(path), cfg_of(path, eval_split="test")
    before = fingerprints(alone), fingerprints(probed)
    assert [list(hashes) for hashes in before] == [["data.path"], ["data.path", "data.eval_split"]]
    write(path / "test.jsonl", rows("changed"))
    assert fingerprints(alone) == before[0]
    assert fingerprints(probed)["data.eval_split"] != before[1]["data.eval_split"]
    write(path / "train.jsonl", rows("changed"))
    assert fingerprints(alone) != before[0]


def test_find_says_what_there_is(tmp_path):
    found = find(str(folder(tmp_path, "train-1.jsonl", "train-2.jsonl", "test.jsonl", "x.jsonl")))
    assert ([file.name for file in found.files], found.splits) == (["train-1.jsonl", "train-2.jsonl"], ("train",))
    assert (dict(found.left), found.unread) == ({"test": 1}, ("x.jsonl",))
