"""`alphapo inspect --scores`: the scores of `alphapo measure` and `data.select`, of the pairs that training uses."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from alphapo_cli.probe.score_names import NAMES, OF_MODEL
from tests.conftest import strict_rows

WORLD = ("data.glassbox.pairs=64", "probe.pairs=8")
SPREAD = [name for name in NAMES if name != "start_prefers_chosen"]


@pytest.fixture
def scored(alphapo):
    """(the result object's scores, the whole run) of `alphapo inspect --scores`."""

    def look(*line):
        ran = alphapo("inspect", *line, "--scores", "--rows", "1", "--json", "-")
        assert ran.code == 0, ran.err
        return json.loads(ran.out.splitlines()[-1]), ran

    return look


def next_line(ran):
    """The overrides of the line that is printed last, without its comment."""
    last = ran.err.splitlines()[-1]
    assert last.startswith("next: alphapo train"), last
    return last.removeprefix("next: alphapo train").partition("  #")[0].split()


def close(found, wanted):
    """Other batches sum in another order: float32 states of some hundred units, of which CHES is a difference."""
    return all(found[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-2) for name in NAMES)


def test_they_are_those_of_measure_and_select(alphapo, scored):
    """Every number against `measure`; then the printed line leaves out just the pairs that it says."""
    result, ran = scored(*WORLD)
    found = result["scores"]
    assert (found["pairs"], found["of"], found["single"]) == (64, 64, 0)
    measured = alphapo("measure", "--pairs", "train", *WORLD)
    assert measured.code == 0, measured.err
    rows = {row["row"]: row for row in strict_rows(measured.path / "measured.jsonl")}
    assert [row["row"] for row in found["rows"]] == list(rows)
    assert all(close(row, rows[row["row"]]) for row in found["rows"])
    metrics = json.loads((measured.path / "metrics.json").read_text())["metrics"]
    for name in SPREAD:
        for end, value in found["percentiles"][name].items():
            assert value == pytest.approx(metrics[f"pairs/{name}/{end}"], rel=1e-3, abs=1e-2)
    assert found["start_prefers_chosen"] == metrics["ranking/start_accuracy"]
    order = sorted(rows, key=lambda row: -rows[row]["ches_normalised"])
    assert [one["row"] for one in found["highest"]] == order[:5]
    assert f"rows {', '.join(map(str, order[:5]))} have the highest CHES" in ran.out
    assert "scores of all 64 training pairs under the embedded base" in ran.out

    selecting = next_line(ran)
    assert selecting[2:] == ["data.select.by=ches_normalised", "data.select.keep=lowest", "data.select.share=0.95"]
    less, again = scored(*selecting)
    assert {row["row"] for row in less["scores"]["rows"]} == set(order[3:])  # 95 % of 64 are 61
    assert next_line(again) == selecting  # and nothing more is left out


def test_a_large_set_is_sampled_by_the_seed(scored, monkeypatch):
    whole = {row["row"]: row for row in scored(*WORLD)[0]["scores"]["rows"]}
    monkeypatch.setattr("alphapo_cli.stages.inspect_scores.SAMPLE", 12)
    result, ran = scored(*WORLD)
    rows = result["scores"]["rows"]
    assert "scores of 12 of 64 training pairs, drawn by seed 0" in ran.out
    assert len({row["row"] for row in rows}) == 12
    assert all(close(row, whole[row["row"]]) for row in rows)
    for name in SPREAD:
        assert result["scores"]["percentiles"][name]["p50"] == pytest.approx(np.median([row[name] for row in rows]))
    other = scored(*WORLD, "seed=1")[0]["scores"]["rows"]
    assert {row["row"] for row in other} != {row["row"] for row in rows}
    assert all(close(row, whole[row["row"]]) for row in other)
    assert scored(*WORLD)[0]["scores"]["rows"] == rows


def test_ches_of_a_pair_by_hand(scored, trained):
    """Definition 2 of 2410.08847 from the shown ids and plain transformers, each answer alone, in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    result, _ = scored(*WORLD, "data=glassbox", f"model.path={trained.path}")
    prompt, *answers = (part["ids"] for part in result["pairs"][0]["parts"])
    lm = AutoModelForCausalLM.from_pretrained(trained.path / "model").double().eval()
    sums, logps = [], []
    for ids in answers:
        with torch.no_grad():
            output = lm(torch.tensor([[*prompt, *ids]]), output_hidden_states=True)
        first = len(prompt) - 1
        sums.append(output.hidden_states[-1][0, first : first + len(ids)].sum(0))
        table = output.logits[0].log_softmax(-1)
        logps.append(math.fsum(float(table[first + n, token]) for n, token in enumerate(ids)))
    chosen, rejected = sums
    row = result["scores"]["rows"][0]
    square = float(chosen @ chosen)  # of which float32 states are exact to some 1e-6, CHES being a difference
    assert row["ches"] == pytest.approx(float(chosen @ rejected) - square, abs=1e-4 * square)
    assert row["reference_gap"] == pytest.approx(logps[0] - logps[1], abs=1e-3)


def test_the_page_has_them(scored, alphapo, tmp_path):
    result, _ = scored(*WORLD, "--html", "page.html")
    page = (tmp_path / "page.html").read_text()
    section = page.partition("<h2>Scores of the pairs</h2>")[2].partition("<h2>")[0]
    for name in SPREAD:
        assert f"{result['scores']['percentiles'][name]['p50']:,.4g}" in section
        bars = re.search(rf"<summary><code>{name}</code>.*?</details>", section)
        assert bars is not None
        counts = [int(count) for count in re.findall(r"</td><td>(\d+)</td><td><span class='bar'", bars[0])]
        values = np.array([row[name] for row in result["scores"]["rows"]])
        assert counts == np.histogram(values, bins=12)[0].tolist()
    assert "arXiv 2410.08847" in section
    assert "http" not in page
    alphapo("inspect", *WORLD, "--html", "plain.html")
    assert "Scores of the pairs" not in (tmp_path / "plain.html").read_text()


@pytest.fixture
def weightless(monkeypatch):
    """Reading weights fails."""

    def read(*_, **__):
        raise AssertionError("weights are read")

    monkeypatch.setattr("alphapo_cli.stages.training.inputs.load_model", read)


@pytest.mark.usefixtures("weightless")
def test_without_the_option_no_weights_are_read(alphapo):
    assert alphapo("inspect", *WORLD, "--scores").code == 1  # the fixture works
    assert alphapo("inspect", *WORLD).code == 0


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("model=from_scratch", "data=glassbox"), "--scores: model=from_scratch has random weights"),
        (
            ("objective=kto", "model.path={run}", "data=jsonl", "data.path=rows.jsonl", "probe.pairs=2"),
            "--scores: no training row has two answers",
        ),
    ],
)
def test_what_is_refused_in_one_line(line, said, alphapo, tmp_path, scratch):
    rows = [{"prompt": f"Q{n}", "completion": f"so {n}", "label": n % 2 == 0} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = alphapo("inspect", *(word.format(run=scratch.path) for word in line), "--scores")
    assert ran.code == 2
    assert said in ran.fault


def test_scores_that_are_no_numbers_are_refused(alphapo, monkeypatch):
    monkeypatch.setattr(
        "alphapo_cli.stages.inspect_scores.start_scores",
        lambda cfg, start, builder: {name: np.full(len(start.data.train), np.nan) for name in OF_MODEL},
    )
    ran = alphapo("inspect", *WORLD, "--scores")
    assert ran.code == 2
    assert "64 of 64 pairs scores that are no finite number, first row 1" in ran.fault


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"by": "margin", "min": 0.5}, ["data.select.then=[{by: ches_normalised, keep: lowest, share: 0.95}]"]),
        ({"by": "ches", "max": 0.0}, []),
        ({"by": "margin", "min": 0.5, "then": [{"by": "random", "count": 4}]}, []),
    ],
)
def test_a_selection_that_is_there_already_stays(given, wanted):
    from alphapo_cli.cli.inspect_scores import selecting
    from alphapo_cli.config.schema import SelectConfig

    assert selecting(SelectConfig(**given)) == wanted
