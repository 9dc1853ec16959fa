"""Tracking: the offline file is read back byte by byte, and nothing that W&B does stops a run."""

from __future__ import annotations

import json
import math
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from alphapo_cli.config.schema import TrackingConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.tracking import metrics, wandb_preflight
from alphapo_cli.tracking.secrets import without_secrets
from alphapo_cli.tracking.tracker import NullTracker
from alphapo_cli.tracking.wandb import WandbTracker, log_group_summary, open_tracker
from alphapo_cli.tracking.wandb_preflight import check_tracking, spell_mode, tracking_mode
from tests.wandb_file import live_files, read

STEPS = range(0, 65, 16)
KEYS = metrics.keys()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def _row(step: int) -> dict[str, Any]:
    """A different number for every key at every step."""
    return {"step": step, **{key: step + i / 1024 for i, key in enumerate(KEYS)}}


def _open(run_dir: Path, mode: str = "offline", **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "cfg": TrackingConfig(mode=mode, project="proj", tags=["tiny", "cpu"]),
        "run_dir": run_dir,
        "run_id": "abc123",
        "name": "alphapo-abc123",
        "group": "alpha-0f",
        "job_type": "train",
        "config": {"objective": {"beta": 2.5}, "seed": 0},
    }
    return open_tracker(**{**arguments, **changes})


def test_an_offline_run_read_back_holds_every_key_at_every_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = _open(tmp_path)
    for step in STEPS:
        tracker.log(step, _row(step))
    tracker.finish({"state": "complete", "metrics": {"displacement/chosen": -0.5, "kl/reference": None}}, 0)

    (path,) = live_files(tmp_path)
    found = read(path)
    assert [row["_step"] for row in found.history] == list(STEPS)
    for row in found.history:
        expected = _row(row["_step"])
        assert {key: row[key] for key in KEYS} == {key: expected[key] for key in KEYS}
        assert "step" not in row
    assert (found.run_id, found.name, found.project) == ("abc123", "alphapo-abc123", "proj")
    assert (found.group, found.job_type, found.tags) == ("alpha-0f", "train", ["tiny", "cpu"])
    assert found.config["objective"] == {"beta": 2.5}
    assert found.config["seed"] == 0
    assert found.summary["state"] == "complete"
    assert found.exit_code == 0
    assert tracker.sync_hint() == f"wandb sync {path.parent}"
    assert capfd.readouterr() == ("", "")


def test_undefined_values_are_left_out_and_a_failed_run_says_so(tmp_path: Path) -> None:
    tracker = _open(tmp_path)
    tracker.log(0, {"step": 0, "a": 1.0, "b": None, "c": math.nan, "d": math.inf})
    tracker.log(0, {"e": 2.0})  # a second row of one step joins the first
    tracker.log(3, {"b": None})
    tracker.log(4, {"a": 3.0})
    tracker.finish({}, 1)
    (path,) = live_files(tmp_path)
    found = read(path)
    rows = [{key: value for key, value in row.items() if key in "abcde" or key == "_step"} for row in found.history]
    assert rows == [{"_step": 0, "a": 1.0, "e": 2.0}, {"_step": 4, "a": 3.0}]
    assert found.exit_code == 1


@pytest.mark.parametrize("times", [1, 3])
def test_a_resumed_run_has_one_file_with_every_step_once(tmp_path: Path, times: int) -> None:
    first = _open(tmp_path)
    for step in (0, 16, 32):
        first.log(step, _row(step))
    first.finish({}, 130)
    record = [_row(0), {"step": 16, "train/loss": 0.5}, _row(16)]  # step 32 was after the last checkpoint
    for _ in range(times):
        tracker = _open(tmp_path, history=record)
        for step in (32, 48):
            tracker.log(step, _row(step))
        tracker.finish({}, 0)

    (path,) = live_files(tmp_path)
    found = read(path)
    assert [row["_step"] for row in found.history] == [0, 16, 32, 48]
    assert all(row["logps/chosen"] == _row(row["_step"])["logps/chosen"] for row in found.history)
    assert found.exit_code == 0
    assert len(list((tmp_path / "wandb" / "superseded").rglob("*.wandb"))) == times


def test_another_run_in_the_same_directory_is_not_set_aside(tmp_path: Path) -> None:
    _open(tmp_path, run_id="other").finish({}, 0)
    _open(tmp_path).finish({}, 0)
    assert sorted(path.name for path in live_files(tmp_path)) == ["run-abc123.wandb", "run-other.wandb"]


def test_when_no_run_can_be_opened_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    _open(tmp_path).finish({}, 0)
    before = live_files(tmp_path)

    def broken(**_: object) -> None:
        raise OSError("No space left on device\nand more")

    monkeypatch.setattr(wandb, "init", broken)
    assert isinstance(_open(tmp_path), NullTracker)
    assert live_files(tmp_path) == before
    assert capsys.readouterr().err == (
        "alphapo: W&B is off for this run (No space left on device); metrics.jsonl has everything\n"
    )


@pytest.mark.parametrize(
    ("environment", "configured", "mode"),
    [
        ({}, "offline", "offline"),
        ({}, "online", "online"),
        ({"WANDB_MODE": "disabled"}, "online", "disabled"),
        ({"WANDB_MODE": "dryrun"}, "online", "offline"),
        ({"WANDB_MODE": "OFFLINE"}, "online", "offline"),
        ({"WANDB_MODE": " Offline\n"}, "online", "offline"),
        ({"WANDB_MODE": "Disabled"}, "online", "disabled"),
        ({"WANDB_MODE": "online"}, "disabled", "disabled"),  # it can only prevent an upload
        ({"WANDB_MODE": "run"}, "offline", "online"),
        ({"WANDB_MODE": ""}, "offline", "offline"),
        ({"WANDB_DISABLED": "true"}, "online", "disabled"),
        ({"WANDB_MODE": "offline", "WANDB_DISABLED": "true"}, "online", "offline"),
    ],
)
def test_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], configured: str, mode: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracking_mode(TrackingConfig(mode=configured)) == mode


def test_an_unknown_mode_is_said_and_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    assert tracking_mode(TrackingConfig(mode="online")) == "online"
    (line,) = capsys.readouterr().err.splitlines()
    assert "WANDB_MODE='ofline'" in line


@pytest.mark.parametrize("command", [("train",), ("run",), ("sweep", "alpha", "objective.shape.alpha=0,1")])
def test_an_unknown_mode_is_refused_before_training(command: tuple[str, ...], alphapo: Any, tmp_path: Path) -> None:
    ran = alphapo(*command, "trainer.max_steps=1", env={"WANDB_MODE": "ofline"})
    assert (ran.code, ran.out) == (2, "")
    assert "WANDB_MODE=ofline: W&B knows online, run, shared, offline, dryrun, disabled" in ran.fault
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WANDB_TAGS", "good," + "x" * 65, "65 characters. Tags must be between 1 and 64"),
        ("WANDB_TAGS", "a,,b", "is empty"),
        ("WANDB_PROJECT", "me/proj", "cannot contain characters"),
        ("WANDB_RUN_ID", "a/b", "cannot contain the characters"),
        ("WANDB_RESUME", "perhaps", "'allow', 'must', 'never' or 'auto'"),
    ],
)
def test_a_variable_that_w_and_b_would_refuse_is_named_before_training(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_ENTITY", "a-team")
    check_tracking(TrackingConfig())
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=rf"^{name}: .*tracking\.mode=disabled$") as found:
        check_tracking(TrackingConfig())
    assert said in str(found.value)
    check_tracking(TrackingConfig(mode="disabled"))


def test_a_typed_disabled_does_not_look_at_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    check_tracking(TrackingConfig(mode="disabled"))
    with pytest.raises(UsageError, match="WANDB_MODE=ofline"):
        check_tracking(TrackingConfig())


@pytest.mark.parametrize(
    ("spelt", "becomes"), [("OFFLINE", "offline"), (" Online\n", "online"), ("", None), ("ofline", None)]
)
def test_the_spelling_is_one_that_w_and_b_takes(
    monkeypatch: pytest.MonkeyPatch, spelt: str, becomes: str | None
) -> None:
    from wandb import Settings

    monkeypatch.setenv("WANDB_MODE", spelt)
    with pytest.raises(ValueError, match="Input should be"):
        Settings(mode=spelt)
    spell_mode()
    assert os.environ.get("WANDB_MODE") == becomes
    assert becomes is None or Settings(mode=becomes).mode == becomes


@pytest.mark.slow
@pytest.mark.parametrize("spelt", ["OFFLINE", "ofline"])
def test_w_and_b_takes_the_mode_however_it_is_spelt(tmp_path: Path, spelt: str) -> None:
    """W&B itself refuses both, and nothing of its own is on stderr, whatever its variables say."""
    script = (
        "import sys; from pathlib import Path\n"
        "from alphapo_cli.tracking.wandb import open_tracker; from alphapo_cli.config.schema import TrackingConfig\n"
        "t = open_tracker(TrackingConfig(), Path(sys.argv[1]), 'abc', 'n', None, 'train', {})\n"
        "t.log(0, {'a': 1.5}); t.finish({}, 0)\n"
    )
    loud = {"WANDB_SILENT": "false", "WANDB_QUIET": "false", "WANDB_CONSOLE": "wrap", "WANDB_DIR": "/nowhere/at/all"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        env={**os.environ, **loud, "WANDB_MODE": spelt}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == (1 if spelt == "ofline" else 0), lines
    assert all(line.startswith("alphapo: WANDB_MODE='ofline' is none of") for line in lines)
    _assert_offline_file(tmp_path / "run")


def test_a_setting_that_w_and_b_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(_open(tmp_path, cfg=TrackingConfig(mode="offline", tags=["x" * 65])), NullTracker)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("alphapo: W&B is off for this run (")
    assert "tag" in line
    assert "64 characters" in line


def test_disabled_writes_nothing_and_never_imports_wandb(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from alphapo_cli.tracking.wandb import open_tracker; from alphapo_cli.config.schema import TrackingConfig\n"
        "t = open_tracker(TrackingConfig(mode='online'), Path(sys.argv[1]), 'i', 'n', None, 'train', {})\n"
        "t.log(0, {'a': 1}); t.picture('p', Path('x.png'), 0); t.table('t', [], 0); t.finish({}, 0)\n"
        "assert t.sync_hint() is None\n"
        "assert not {'wandb', 'torch', 'matplotlib'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], check=True, env=environment)
    assert not (tmp_path / "run").exists()


class _Broken:
    """A W&B run whose every method raises."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def log(self, *_: object, **__: object) -> None:
        self.calls.append("log")
        raise RuntimeError("service is gone\nlong story")

    def finish(self, *_: object, **__: object) -> None:
        self.calls.append("finish")
        raise RuntimeError("service is gone")


def test_a_wandb_that_raises_is_reported_once_and_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    run = _Broken()
    tracker = WandbTracker(SimpleNamespace(teardown=lambda: run.calls.append("teardown")), run, None)
    for step in range(3):
        tracker.log(step, {"a": 1.0})
        tracker.picture("curves", Path("missing.png"), step)
    tracker.table("cells", [{"a": 1}], 3)
    tracker.finish({"a": 1}, 0)
    assert capsys.readouterr().err == (
        "alphapo: W&B failed and is left out from here on (service is gone); metrics.jsonl has everything\n"
    )
    assert run.calls == ["log", "finish", "teardown"]


def test_a_row_that_is_no_json_does_not_end_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    WandbTracker(SimpleNamespace(), _Broken(), None).log(0, {"a": object()})
    assert "object has no JSON form" in capsys.readouterr().err


def test_a_missing_picture_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = _open(tmp_path)
    tracker.picture("curves", tmp_path / "missing.png", 0)
    tracker.finish({}, 0)
    assert "W&B failed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_service_may_be_killed_in_the_middle(tmp_path: Path) -> None:
    script = (
        "import os, sys, time, signal; from pathlib import Path\n"
        "from alphapo_cli.tracking.wandb import open_tracker; from alphapo_cli.config.schema import TrackingConfig\n"
        "def start(i): return open_tracker(TrackingConfig(), Path(sys.argv[1]), i, 'n', None, 'train', {})\n"
        "t = start('first'); t.log(0, {'a': 1})\n"
        "children = Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text().split()\n"
        "assert children; [os.kill(int(c), signal.SIGKILL) for c in children]\n"
        "for s in range(1, 6): time.sleep(0.1); t.log(s, {'a': s})\n"
        "t.finish({}, 0)\n"
        "t = start('second'); t.log(0, {'a': 1}); t.finish({}, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("alphapo: W&B failed and is left out from here on")
    (second,) = (path for path in live_files(tmp_path) if path.name == "run-second.wandb")
    assert read(second).exit_code == 0


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """Answers GET, and refuses every key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def _online(run_dir: Path, environment: dict[str, str]) -> tuple[str, float]:
    """stderr and the seconds of a process that tracks online, asks nothing (stdin is a closed pipe) and succeeds."""
    script = (
        "import sys; from pathlib import Path\n"
        "from alphapo_cli.tracking.wandb import open_tracker; from alphapo_cli.config.schema import TrackingConfig\n"
        "t = open_tracker(TrackingConfig(mode='online'), Path(sys.argv[1]), 'abc', 'n', None, 'train', {})\n"
        "t.log(0, {'a': 1.5}); t.finish({}, 0)\n"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, str(run_dir)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr, time.monotonic() - started


def _assert_offline_file(run_dir: Path) -> None:
    (path,) = live_files(run_dir)
    assert path.parent.name.startswith("offline-run-")
    assert [(row["_step"], row["a"]) for row in read(path).history] == [(0, 1.5)]


@pytest.mark.slow
def test_online_without_a_key_goes_offline_without_asking(tmp_path: Path) -> None:
    stderr, _ = _online(tmp_path / "run", {})
    assert stderr == ("alphapo: W&B is offline for this run: no API key (type 'wandb login', or set WANDB_API_KEY)\n")
    _assert_offline_file(tmp_path / "run")


@pytest.mark.slow
def test_online_with_a_silent_server_goes_offline_in_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        stderr, seconds = _online(tmp_path / "run", {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": url})
    assert stderr == "alphapo: W&B is offline for this run: 127.0.0.1 does not answer\n"
    assert seconds < 30
    _assert_offline_file(tmp_path / "run")


@pytest.mark.slow
def test_online_with_a_refused_key_goes_offline(tmp_path: Path, refusing_server: str) -> None:
    key = "a1b2" * 10
    stderr, seconds = _online(tmp_path / "run", {"WANDB_API_KEY": key, "WANDB_BASE_URL": refusing_server})
    assert [line for line in stderr.splitlines() if line.startswith("alphapo: W&B is offline for this run:")]
    assert key not in stderr
    assert seconds < 30
    _assert_offline_file(tmp_path / "run")


def test_online_continues_above_the_servers_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    sent: list[tuple[int, dict[str, Any]]] = []
    run = SimpleNamespace(
        starting_step=17,
        log=lambda row, step: sent.append((step, row)),
        summary=SimpleNamespace(update=lambda _: None),
        finish=lambda exit_code: None,
    )
    asked: dict[str, Any] = {}

    def init(**arguments: Any) -> Any:
        asked.update(arguments)
        return run

    monkeypatch.setattr("alphapo_cli.tracking.wandb.online_obstacle", lambda _: None)
    monkeypatch.setattr(wandb, "init", init)
    tracker = _open(tmp_path, mode="online", history=[{"step": step, "a": step} for step in (0, 16, 32)])
    tracker.log(48, {"a": 48})
    tracker.finish({}, 0)
    assert sent == [(32, {"a": 32}), (48, {"a": 48})]
    assert (asked["mode"], asked["resume"], asked["id"]) == ("online", "allow", "abc123")
    assert tracker.sync_hint() is None


def test_the_key_is_found_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        setup=lambda: SimpleNamespace(settings=SimpleNamespace(base_url="https://wandb.example", api_key=None))
    )
    monkeypatch.setattr(wandb_preflight, "_answers", lambda _: True)
    assert str(wandb_preflight.online_obstacle(fake)).startswith("no API key")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine wandb.example\n  login user\n  password 1234\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert wandb_preflight.online_obstacle(fake) is None


def test_secrets_stay_here() -> None:
    kept = {
        "probe": {"max_new_tokens": 40},
        "model": {"path": "org/name", "eos_token": "</s>", "num_key_value_heads": 2},
        "data": {"keyword": "x", "max_unknown": 0.01, "path": "/data/task-a-rather-long-name-here.jsonl"},
        "token": 3,
        "names": ["a", "b"],
    }
    secret = {
        "api_key": "x",
        "HF_TOKEN": "x",
        "apiKey": "x",
        "secret": {"deep": "x"},
        "db_password": "x",
        "judge": {"token": "x", "url": "https://user:pass@host/v1"},
        "headers": ["Bearer sk-" + "a" * 30],
        "note": "hf_" + "A" * 34,
    }
    cleaned = without_secrets({**kept, **secret})
    assert cleaned == {**kept, "judge": {}, "headers": []}


def test_no_secret_reaches_the_file(tmp_path: Path) -> None:
    _open(tmp_path, config={"judge": {"api_key": "squirrel-4711", "model": "m"}}).finish({}, 0)
    (path,) = live_files(tmp_path)
    assert read(path).config["judge"] == {"model": "m"}
    assert b"squirrel" not in path.read_bytes()


def test_the_sweeps_own_run_carries_pictures_and_table(tmp_path: Path) -> None:
    picture = tmp_path / "outcome.png"
    Image.new("RGB", (2, 1), "red").save(picture)
    cells = [
        {"id": "a", "objective.shape.alpha": -1.0, "state": "complete", "displacement/chosen": -0.5},
        {"id": "b", "objective.shape.alpha": 0.5, "state": "failed", "reason": "loss is not finite"},
    ]
    for _ in range(2):  # the second time is the same line again
        hint = log_group_summary(
            open_tracker(TrackingConfig(), tmp_path, "sweep-0f", "alpha-0f", "alpha-0f", "sweep", {}),
            {"outcome": picture}, cells, {"best": "a"}, exit_code=1,
        )  # fmt: skip
    (path,) = live_files(tmp_path)
    found = read(path)
    assert (found.group, found.job_type, found.exit_code) == ("alpha-0f", "sweep", 1)
    assert hint == f"wandb sync {path.parent}"
    (row,) = found.history
    assert row["outcome"]["_type"] == "image-file"
    assert (path.parent / "files" / row["outcome"]["path"]).read_bytes() == picture.read_bytes()
    table = json.loads((path.parent / "files" / row["cells"]["path"]).read_text())
    assert table["columns"] == ["id", "objective.shape.alpha", "state", "displacement/chosen", "reason"]
    assert table["data"] == [
        ["a", -1.0, "complete", -0.5, None],
        ["b", 0.5, "failed", None, "loss is not finite"],
    ]


def test_an_overlay_chart_holds_every_point_of_every_line(tmp_path: Path) -> None:
    lines = {"alpha=0": [(0.0, 0.0), (16.0, -0.5)], "alpha=1": [(0.0, 0.0), (16.0, -0.25)]}
    tracker = open_tracker(TrackingConfig(), tmp_path, "s", "s", "g", "sweep", {})
    log_group_summary(tracker, {}, [], {}, overlays=lambda: {"displacement/chosen": lines})
    (path,) = live_files(tmp_path)
    (row,) = (r for r in read(path).history if any("overlay" in key for key in r))
    (value,) = (v for key, v in row.items() if "overlay/displacement/chosen" in key)
    table = json.loads((path.parent / "files" / value["path"]).read_text())
    drawn = [dict(zip(table["columns"], cells, strict=True)) for cells in table["data"]]
    for label, line in lines.items():
        assert [(d["step"], d["lineVal"]) for d in drawn if d["lineKey"] == label] == line


def test_the_sync_hint_can_be_pasted(tmp_path: Path) -> None:
    run_dir = tmp_path / "my runs"
    tracker = _open(run_dir)
    tracker.finish({}, 0)
    (path,) = live_files(run_dir)
    assert shlex.split(str(tracker.sync_hint())) == ["wandb", "sync", str(path.parent)]
