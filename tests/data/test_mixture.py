"""Several sources in one run: read each in its own form, mixed by weight, counted and probed by source."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphapo_cli.config.schema import DataConfig, ProbeConfig
from alphapo_cli.data.load import load_pairs
from alphapo_cli.data.mixture import weighted
from alphapo_cli.data.prepare import prepare
from alphapo_cli.data.probe_split import hold_out
from alphapo_cli.errors import UsageError
from alphapo_cli.probe.displacement import ProbeValues, by_group, metrics
from alphapo_cli.tracking.metrics import BY_GROUP, explain
from tests.conftest import write_rows
from tests.data import data_tokenizers as kinds


def rows(name, count):
    return [
        {"prompt": f"{name} {n}?", "chosen": f"yes {name} {n}", "rejected": f"no {n}", "n": n} for n in range(count)
    ]


@pytest.fixture
def make(tmp_path):
    """Prepared data of files by name, each with so many rows."""

    def run(sizes, probe=None, **settings):
        paths = [str(write_rows(tmp_path / f"{name}.jsonl", rows(name, count))) for name, count in sizes.items()]
        cfg = DataConfig(source="files", path=paths, **settings)
        loaded = load_pairs(cfg)
        return prepare(
            cfg,
            ProbeConfig(pairs=probe),
            kinds.bpe(),
            train_pairs=loaded,
            probe_pairs=None,
            cache_dir=tmp_path / "cache",
        )

    return run


def of_source(pairs):
    return np.bincount(pairs.source, minlength=len(pairs.source_names)).tolist()


def test_without_weights_all_pairs_of_all_sources_train(make):
    made = make({"a": 30, "b": 20}, probe=5)
    assert made.train.source_names == ("a", "b")
    assert [x + y for x, y in zip(of_source(made.train), of_source(made.probe), strict=True)] == [30, 20]
    assert of_source(made.probe) == [3, 2]
    prompts = [kinds.bpe().decode(pair.prompt, skip_special_tokens=True) for pair in made.train]
    assert [prompt[0] for prompt in prompts] == ["ab"[n] for n in made.train.source]


def test_weights_give_the_largest_mixture_that_repeats_nothing(make):
    made = make({"a": 44, "b": 22}, probe=6, weights=[3, 1])
    left = {"a": 44 - of_source(made.probe)[0], "b": 22 - of_source(made.probe)[1]}
    assert of_source(made.train) == [left["a"], round(left["a"] / 3)]
    report = made.report
    assert report["left_out_by_weights"] == left["b"] - round(left["a"] / 3)
    assert report["pairs_usable"] == len(made.train) + len(made.probe) + report["left_out_by_weights"]
    table = dict(made.table)
    assert table["skipped: beyond data.weights"] == str(report["left_out_by_weights"])
    shares = [f"{count / len(made.train):.1%}" for count in of_source(made.train)]
    assert (
        table["from a"]
        == f"{left['a']} training pairs ({shares[0]}), {of_source(made.probe)[0]} probe pairs, of 44 read"
    )
    assert [source["train_pairs"] for source in report["sources"]] == of_source(made.train)
    assert [source["pairs_usable"] for source in report["sources"]] == [44, 22]


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    seed=st.integers(0, 9),
)
def test_the_shares_are_the_weights_within_half_a_pair(counts, weights, seed):
    weights = weights[: len(counts)]
    source = np.repeat(np.arange(len(counts)), counts)
    keys = [f"{(n * 7919 + seed) % 1009:04d}" for n in range(len(source))]
    kept = weighted(list(range(len(source))), source, keys, weights)
    assert len(set(kept)) == len(kept)
    total = min(count / weight for count, weight in zip(counts, weights, strict=True))
    found = np.bincount(source[kept], minlength=len(counts))
    for count, weight, number in zip(counts, weights, found, strict=True):
        assert number == min(count, max(1, int(np.floor(total * weight + 0.5))))
    assert any(number == count for number, count in zip(found, counts, strict=True))
    shuffled = list(reversed(range(len(source))))
    assert set(weighted(shuffled, source, keys, weights)) == set(kept)


def test_the_same_weights_in_other_units_are_the_same_data(make):
    one, other = make({"a": 40, "b": 40}, weights=[0.7, 0.3]), make({"a": 40, "b": 40}, weights=[7, 3])
    assert one.train.index.tolist() == other.train.index.tolist()
    assert make({"a": 40, "b": 40}).key != one.key


def test_every_source_is_probed_and_no_prompt_is_on_both_sides(make):
    made = make({"a": 300, "b": 3}, probe=None)
    assert of_source(made.probe) == [29, 1]
    assert not set(made.probe.prompt_keys) & set(made.train.prompt_keys)
    # Cells of a sweep over weights are measured on the same pairs.
    one, other = (make({"a": 90, "b": 30}, probe=20, weights=weights).probe for weights in ([3, 1], [1, 3]))
    assert (of_source(one), one.prompt_keys) == ([15, 5], other.prompt_keys)


def test_a_prompt_of_two_sources_goes_to_one_side():
    prompts = ["p", "q", "r", "s"] * 2
    sources = [0] * 4 + [1] * 4
    train, probe = hold_out(prompts, [str(n) for n in range(8)], 4, sources)
    assert not {prompts[n] for n in train} & {prompts[n] for n in probe}


def test_sources_have_forms_of_their_own(tmp_path):
    text = write_rows(tmp_path / "text.jsonl", rows("a", 2))
    messages = write_rows(
        tmp_path / "messages.jsonl",
        [
            {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "yes"}],
             "rejected": [{"role": "assistant", "content": "no"}]}
        ],
    )  # fmt: skip
    found = load_pairs(DataConfig(source="files", path=[str(text), str(messages)]))
    assert (found.form, [pair.source for pair in found]) == ("pairs + messages", [0, 0, 1])
    assert found.description == f"{text} + {messages} (pairs + messages)"
    assert [pair.where for pair in found][2] == f"{messages}: line 1"
    assert [(source.name, source.read, source.usable) for source in found.sources] == [
        ("text", 2, 2),
        ("messages", 1, 1),
    ]


def test_lists_of_answers_are_cut_to_one_length_over_all_sources(tmp_path):
    three = write_rows(tmp_path / "three.jsonl", [{"prompt": "q", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}])
    two = write_rows(tmp_path / "two.jsonl", [{"prompt": "r", "responses": ["a", "b"], "scores": [2, 1]}])
    pairs = write_rows(tmp_path / "pairs.jsonl", rows("a", 1))

    def load(*files, **more):
        return load_pairs(DataConfig(source="files", path=[str(file) for file in files], **more))

    assert {len(pair.sides) for pair in load(three, two)} == {2}
    assert {len(pair.sides) for pair in load(two, pairs)} == {2}
    with pytest.raises(UsageError, match=r"mixes lists of 3 answers with rows of 2; give data\.answers=2"):
        load(three, pairs)


def test_duplicates_are_found_over_sources(tmp_path):
    one = write_rows(tmp_path / "one.jsonl", rows("a", 3))
    two = write_rows(tmp_path / "two.jsonl", [*rows("a", 2), *rows("b", 1)])
    found = load_pairs(DataConfig(source="files", path=[str(one), str(two)], duplicates="drop"))
    assert (len(found), found.counts.read, found.counts.duplicates_dropped) == (4, 6, 2)


def test_names_of_sources_are_their_own(tmp_path):
    one = write_rows(tmp_path / "x" / "set.jsonl", rows("a", 3))
    two = write_rows(tmp_path / "y" / "set.jsonl", rows("b", 2))
    names = [source.name for source in load_pairs(DataConfig(source="files", path=[str(one), str(two)])).sources]
    assert len(set(names)) == 2
    assert all("/" not in name and name.endswith("set.jsonl") for name in names)


def test_limit_takes_the_first_rows_of_each_source(make):
    made = make({"a": 30, "b": 20}, limit=4, probe=2)
    assert [source["pairs_read"] for source in made.report["sources"]] == [4, 4]


def values(rng, count):
    sides = {name: rng.normal(size=(2, count)) for name in ("sums", "scores", "rewards", "slopes", "gradients")}
    zeros = np.zeros((2, count))
    return ProbeValues(
        lengths=np.full((2, count), 3.0), entropy=rng.normal(size=count), kl=rng.normal(size=count), rounding=zeros,
        reward_rounding=zeros, **sides,
    )  # fmt: skip


def test_the_probes_metrics_by_source_are_those_of_its_pairs_alone(make):
    probe = make({"a": 30, "b": 20}, probe=5).probe
    rng = np.random.default_rng(0)
    now, start = values(rng, 5), values(rng, 5)
    found = by_group(now, start, probe, BY_GROUP)
    assert list(found) == [f"source/{name}/{key}" for name in ("a", "b") for key in BY_GROUP["source"]]
    for number, name in enumerate(("a", "b")):
        own = probe.source == number
        change = (now.sums - start.sums)[0, own] / 3
        assert found[f"source/{name}/displacement/chosen"] == pytest.approx(change.mean())
        accuracy = np.mean(now.rewards[0, own] > now.rewards[1, own])
        assert found[f"source/{name}/rewards/accuracies"] == pytest.approx(accuracy)
        assert explain(f"source/{name}/rewards/accuracies").startswith(f"Share (0 to 1) of probe pairs from '{name}'")
    assert by_group(now, start, make({"a": 30}, probe=5).probe, BY_GROUP) == {}
    nobody = by_group(now, start, replace(probe, source=np.zeros(5, np.int64)), BY_GROUP)
    assert nobody["source/b/displacement/chosen"] is None
    assert metrics(now, start)["rewards/accuracies"] is not None


def test_a_metric_of_a_source_that_is_none_is_refused():
    with pytest.raises(UsageError, match="no metric is called 'source/a/train/loss'"):
        explain("source/a/train/loss")


@pytest.mark.slow
def test_a_mixture_trains_and_its_numbers_are_in_the_summary(alphapo, tmp_path, scratch_line):
    for name, count in (("easy", 24), ("hard", 12)):
        write_rows(tmp_path / f"{name}.jsonl", [{**row, "origin": name, "mark": 0.5} for row in rows(name, count)])
    line = [*(text for text in scratch_line if not text.startswith("data.path=")), "data.path=[easy.jsonl,hard.jsonl]"]
    ran = alphapo("train", *line, "data.weights=[0.5,0.5]", "objective=simpo")
    assert ran.code == 0, ran.err
    summary = json.loads((ran.path / "summary.json").read_text())
    data = summary["data"]
    assert data == json.loads((ran.path / "manifest.json").read_text())["data"]
    assert data["columns_not_used"] == {"origin": 36, "n": 36, "mark": 36}
    assert [source["name"] for source in data["sources"]] == ["easy", "hard"]
    assert [source["train_pairs"] for source in data["sources"]] == [11, 11]
    last = json.loads((ran.path / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("easy", "hard"):
        for key in BY_GROUP["source"]:
            assert summary["metrics"][f"source/{name}/{key}"] == last[f"source/{name}/{key}"] is not None
    assert "from easy" in ran.err
    assert "origin (36)" in ran.err
    reading = alphapo("train", *line, "objective=simpo", "objective.label_column=mark", "trainer.max_steps=1")
    assert json.loads((reading.path / "summary.json").read_text())["data"]["columns_not_used"] == {
        "origin": 36,
        "n": 36,
    }
    again = alphapo("train", *line, "data.weights=[0.5,0.5]", "objective=simpo")
    assert again.out.splitlines()[1] == "complete"
    other = alphapo("train", *line, "data.weights=[0.6,0.4]", "objective=simpo", "--print-config")
    assert other.code == 0
    refused = alphapo("train", *line, "data.weights=[1]")
    assert (refused.code, "1 weights for 2 entries of data.path" in refused.fault) == (2, True)
