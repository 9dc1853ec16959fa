"""Without a terminal, training says how far it is: at every reading of the probe, and every 30 seconds."""

from __future__ import annotations

import re

from alphapo_cli.runs.directory import RunDirectory
from alphapo_cli.stages.training import metrics_log


def test_a_line_for_every_reading(trained):
    name = trained.path.name
    lines = [line for line in trained.err.splitlines() if line.startswith(f"{name}: step ")]
    assert [re.match(rf"{name}: step (\d) of 4", line)[1] for line in lines] == ["0", "2", "4"]
    assert re.search(r", loss -?\d+\.\d{3}, .* left$", lines[1])
    assert not lines[-1].endswith("left")


def test_what_was_done_before_the_first_step_is_no_time_of_steps(tmp_path, capsys, monkeypatch):
    """Answers that are sampled before it take minutes."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    log = metrics_log.MetricsLog(RunDirectory(tmp_path), 10, "run", lines=True)
    for step, seconds in ((0, 0.0), (1, 60.0)):
        clock[0] += seconds
        log.add(step, {"displacement/chosen": 0.0})
        log.flush()
        log.advance(step)
        if step == 0:
            clock[0] += 600.0
            log.begin()
    log.close()
    assert capsys.readouterr().err.splitlines()[-1].endswith(", 9 min left")


def test_a_line_after_half_a_minute(tmp_path, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    log = metrics_log.MetricsLog(RunDirectory(tmp_path), 100, "run", lines=True)
    for step in range(1, 8):
        clock[0] += 10.0
        log.add(step, {"train/loss": 1.0})
        log.flush()
        log.advance(step)
    log.close()
    # 70 s at 10 s a step: lines at 30 s and at 60 s, the second with the 94 steps that are left.
    assert capsys.readouterr().err.splitlines() == [
        "run: step 3 of 100, loss 1.000",
        "run: step 6 of 100, loss 1.000, 15 min left",
    ]
