"""`data.select`: training on pairs that a score or a column chooses."""

from __future__ import annotations

import json

import pytest

from tests.conftest import BARE, TINY, strict_rows

LINE = ("train", *TINY, *BARE, "probe.samples=0")


def manifest(run):
    return json.loads((run.path / "manifest.json").read_text())


def scores(alphapo, name):
    """The embedded world's training pairs' scores as `alphapo measure` has them: row -> number."""
    measured = alphapo("measure", "--pairs", "train", *(x for x in TINY if x.startswith("data.")), "probe.pairs=8")
    assert measured.code == 0, measured.err
    return {row["row"]: row[name] for row in strict_rows(measured.path / "measured.jsonl")}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "keep"), [("ches_normalised", "lowest"), ("edit_distance", "highest")])
def test_a_share_by_a_score(name, keep, alphapo):
    line = (f"data.select.by={name}", f"data.select.keep={keep}", "data.select.share=0.75")
    run = alphapo(*LINE, *line)
    assert run.code == 0, run.err
    assert f"not the {keep} 75 % by {name}" in run.err
    found = manifest(run)["data"]
    assert (found["train_pairs"], found["left_out_by_select"]) == (48, 16)
    dropped = strict_rows(run.path / "dropped.jsonl")
    assert len(dropped) == 16

    all_scores = scores(alphapo, name)
    kept = {row: score for row, score in all_scores.items() if row not in {one["row"] for one in dropped}}
    assert all(one["value"] == pytest.approx(all_scores[one["row"]], rel=1e-6) for one in dropped)
    worst = max(kept.values()) if keep == "lowest" else -min(kept.values())
    assert all((one["value"] if keep == "lowest" else -one["value"]) >= worst - 1e-6 for one in dropped)
    assert "dropped.jsonl" in json.loads((run.path / "summary.json").read_text())["files"]

    whole = alphapo(*LINE)
    assert whole.path != run.path
    assert manifest(whole)["data"]["key"] != found["key"]
    assert not (whole.path / "dropped.jsonl").exists()
    # The held-out pairs are the same ones.
    first = [strict_rows(path.path / "metrics.jsonl")[0]["logps/chosen"] for path in (run, whole)]
    assert first[0] == first[1]


def test_conditions_on_columns_in_order(alphapo, tmp_path):
    rows = [
        {"prompt": f"Say {i}.", "chosen": f"Yes, {i}.", "rejected": "No.", "margin": i / 10, "safe": i % 2}
        for i in range(20)
    ]
    del rows[3]["margin"]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("model=from_scratch", "model.scratch.hidden_size=16", "model.scratch.num_hidden_layers=1",
            "model.scratch.num_attention_heads=2", "model.scratch.vocab_size=320", "trainer.max_steps=1", "probe.pairs=2",
            "data=jsonl", f"data.path={file}", "trainer.per_device_train_batch_size=2", *BARE)  # fmt: skip
    run = alphapo("train", "objective=simpo", *line, "data.select.by=margin", "data.select.min=0.5",
                  "data.select.then=[{by: safe, min: 1}, {by: random, keep: lowest, count: 4}]")  # fmt: skip
    assert run.code == 0, run.err
    assert manifest(run)["data"]["train_pairs"] == 4
    dropped = strict_rows(run.path / "dropped.jsonl")
    reasons = {one["row"]: one["reason"] for one in dropped}
    assert reasons.get(4, "margin: no value") == "margin: no value"
    for one in dropped:
        value = rows[one["row"] - 1].get(one["by"])
        if one["by"] != "random":
            assert one["value"] == value
            assert value is None or value < {"margin": 0.5, "safe": 1}[one["by"]]
    assert len(dropped) + 4 + 2 == 20


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            ("data.select.by=chess", "data.select.min=0"),
            "data.select.by=chess: no such score or column; did you mean 'ches",
        ),
        (("data.select.by=chess", "data.select.min=0"), "edit_distance"),
        (("data.select.by=ches",), "keeps what?"),
        (("data.select.keep=lowest",), "by which score or column?"),
        (("data.select.by=ches", "data.select.keep=low"), "did you mean 'lowest'?"),
        (("data.select.by=ches", "data.select.keep=lowest", "data.select.share=1.5"), "must be at most 1"),
        (("data.select.by=ches", "data.select.mn=0"), "did you mean 'data.select.min'?"),
        (("data.select.by=ches", "data.select.max=0", "data.select.then=[{by: ches, mx: 1}]"), "no key 'mx'"),
        (("data.select.by=ches", "data.select.max=0", "data.select.then=[{by: ches, max: lots}]"), "must be a number"),
        (("data.select.by=ches", "data.select.max=0", "data.select.then=3"), "must be a list of conditions"),
        (("data.select=ches",), "data.select is a group of keys"),
        (("data.select.by=edit_distance", "data.select.min=5"), "no pair is left of 64 to train on"),
    ],
)
def test_what_is_refused_in_one_line(line, said, alphapo, tmp_path, monkeypatch):
    from alphapo_cli.stages.training import inputs

    def read(*_):
        raise AssertionError("weights are read")

    monkeypatch.setattr(inputs, "load_model", read)
    run = alphapo(*LINE, *line)
    assert run.code == 2, (run.out, run.err)
    assert said in run.err.splitlines()[-1]
    assert not list((tmp_path / "runs").glob("*/metrics.jsonl"))
