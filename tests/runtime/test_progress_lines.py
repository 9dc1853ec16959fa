"""What takes long says how far it is where no terminal shows a bar."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from alphapo_cli.modeling.sampling import Sample
from alphapo_cli.probe.sampled_answers import SampledAnswers, SamplePrompts, Sampling
from alphapo_cli.runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr("alphapo_cli.runtime.progress.time.monotonic", lambda: seconds[0])
    return seconds


def test_a_line_after_half_a_minute_with_the_time_left(clock, capsys):
    with Progress(1100, "pairs", "reference log-probs", initial=100) as progress:
        for _ in range(9):
            clock[0] += 10.0
            progress.update(100)
    # 90 s at 100 pairs every 10 s: those that were there before took no time.
    assert capsys.readouterr().err.splitlines() == [
        "reference log-probs: 400 of 1,100 pairs, 1 min left",
        "reference log-probs: 700 of 1,100 pairs, 40 s left",
        "reference log-probs: 1,000 of 1,100 pairs, 10 s left",
    ]


@pytest.mark.parametrize(("seconds", "quiet"), [(5.0, False), (50.0, True)])
def test_what_is_soon_done_and_other_processes_say_nothing(seconds, quiet, clock, capsys):
    with Progress(2, "answers", quiet=quiet) as progress:
        clock[0] += seconds
        progress.update(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("exact", [True, False])
def test_answers_that_are_sampled_one_by_one_are_counted(exact, clock, capsys, monkeypatch):
    calls: list[Any] = []
    kept: dict[str, Any] = {}

    def sample(lm, prompts, seeds, **settings):
        calls.append(prompts)
        clock[0] += 20.0 * len(prompts)
        return [Sample([seed % 7, *prompt], cut=False) for prompt, seed in zip(prompts, seeds, strict=True)]

    monkeypatch.setattr("alphapo_cli.probe.sampled_answers.sample", sample)
    tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda ids, **how: " ".join(map(str, ids)))
    prompts = SamplePrompts("mine", ["a", "b", "c", "d"], [[1], [2], [3], [4]])
    answers = SampledAnswers(tokenizer, 2, Sampling(8, 0.0, exact), prompts, 0, "run", kept.__setitem__)
    answers.write_texts(None, 1)
    assert calls == ([[[1]], [[2]], [[3]], [[4]]] if exact else [[[1], [2], [3], [4]]])
    assert [row["output"].split()[1] for row in kept["step-1.json"]] == ["1", "2", "3", "4"]
    said = ["answers of the model: 2 of 4 answers, 40 s left", "answers of the model: 4 of 4 answers"]
    assert capsys.readouterr().err.splitlines() == (said if exact else [])


def test_what_came_before_the_first_count_is_no_time_of_the_others(clock, capsys):
    """A model that took minutes to load made "1 of 160 answers, 5 h left"."""
    with Progress(160, "answers") as progress:
        clock[0] += 120.0
        progress.update()
        for _ in range(8):
            clock[0] += 5.0
            progress.update()
    said = capsys.readouterr().err.splitlines()
    assert said == ["1 of 160 answers", "7 of 160 answers, 12 min left"]  # 153 times 5 s
