"""The share of sampled answers that begin like a refusal, over training."""

from __future__ import annotations

import json

import pytest

from alphapo_cli.probe.sampled_answers import refuses
from tests.conftest import BARE, TINY, strict_rows


@pytest.mark.parametrize(
    ("answer", "is_one"),
    [
        ("I can't help with that.", True),
        ("\n i CAN'T", True),
        ("Well, I can't help.", False),
        ("I'm sorry, no.", True),
        ("", False),
    ],
)
def test_an_answer_that_begins_with_an_opening(answer, is_one):
    assert refuses(answer, ["I can't", " i'm sorry"]) is is_one


@pytest.mark.slow
def test_it_is_measured_at_every_sampling(alphapo):
    run = alphapo("train", *TINY, *BARE, "probe.refusals=[the,a]")
    assert run.code == 0, run.err
    rows = [row for row in strict_rows(run.path / "metrics.jsonl") if "samples/length" in row]
    assert len(rows) >= 2
    for row in rows:
        answers = json.loads((run.path / "samples" / f"step-{row['step']}.json").read_text())
        starting = [answer["output"].lower().lstrip()[:3] for answer in answers]
        share = sum(text.startswith(("the", "a")) for text in starting) / len(starting)
        assert row["samples/refusals"] == pytest.approx(share)


def test_an_empty_opening_is_refused(alphapo):
    run = alphapo("train", 'probe.refusals=[""]')
    assert run.code == 2
    assert "probe.refusals" in run.fault
