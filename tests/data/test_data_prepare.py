"""What training reads: the hold-out, the cache, the counts."""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import random
import shutil
import threading

import numpy as np
import pytest

from alphapo_cli.config.schema import DataConfig, ProbeConfig
from alphapo_cli.data import token_cache
from alphapo_cli.data.prepare import prepare, tokenizer_hash
from alphapo_cli.data.text_pairs import LoadCounts, LoadedPairs, TextPair, digest
from alphapo_cli.data.tokenise import encode_prompt
from alphapo_cli.errors import UsageError
from tests.data import data_tokenizers as kinds


def pairs(count, per_prompt=1, start=0):
    return [
        TextPair(
            f"Question {start + n // per_prompt}?",
            f"The answer is {n}.",
            f"I do not know, {n}",
            columns={"score": float(n)} if n % 2 else {},
            row=n + 1,
        )
        for n in range(count)
    ]


def loaded(found, **counts):
    return LoadedPairs(list(found), LoadCounts(**({"read": len(found)} | counts)), "test.jsonl (pairs)", "pairs")


@pytest.fixture
def make(tmp_path):
    def run(train, probe_pairs=None, probe=None, tokenizer=None, cache_dir=tmp_path / "cache", **settings):
        return prepare(
            DataConfig(source="files", **settings),
            ProbeConfig(pairs=probe),
            tokenizer or kinds.bpe(),
            train_pairs=train if isinstance(train, LoadedPairs) else loaded(train),
            probe_pairs=None if probe_pairs is None else loaded(probe_pairs),
            cache_dir=cache_dir,
        )

    return run


def texts(token_pairs, side="prompt"):
    return [kinds.bpe().decode(getattr(pair, side), skip_special_tokens=True) for pair in token_pairs]


def prompt_hash(text):
    return hashlib.sha256(json.dumps(text).encode()).hexdigest()


def test_the_probe_is_the_smallest_prompt_hashes_in_any_order(make):
    data = pairs(60)
    prepared = make(data, probe=7)
    expected = sorted((pair.prompt for pair in data), key=prompt_hash)[:7]
    assert texts(prepared.probe) == expected
    assert texts(prepared.train) == [pair.prompt for pair in data if pair.prompt not in expected]
    random.Random(1).shuffle(data)
    assert texts(make(data, probe=7).probe) == expected
    grown = make(data + pairs(2, start=60), probe=7)
    assert len(set(texts(grown.probe)) & set(expected)) >= 5


def test_no_prompt_is_in_both(make):
    prepared = make(pairs(90, per_prompt=3), probe=10)
    assert len(prepared.probe) == 9  # three whole prompts; a fourth does not fit
    assert not set(prepared.probe.prompt_keys) & set(prepared.train.prompt_keys)
    assert len(prepared.train) + len(prepared.probe) == 90


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "wanted", "held"), [(2, None, 1), (19, None, 1), (50, None, 5), (3000, None, 256), (10, 9, 5), (2, 1, 1)]
)
def test_how_many_are_held_out(make, count, wanted, held):
    prepared = make(pairs(count), probe=wanted)
    assert (len(prepared.probe), len(prepared.train)) == (held, count - held)


def test_many_answers_to_each_prompt_still_give_a_probe(make):
    prepared = make(pairs(20, per_prompt=10), probe=4)
    assert (len(prepared.probe), len(prepared.train)) == (10, 10)


def test_nothing_left_to_train_on(make):
    for data in (pairs(1), pairs(5, per_prompt=5)):
        with pytest.raises(UsageError, match=r"no pair is left to train on.*set data\.eval_path"):
            make(data)


def test_evaluation_pairs_are_the_probe(make):
    data, evaluation = pairs(20), pairs(30, start=15)
    prepared = make(data, evaluation, probe=8)
    assert texts(prepared.probe) == sorted((pair.prompt for pair in evaluation), key=prompt_hash)[:8]
    assert texts(prepared.train) == [pair.prompt for pair in data]
    shared = set(texts(prepared.probe)) & set(texts(prepared.train))
    assert prepared.report["probe_prompts_in_training"] == len(shared)
    assert len(make(data, evaluation).probe) == 30


def test_token_pairs_by_index_and_selection(make):
    data = pairs(20)
    train = make(data, pairs(1, start=99)).train
    assert train.prompt.ids.dtype == train.chosen.ids.dtype == np.int32
    pair = train[3]
    assert kinds.bpe().decode(pair.chosen) == "The answer is 3.<|end|>"
    assert kinds.bpe().decode(pair.rejected) == "I do not know, 3<|end|>"
    assert pair.columns == {"score": 3.0}
    assert np.isnan(train[2].columns["score"])
    assert train[-1].index == 19
    some = train.select([5, 3])
    assert [p.index for p in some] == [5, 3]
    assert texts(some, "chosen") == ["The answer is 5.", "The answer is 3."]
    assert some.prompt_keys == (train.prompt_keys[5], train.prompt_keys[3])
    with pytest.raises(IndexError):
        train[20]


def test_samples_are_what_generation_is_fed(make):
    prepared = make(pairs(40))
    assert len(prepared.prompt_samples) == 8
    for n, sample in enumerate(prepared.prompt_samples):
        assert list(sample.ids) == prepared.train[n].prompt.tolist()
        assert list(sample.ids) == encode_prompt(sample.prompt, kinds.bpe(), DataConfig())


def test_report_and_table_count_what_happened(make):
    data = [*pairs(30), TextPair("long " * 50, "a", "b"), TextPair("q", "<|end|>", "x")]
    prepared = make(
        loaded(data, read=40, no_common_prompt=5, emptied=2, identical=1, duplicates=3), max_length=40, probe=2
    )
    report = prepared.report
    assert (report["pairs_read"], report["pairs_usable"], report["emptied"]) == (40, 31, 3)
    assert (report["truncated_pairs"], report["truncated_prompts"], report["truncated_completions"]) == (1, 1, 0)
    assert (report["train_pairs"], report["probe_pairs"]) == (29, 2)
    assert report["mean_chosen_tokens"] == np.mean([len(p.chosen) for p in prepared.train])
    difference = np.mean([len(p.chosen) - len(p.rejected) for p in prepared.train])
    assert report["mean_chosen_minus_rejected_tokens"] == pytest.approx(difference)
    table = dict(prepared.table)
    assert table["pairs read"] == "40"
    assert table["skipped: no common prompt"] == "5"
    assert table["skipped: empty answer"] == "3"
    assert table["duplicates"] == "3"
    assert table["truncated"] == "1 (1 prompts, 0 completions)"
    assert table["template"] == "chat"
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def same(one, two):
    return one.key == two.key and all(
        np.array_equal(getattr(getattr(one, part), side).ids, getattr(getattr(two, part), side).ids)
        for part in ("train", "probe")
        for side in ("prompt", "chosen", "rejected")
    )


def test_the_cache_saves_the_work_and_changes_nothing(make, monkeypatch, tmp_path):
    first = make(pairs(30))
    calls = []
    monkeypatch.setattr(token_cache, "encode_pairs", lambda *_: calls.append(1))
    again = make(pairs(30))
    assert not calls
    assert same(first, again)
    assert again.report == first.report
    assert same(first, make(pairs(30), tokenizer=copy.deepcopy(kinds.bpe())))


def test_the_key_holds_what_changes_the_ids(make):
    keys = [make(pairs(30)).key]
    keys.append(make(pairs(31)).key)
    keys.append(make(pairs(30), max_length=12).key)
    keys.append(make(pairs(30), system="Be brief.").key)
    keys.append(make(pairs(30), template="plain").key)
    keys.append(make(pairs(30), tokenizer=kinds.chatml()).key)
    keys.append(make(pairs(30), probe=4).key)
    keys.append(make([*pairs(29), pairs(30)[29].__class__("Question 29?", "x", "y")]).key)
    assert len(set(keys)) == len(keys)
    # What only says where the data came from does not.
    assert make(pairs(30), path="elsewhere.jsonl", workers=3).key == keys[0]


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(make, monkeypatch):
    """At midnight nothing changes: neither the ids, nor what generation is fed, nor the names of cached work."""
    from transformers.utils import chat_template_utils

    tokenizer, found = kinds.with_template(kinds.DATED), []
    for day in (1, 2):

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return cls(2031, 5, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        live = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert f"0{day} May 2031" in live  # the clock is the one that templates see
        prepared = make(pairs(30), tokenizer=tokenizer)
        found.append((prepared.key, prepared.train.prompt.ids.tolist(), encode_prompt("Hi", tokenizer, DataConfig())))
    assert found[0] == found[1]
    text = tokenizer.decode(found[0][2])
    assert "Today Date: 26 Jul 2024" in text
    assert prepared.report["template_date"] == "2024-07-26"
    assert "template_date" not in make(pairs(30)).report
    assert "template_date" not in make(pairs(30), tokenizer=tokenizer, template="plain").report


def test_tokenizer_hash_sees_template_and_tokens_but_not_calls():
    tokenizer = copy.deepcopy(kinds.bpe())
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert tokenizer_hash(tokenizer) == before
    tokenizer.chat_template += " "
    changed = tokenizer_hash(tokenizer)
    assert changed != before
    tokenizer.add_special_tokens({"eos_token": "<|pad|>"})
    assert tokenizer_hash(tokenizer) not in (before, changed)


def test_a_large_vocabulary_is_not_made_canonical_again_and_again(monkeypatch):
    """A run asks for the hash four times, each of which took 0.4 s of a vocabulary of 49,152."""
    tokenizer = copy.deepcopy(kinds.bpe())
    tokenizer.chat_template += "{# of this test alone #}"
    sizes = []
    monkeypatch.setattr(token_cache, "digest", lambda value: sizes.append(len(json.dumps(value))) or digest(value))
    assert len({tokenizer_hash(tokenizer) for _ in range(4)}) == 1
    assert sum(size > len(tokenizer.chat_template) + 1000 for size in sizes) == 1


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_entry_is_made_again(make, tmp_path, damage):
    first = make(pairs(30))
    (file,) = (tmp_path / "cache" / "tokens").glob("*/tokens.npz")
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:200])
    else:
        file.unlink()
    assert same(first, make(pairs(30)))
    assert file.stat().st_size > 200
    assert [path.name for path in (tmp_path / "cache" / "tokens").iterdir()] == [file.parent.name]


@pytest.mark.slow
def test_two_writers_of_one_key(make, tmp_path):
    results = []
    threads = [threading.Thread(target=lambda: results.append(make(pairs(200)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(same(results[0], other) for other in results)
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_named(make, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="the cache cannot be written"):
        make(pairs(30), cache_dir=tmp_path / "file")


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["generated", "real"])
def test_dialogues_end_to_end(make, tmp_path, real):
    from tests.data.test_data_load import HH, generated_dialogues, load, write

    if real and not HH.is_file():
        pytest.skip(f"no {HH}")
    path = HH if real else write(tmp_path / "d.jsonl", generated_dialogues(random.Random(1)))
    found = load(path)
    expected = 2303 if path == HH else 40
    prepared = make(found)
    assert len(prepared.train) + len(prepared.probe) == expected
    assert len(prepared.probe) == min(256, expected // 10)
    assert prepared.report["boundary_splits"] == prepared.report["template_refused"] == 0
    tokenizer = kinds.bpe()
    for pair in prepared.probe:
        assert pair.prompt[0] == tokenizer.bos_token_id
        for side in (pair.chosen, pair.rejected):
            assert (side[-1], (side == tokenizer.eos_token_id).sum()) == (tokenizer.eos_token_id, 1)
    plain = make(found, tokenizer=kinds.plain())
    source = found.pairs[int(plain.train[0].index)].verbatim
    whole = np.concatenate([plain.train[0].prompt, plain.train[0].chosen])
    assert kinds.plain().decode(whole) == f"<s>{source.prompt}{source.chosen}</s>"
    shutil.rmtree(tmp_path / "cache")
