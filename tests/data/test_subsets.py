"""`data.subset_column`: accuracies of the pairs of each subset, and what is no such column."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alphapo_cli.config.schema import DataConfig, ProbeConfig
from alphapo_cli.data.load import load_pairs
from alphapo_cli.data.prepare import prepare
from alphapo_cli.errors import UsageError
from alphapo_cli.probe.displacement import by_group
from alphapo_cli.tracking.metrics import BY_GROUP, explain
from tests.conftest import strict_rows, write_rows
from tests.data import data_tokenizers as kinds
from tests.data.test_mixture import values

KINDS = ("chat", "code/py", None, 7)
NAMES = ("7", "chat", "code/py")


def rows(count=40, of=KINDS):
    return [
        {"prompt": f"Ask {i}.", "chosen": f"Yes {i}.", "rejected": f"No, {i}.", "kind": of[i % len(of)]}
        for i in range(count)
    ]


def load(folder, found, **settings):
    file = write_rows(folder / "pairs.jsonl", found)
    return load_pairs(DataConfig(source="files", path=str(file), **{"subset_column": "kind", **settings}))


def prepared(folder, found, probe=12):
    cfg = DataConfig(source="files", path=str(folder / "pairs.jsonl"), subset_column="kind")
    loaded = load(folder, found)
    return prepare(
        cfg, ProbeConfig(pairs=probe), kinds.bpe(), train_pairs=loaded, probe_pairs=None, cache_dir=folder / "cache"
    )


def test_every_pair_keeps_its_subset_through_tokens_split_and_selection(tmp_path):
    made = prepared(tmp_path, rows())
    assert made.probe.subset_names == NAMES
    for pairs in (made.probe, made.train, made.probe.select([3, 1]), made.probe.followed_by(made.train)):
        names = [(*pairs.subset_names, None)[number] for number in pairs.subset]
        texts = [kinds.bpe().decode(pair.prompt, skip_special_tokens=True) for pair in pairs]
        own = [KINDS[int(text.strip().removeprefix("Ask ").rstrip(".")) % 4] for text in texts]
        assert names == [None if kind is None else str(kind) for kind in own]
    counts = {name: int((made.probe.subset == n).sum()) for n, name in enumerate(NAMES)}
    counts["(none)"] = 12 - sum(counts.values())
    assert made.report["probe_subsets"] == counts
    assert dict(made.table)["probe pairs by subset"] == ", ".join(f"{name} {n}" for name, n in counts.items())
    assert made.report["columns_not_used"] == {}
    other = prepared(tmp_path, rows(of=("chat", "code/py")))
    assert other.key != made.key  # the same texts in other subsets


def test_the_metrics_of_a_subset_are_those_of_its_pairs_alone(tmp_path):
    probe = prepared(tmp_path, rows()).probe
    rng = np.random.default_rng(0)
    now, start = values(rng, 12), values(rng, 12)
    found = by_group(now, start, probe, BY_GROUP)
    assert list(found) == [f"subset/{name}/{key}" for name in NAMES for key in (*BY_GROUP["subset"], "pairs")]
    for number, name in enumerate(NAMES):
        own = probe.subset == number
        gained = (now.sums - start.sums)[:, own]
        expected = {
            "rewards/accuracies": now.rewards[0, own] > now.rewards[1, own],
            "ranking/accuracy": now.sums[0, own] > now.sums[1, own],
            "ranking/against_start": gained[0] > gained[1],
        }
        for key, right in expected.items():
            assert found[f"subset/{name}/{key}"] == pytest.approx(right.mean()), key
        assert found[f"subset/{name}/pairs"] == own.sum()
        assert f"of the subset '{name}'" in explain(f"subset/{name}/ranking/accuracy")
    with pytest.raises(UsageError, match="no metric is called 'subset/chat/train/loss'"):
        explain("subset/chat/train/loss")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (rows(of=(None,)), r"data\.subset_column=kind: no row has that column"),
        ([{**row, "kind": str(i)} for i, row in enumerate(rows(80))], "has 80 values, each of which would be a subset"),
        (rows(of=(["a"],)), "line 1: data.subset_column=kind is a list, not text or a number"),
        (rows(of=("x" * 81,)), "holds a text of 81 characters"),
        (rows(of=("a\x1b[31m",)), "holds characters that cannot be printed"),
    ],
)
def test_what_names_no_subsets_is_refused(tmp_path, found, said):
    with pytest.raises(UsageError, match=said):
        load(tmp_path, found)


def test_a_mistyped_column_gets_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"did you mean 'kind'\? \(columns: prompt, chosen, rejected, kind\)"):
        load(tmp_path, rows(), subset_column="knd")


@pytest.mark.slow
def test_a_run_and_its_measurement_have_accuracies_by_subset(alphapo, tmp_path, scratch_line):
    write_rows(tmp_path / "pairs.jsonl", rows(60))
    line = [text for text in scratch_line if not text.startswith("data.path=")]
    line += ["data.path=pairs.jsonl", "data.subset_column=kind", "objective=dpo", "probe.pairs=16"]
    ran = alphapo("train", *line)
    assert ran.code == 0, ran.err
    last = strict_rows(ran.path / "metrics.jsonl")[-1]
    assert "chat: pairs in the right order" in ran.err
    measured = alphapo("measure", str(ran.path), "--json", "-")
    assert "accuracy by subset" in measured.err
    ours = json.loads(measured.out.splitlines()[-1])["metrics"]
    for name in NAMES:
        for key in (*BY_GROUP["subset"], "pairs"):
            assert ours[f"subset/{name}/{key}"] == pytest.approx(last[f"subset/{name}/{key}"], rel=1e-5, abs=1e-5)
    refused = alphapo("train", "data.subset_column=kind", "--replace")
    assert (refused.code, "not read by data=glassbox" in refused.fault) == (2, True)
