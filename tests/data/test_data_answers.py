"""Lists of scored answers: every way they are written, which answers are used, and one clear line for what is broken."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from alphapo_cli.config.schema import DataConfig, ProbeConfig
from alphapo_cli.data import token_cache
from alphapo_cli.data.load import load_pairs
from alphapo_cli.data.prepare import prepare
from alphapo_cli.errors import UsageError
from alphapo_cli.stages.training.raw_pairs import load_text
from tests.data import data_tokenizers as kinds

TEXTS = ["fair", "best", "worst", "good"]
SCORES = [2.0, 9.5, -1.0, 7]
RANKED = ["best", "worst", "good", "fair"]  # chosen, rejected, then in falling order


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write(tmp_path, rows, name="data.jsonl"):
    path = tmp_path / name
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(tmp_path, rows, name="data.jsonl", **settings):
    return load_pairs(DataConfig(source="files", path=str(write(tmp_path, rows, name)), **settings))


def fault(tmp_path, rows, **settings):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, rows, **settings)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(pair):
    return [side if isinstance(side, str) else side[-1]["content"] for side in pair.sides]


def row(prompt="q", answers=TEXTS, scores=SCORES, **more):
    return {"prompt": prompt, "responses": answers, "scores": scores, **more}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "written",
    [
        row(),
        {"prompt": "q", "completions": TEXTS, "scores": SCORES},
        {"prompt": "q", "responses": [{"text": t, "rating": s} for t, s in zip(TEXTS, SCORES, strict=True)]},
        {
            "prompt": "q",
            "completions": [{"response": t, "overall_score": s} for t, s in zip(TEXTS, SCORES, strict=True)],
        },
        {"prompt": "q", "responses": [{"content": t} for t in TEXTS], "scores": SCORES},
        {"prompt": "q", "responses": [[assistant(t)] for t in TEXTS], "scores": SCORES},
        {"prompt": [user("q")], "responses": TEXTS, "scores": SCORES},
        {"prompt": [user("q")], "responses": [[user("q"), assistant(t)] for t in TEXTS], "scores": SCORES},
    ],
    ids=["text", "completions", "rating", "overall_score", "content", "messages", "message prompt", "conversations"],
)
def test_every_form_gives_best_worst_and_the_others_in_order(tmp_path, written, suffix):
    (pair,) = load(tmp_path, [written], f"d.{suffix}")
    assert texts(pair) == RANKED
    assert pair.columns == {"score_chosen": 9.5, "score_rejected": -1.0, "score_2": 7.0, "score_3": 2.0}
    if not isinstance(pair.prompt, str):
        assert pair.prompt == (user("q"),)
        assert pair.chosen == (assistant("best"),)


def test_other_numbers_of_a_row_stay_columns(tmp_path):
    loaded = load(tmp_path, [row(weight=0.5, label=1)])
    assert loaded.form == "answers"
    assert loaded.pairs[0].columns["weight"] == 0.5


def test_answers_takes_the_best_ones_and_the_worst(tmp_path):
    rows = [row(), row("r", [*TEXTS, "fine"], [*SCORES, 8])]
    assert [texts(p) for p in load(tmp_path, rows, answers=3)] == [["best", "worst", "good"], ["best", "worst", "fine"]]
    assert [texts(p) for p in load(tmp_path, rows, answers=2)] == [["best", "worst"]] * 2
    # Left out: as many as the shortest list has.
    assert [texts(p) for p in load(tmp_path, rows)] == [RANKED, ["best", "worst", "fine", "good"]]


def test_a_tie_keeps_the_lists_order_and_no_preference_at_all_is_left_out(tmp_path):
    loaded = load(tmp_path, [row(answers=list("abcd"), scores=[1, 2, 2, 1]), row(scores=[3, 3, 3, 3])])
    assert [texts(p) for p in loaded] == [["b", "d", "c", "a"]]
    assert loaded.counts.tied == 1


def test_rows_with_two_equal_or_empty_answers_are_left_out_and_counted(tmp_path):
    rows = [row(), row(answers=["a", "b", " a ", "c"]), row(answers=["a", "b", " ", "c"])]
    counts = load(tmp_path, rows).counts
    assert (counts.identical, counts.emptied) == (1, 1)
    # Not when the answer in question is not used.
    assert load(tmp_path, [row(answers=["best", "best", "worst", "good"])], answers=2).counts.identical == 0


def test_the_same_list_twice_is_a_duplicate(tmp_path):
    assert load(tmp_path, [row(), row(), row(answers=["fair", "best", "worst", "other"])]).counts.duplicates == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scores": SCORES[:3]}, "line 2: 'responses' holds 4 answers and 'scores' 3 numbers"),
        ({"scores": [1, None, 2, 3]}, "line 2: 'responses[1]' has no score; give one in each answer"),
        ({"scores": None}, "line 2: 'responses[0]' has no score"),
        ({"scores": [1, "2", 2, 3]}, "line 2: the score of 'responses[1]' is '2', not a finite number"),
        ({"scores": [1, True, 2, 3]}, "line 2: the score of 'responses[1]' is True, not a finite number"),
        ({"scores": 3}, "line 2: 'scores' is 3, not a list of 4 numbers"),
        ({"responses": ["a"], "scores": [1]}, "line 2: 'responses' holds 1 answer(s); a comparison needs two or more"),
        ({"responses": [{"score": 1}] * 4}, "line 2: 'responses[0]' has none of content, response, text (keys: score)"),
        (
            {"responses": [1, 2, 3, 4]},
            "line 2: 'responses[0]' is a number, not a message list; type data.format=auto, ",
        ),
        ({"responses": None}, "line 2: no list in 'responses' or 'completions' (columns: prompt, responses, scores)"),
        ({"prompt": None}, "line 2: column 'prompt' is null"),
    ],
)
def test_what_is_broken_is_named(tmp_path, change, expected):
    assert expected in fault(tmp_path, [row(), {**row(), **change}])


def test_scores_that_json_cannot_mean_are_named(tmp_path):
    path = write(tmp_path, [row()])
    path.write_text(path.read_text().replace("9.5", "1e999"))
    with pytest.raises(UsageError, match=r"line 1: the score of 'responses\[1\]' is inf, not a finite number"):
        load_pairs(DataConfig(source="files", path=str(path)))


def test_fewer_answers_than_asked_for_are_counted(tmp_path):
    rows = [row(), row(answers=TEXTS[:3], scores=SCORES[:3]), row(answers=TEXTS[:2], scores=SCORES[:2])]
    said = fault(tmp_path, rows, answers=4)
    assert "data.jsonl: 2 of 3 rows have fewer than data.answers=4 answers (the first: " in said
    assert "line 2, with 3); give data.answers=2" in said


def test_a_number_of_answers_is_for_lists(tmp_path):
    pairs = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    assert "data.answers=3: " in fault(tmp_path, pairs, answers=3)
    assert len(load(tmp_path, pairs, answers=2)) == 1


def test_a_third_answer_beside_chosen_and_rejected(tmp_path):
    text = {"prompt": "q", "chosen": "a", "rejected": "b", "reference": "c"}
    (pair,) = load(tmp_path, [text], gold_column="reference")
    assert texts(pair) == ["a", "b", "c"]
    talk = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")], "gold": [assistant("c")]}
    (pair,) = load(tmp_path, [talk], gold_column="gold")
    assert texts(pair) == ["a", "b", "c"]
    assert "column 'gold' is missing" in fault(tmp_path, [text], gold_column="gold")
    assert "data.gold_column=x: " in fault(tmp_path, [row()], gold_column="x")


def test_evaluation_rows_have_as_many_answers_as_training_rows(tmp_path):
    train = write(tmp_path, [row(answers=TEXTS[:3], scores=SCORES[:3])], "train.jsonl")
    evaluation = write(tmp_path, [row()], "eval.jsonl")
    cfg = DataConfig(source="files", path=str(train), eval_path=str(evaluation))
    one, other = load_text(cfg, ProbeConfig())
    assert other is not None
    assert [texts(p) for p in one] == [["best", "worst", "fair"]]
    assert [texts(p) for p in other] == [["best", "worst", "good"]]
    with pytest.raises(UsageError, match=r"1 of 1 rows have fewer than data.answers=4"):
        load_text(DataConfig(source="files", path=str(evaluation), eval_path=str(train)), ProbeConfig())


# ----------------------------------------------------------------------------------------------------------- unpaired


@pytest.mark.parametrize(
    ("label", "good"),
    [
        (True, True),
        (1, True),
        (1.0, True),
        ("1", None),
        (False, False),
        (0, False),
        (2, None),
        (None, None),
        ("yes", None),
    ],
)
def test_labels(tmp_path, label, good):
    written = [
        {"prompt": "q", "completion": "a", "label": True, "weight": 2},
        {"prompt": "q", "completion": "b", "label": label},
    ]
    if good is None:
        assert "line 2: label=" in fault(tmp_path, written)
        assert "must be true or 1 (desirable), false or 0 (undesirable)" in fault(tmp_path, written)
        return
    loaded = load(tmp_path, written)
    assert loaded.form == "unpaired"
    first, second = loaded
    assert (first.chosen, first.rejected, first.columns) == ("a", (), {"weight": 2.0})
    assert (second.chosen, second.rejected) == (("b", ()) if good else ((), "b"))


def test_unpaired_rows_of_csv_and_of_messages(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("prompt,completion,label\nq,a,True\nr,b,0\n")
    assert [bool(p.chosen) for p in load_pairs(DataConfig(source="files", path=str(path)))] == [True, False]
    talk = {"prompt": [user("q")], "completion": [assistant("a")], "label": False}
    (pair,) = load(tmp_path, [talk])
    assert (pair.prompt, pair.chosen, pair.rejected) == ((user("q"),), (), (assistant("a"),))


def test_unpaired_rows_that_are_broken_or_empty(tmp_path):
    good = {"prompt": "q", "completion": "a", "label": True}
    assert load(tmp_path, [good, {**good, "completion": " "}]).counts.emptied == 1
    assert "line 2: no 'completion' beside 'label'" in fault(tmp_path, [good, {"prompt": "q", "label": 1}])
    assert "line 2: column 'prompt' is null" in fault(tmp_path, [good, {**good, "prompt": None}])
    assert "data.answers=2: " in fault(tmp_path, [good], answers=2)
    # One answer called good and bad is two rows; the same said twice is a duplicate.
    assert load(tmp_path, [good, {**good, "label": False}, good]).counts.duplicates == 1


def test_an_absent_side_has_no_tokens_and_is_not_counted(tmp_path):
    rows = [{"prompt": f"Question {n}?", "completion": "yes " * (n + 1), "label": n % 3 > 0} for n in range(20)]
    cfg = DataConfig(source="files", path=str(write(tmp_path, rows)), max_length=18)
    folder = tmp_path / "cache"
    made = [
        prepare(cfg, ProbeConfig(pairs=4), kinds.bpe(), train_pairs=load_pairs(cfg), probe_pairs=None, cache_dir=folder)
        for _ in range(2)
    ]
    assert made[0].key == made[1].key  # the second from the cache
    for prepared in made:
        assert prepared.train.unpaired
        assert prepared.train.num_sides == 2
        for pair in prepared.train:
            there, absent = (pair.chosen, pair.rejected) if pair.index % 3 else (pair.rejected, pair.chosen)
            assert len(absent) == 0
            assert 0 < len(there) <= 18 - len(pair.prompt)
        report = prepared.report
        assert report["desirable"] + report["undesirable"] == report["train_pairs"] == 16
        assert report["truncated_completions"] > 0
        assert report["mean_rejected_tokens"] == np.mean([len(p.rejected) for p in prepared.train if len(p.rejected)])
        assert report["mean_chosen_minus_rejected_tokens"] is None
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        table = dict(prepared.table)
        assert table["mean chosen minus rejected tokens"] == "none"
        assert int(table["desirable training rows"]) == report["desirable"]


# ------------------------------------------------------------------------------------------------------------- as ids


@pytest.fixture
def make(tmp_path):
    def run(count=20, **settings):
        rows = [row(f"Question {n}?", [f"{t} {n}" + " at all" * (n % 3) for t in TEXTS]) for n in range(count)]
        settings = {"source": "files", "path": str(write(tmp_path, rows)), **settings}
        cfg = DataConfig(**settings)
        folder = tmp_path / "cache"
        return prepare(
            cfg, ProbeConfig(pairs=4), kinds.bpe(), train_pairs=load_pairs(cfg), probe_pairs=None, cache_dir=folder
        )

    return run


def test_every_answer_becomes_ids_and_is_selected_with_its_row(make):
    prepared = make()
    decode = kinds.bpe().decode
    assert prepared.train.num_sides == 4
    assert not prepared.train.unpaired
    for data in (prepared.train, prepared.probe):
        for pair in data:
            n, more = pair.index, " at all" * (pair.index % 3)
            assert decode(pair.prompt).count(f"Question {n}?") == 1
            assert [decode(a) for a in pair.answers] == [f"{text} {n}{more}<|end|>" for text in RANKED]
    assert prepared.report["answers"] == 4
    assert dict(prepared.table)["answers a row"] == "4"
    cut = make(answers=2)
    assert dict(cut.table)["answers a row"] == "2"  # the others are left out, which nobody should have to guess
    some = prepared.train.select([3, 1])
    assert [x.tolist() for x in some[0].others] == [x.tolist() for x in prepared.train[3].others]
    assert prepared.train.longest().tolist() == [max(map(len, p.answers)) for p in prepared.train]


def test_every_answer_is_cut(make):
    prepared = make(max_length=9)
    assert prepared.report["truncated_pairs"] == 20
    assert all(len(p.prompt) + len(a) <= 9 for p in prepared.train for a in p.answers)


def test_the_cache_holds_every_answer_and_its_key_every_text(make, monkeypatch):
    first = make()
    calls = []
    monkeypatch.setattr(token_cache, "encode_pairs", lambda *_: calls.append(1))
    again = make()
    assert not calls
    assert again.key == first.key
    assert len(again.train.others) == 2
    for a, b in zip(first.train.others, again.train.others, strict=True):
        assert np.array_equal(a.ids, b.ids)
        assert np.array_equal(a.offsets, b.offsets)
    monkeypatch.undo()
    assert len({first.key, make(answers=3).key, make(answers=2).key}) == 3


def test_answers_that_differ_only_in_what_is_cut_leave_their_row_out(tmp_path):
    from alphapo_cli.data.tokenise import encode_pairs

    long = row(answers=["so " * 40 + "a", "so " * 40 + "b", "no", "yes"])
    pairs = load(tmp_path, [long, row()]).pairs
    encoded = encode_pairs(pairs, kinds.bpe(), DataConfig(max_length=24))
    assert (encoded.kept, encoded.counts.identical) == ((1,), 1)
