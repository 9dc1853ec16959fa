"""`alphapo ls`, `diff`, `rm` and `clean`: they say what is there, and take away only what nobody works on."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alphapo_cli.runtime.wording import duration, rate, size
from alphapo_cli.storage.run_lock import acquire
from tests.crafted_sweep import ALPHA, craft


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    """A folder with a complete run, an interrupted one, an empty generation, a saved model and a foreign folder."""
    folder = tmp_path / "runs"
    shutil.copytree(trained.path, folder / "first", ignore=shutil.ignore_patterns("wandb"))
    shutil.copytree(trained.path, folder / "second", ignore=shutil.ignore_patterns("wandb"))
    summary = json.loads((folder / "second" / "summary.json").read_text())
    (folder / "second" / "summary.json").write_text(json.dumps({"state": "interrupted", "reason": "Ctrl-C", "step": 1}))
    assert summary["state"] == "complete"
    (folder / "answers").mkdir()
    (folder / "answers" / "manifest.json").write_text(json.dumps({"identity": {"prompts": "x", "generator": "g"}}))
    shutil.copytree(trained.path / "model", folder / "a-model")
    (folder / "notes").mkdir()
    (folder / "notes" / "todo.txt").write_text("x")
    return folder


class TestLs:
    def test_every_kind_and_state(self, runs, alphapo):
        ran = alphapo("ls")
        assert ran.code == 0
        rows = {line.split()[0]: line for line in ran.out.splitlines()[1:]}
        assert rows.keys() == {"first", "second", "answers"}
        assert re.search(r"run +complete +true win rate \d+ % \[\d+, \d+\], n = \d+ ", rows["first"])
        assert re.search(r"run +interrupted +Ctrl-C", rows["second"])
        assert re.search(r"generation +interrupted", rows["answers"])
        following = [shlex.split(line, comments=True)[1:] for line in ran.err.splitlines()]
        assert following[:2] == [["alphapo", "rm", "DIR"], ["alphapo", "diff", "A", "B"]]
        assert following[2][:2] == ["alphapo", "report"]  # the last line can be typed as it is
        assert alphapo(*following[2][1:]).code == 0

    def test_of_a_sweep_the_cells_are_next(self, alphapo, tmp_path):
        craft(tmp_path / "runs" / "my sweep", f"{ALPHA}=0,1")
        ran = alphapo("ls")
        last = shlex.split(ran.err.splitlines()[-1], comments=True)
        assert last == ["next:", "alphapo", "ls", "runs/my sweep", "--sort", "outcome"]
        summary = tmp_path / "runs" / "my sweep" / "summary.json"
        best = {"id": "x", "value": 0.6, "metric": "glassbox/true_win_rate", "overrides": [f"{ALPHA}=0.5"]}
        summary.write_text(json.dumps({"best": best}))
        assert "best alpha=0.5: true win rate 60 %" in alphapo("ls").out
        cells = alphapo(*last[2:])
        assert f"{ALPHA}=1" in cells.out
        assert "alphapo report" in cells.err.splitlines()[-1]

    @pytest.mark.parametrize("odd", ["a pipe", "a device", "deep", "large", "other types"])
    def test_somebody_elses_directory_hides_no_other(self, odd, runs, alphapo):
        file = runs / "answers" / "manifest.json"
        if odd == "other types":
            (runs / "answers" / "summary.json").write_text(
                '{"state": "complete", "metrics": {"answers": 1, "share_cut": "x"}}'
            )
        else:
            file.unlink()
        if odd == "a pipe":
            os.mkfifo(file)  # who opens it for reading waits for a writer
        elif odd == "a device":
            file.symlink_to("/dev/zero")
        elif odd == "deep":
            file.write_text("[" * 100_000)
        elif odd == "large":
            with file.open("wb") as stream:
                stream.truncate(1 << 40)
        ran = alphapo("ls")
        assert ran.code == 0, ran.err
        assert "first" in ran.out
        assert ("damaged" in ran.out) == (odd == "other types")
        assert alphapo("diff", "runs/answers", "runs/answers").code in (0, 2)
        assert "--debug" not in alphapo("verify", "runs/answers").err

    def test_a_folder_that_cannot_be_read_hides_no_other(self, runs, alphapo, monkeypatch):
        listdir = os.listdir

        def refused(place="."):
            if str(place).endswith("/a-secret"):
                raise PermissionError(13, "Permission denied", str(place))
            return listdir(place)

        (runs / "a-secret").mkdir()
        monkeypatch.setattr(os, "listdir", refused)
        ran = alphapo("ls")
        assert {line.split()[0] for line in ran.out.splitlines()[1:]} == {"first", "second", "answers"}
        assert "note: 1 folder cannot be read, runs/a-secret first" in ran.err

    @pytest.mark.parametrize("section", ["metrics", "data", "files", "verdict", "cost"])
    def test_a_section_of_another_type_is_damage(self, section, runs, alphapo):
        (runs / "first" / "summary.json").write_text(json.dumps({"state": "complete", section: [1]}))
        (runs / "second" / "outcome.json").write_text(json.dumps({section: [1]}))
        ran = alphapo("ls")
        assert re.search(r"first +run +damaged", ran.out)
        assert alphapo("diff", "runs/first", "runs/second").code == 0

    def test_as_json_and_sorted(self, runs, alphapo):
        found = json.loads(alphapo("ls", "runs", "--sort", "size", "--json", "-").out.splitlines()[-1])
        sizes = [entry["size"] for entry in found["entries"]]
        assert sizes == sorted(sizes, reverse=True)
        first = next(e for e in found["entries"] if e["path"].endswith("first"))
        samples = json.loads((runs / "first" / "samples" / "reference.json").read_text())
        assert first["size"] == sum(p.stat().st_size for p in (runs / "first").rglob("*") if p.is_file())
        assert f"n = {len(samples)}" in first["outcome"]
        assert 0 <= first["value"] <= 1

    def test_the_interval_of_an_evaluation_is_that_of_its_judge_at_its_level(self, runs, alphapo):
        """Of 4 of 10 wins at 95 % without the file's interval: [14, 73]."""
        found = {
            "metrics": {"eval/win_rate": 0.4, "eval/n_total": 10}, "confidence": 0.9,
            "intervals": {"eval/win_rate": [0.2, 0.6]},
        }  # fmt: skip
        (runs / "first" / "outcome.json").write_text(json.dumps(found))
        assert "win rate 40 % [20, 60], n = 10 (90 % interval)" in alphapo("ls").out
        (runs / "first" / "outcome.json").write_text(json.dumps(found | {"confidence": 0.95}))
        assert re.search(r"win rate 40 % \[20, 60\], n = 10  ", alphapo("ls").out)
        judged = runs / "judged"
        judged.mkdir()
        (judged / "manifest.json").write_text(json.dumps({"identity": {"judge": {}}}))
        results = {
            "state": "complete",
            "win_rate": 40.0,
            "n_total": 10,
            "win_rate_interval": [20, 60],
            "confidence": 0.9,
        }
        (judged / "results.json").write_text(json.dumps(results))
        assert "win rate 40 % [20, 60], n = 10 (90 % interval) against the reference" in alphapo("ls").out

    def test_a_running_run(self, runs, alphapo):
        (runs / "second" / "summary.json").write_text(json.dumps({"state": "running"}))
        lock = acquire(runs / "second" / ".claim")
        try:
            assert "running" in alphapo("ls").out
        finally:
            lock.release()

    @pytest.mark.parametrize(
        ("line", "said"),
        [(("ls", "gone"), "gone: no such folder"), (("ls", "runs", "--sort", "sise"), "did you mean 'size'?")],
    )
    def test_what_is_refused(self, line, said, runs, alphapo):
        ran = alphapo(*line)
        assert ran.code == 2
        assert said in ran.fault

    def test_an_empty_folder(self, alphapo, tmp_path):
        (tmp_path / "runs").mkdir()
        ran = alphapo("ls")
        assert (ran.code, ran.out) == (0, "")
        assert "alphapo train" in ran.err

    def test_nothing_heavy_is_imported(self, runs):
        program = (
            "import sys\nfrom alphapo_cli.cli.main import main\n"
            f"try:\n    main(['ls', {str(runs)!r}])\nexcept SystemExit:\n    pass\n"
            "sys.exit(str(sorted({'torch', 'transformers', 'numpy', 'hydra'} & set(sys.modules)) or ''))\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or done.stderr.strip().endswith("]") is False, done.stderr


class TestDiff:
    def test_the_same_run(self, runs, alphapo):
        shutil.copytree(runs / "first", runs / "third")
        ran = alphapo("diff", "runs/first", "runs/third")
        assert ran.code == 0
        assert ran.out.startswith("no difference")

    def test_a_setting_and_a_result(self, runs, alphapo):
        config = runs / "second" / "config.yaml"
        config.write_text(re.sub(r"^  beta: .*$", "  beta: 7.5", config.read_text(), flags=re.M))
        ran = alphapo("diff", "runs/first", "runs/second", "--json", "-")
        found = json.loads(ran.out.splitlines()[-1])["differences"]
        assert found["configuration"] == {"objective.beta": {"a": 2.5, "b": 7.5}}
        assert found["results"]["state"] == {"a": "complete", "b": "interrupted"}
        assert not any(key.endswith("/p10") for key in found["results"])
        first, second = ran.out.splitlines()[:2]  # names of cells are hashes: what they are is said
        assert re.match(
            r"first: alphapo, alpha 0.25, beta 2.5, .*; complete; true win rate \d+ % \[\d+, \d+\], n = ", first
        )
        assert re.match(r"second: alphapo, alpha 0.25, beta 7.5, .*; interrupted; Ctrl-C$", second)

    def test_rates_stand_with_their_n_and_hashes_are_called_so(self, runs, alphapo):
        for name, won in (("first", 0.5), ("third", 0.4)):
            if name == "third":
                shutil.copytree(runs / "first", runs / "third")
            found = {
                "metrics": {"eval/win_rate": won, "eval/n_total": 10}, "confidence": 0.9,
                "intervals": {"eval/win_rate": [won - 0.2, won + 0.2]},
            }  # fmt: skip
            (runs / name / "outcome.json").write_text(json.dumps(found))
        ran = alphapo("diff", "runs/first", "runs/third")
        assert re.search(
            r"eval/win_rate +50 % \[30, 70\], n = 10 \(90 % interval\) +40 % \[20, 60\], n = 10 \(90 % interval\)",
            ran.out,
        )
        for name, won in (("e1", 50.0), ("e2", 40.0)):
            (runs / name).mkdir()
            (runs / name / "manifest.json").write_text(
                json.dumps({"identity": {"judge": {}, "outputs": name[1] * 64}, "git_commit": name[1] * 40 + "-dirty"})
            )
            results = {
                "state": "complete", "win_rate": won, "n_total": 10, "win_rate_interval": [won - 20, won + 20],
                "n_wins_base": int(won),
            }  # fmt: skip
            (runs / name / "results.json").write_text(json.dumps(results))
        ran = alphapo("diff", "runs/e1", "runs/e2", "--json", "-")
        assert re.search(r"^win rate +50 % \[30, 70\], n = 10 +40 % \[20, 60\], n = 10$", ran.out, re.M)
        assert re.search(r"^lost +50 +40$", ran.out, re.M)
        assert re.search(r"^outputs +hash 111111111111 +hash 222222222222$", ran.out, re.M)
        assert "hash 111111111111-dirty" in ran.out
        assert json.loads(ran.out.splitlines()[-1])["differences"]["results"]["win_rate"] == {"a": 50.0, "b": 40.0}

    def test_models(self, runs, alphapo):
        ran = alphapo("diff", "runs/a-model", "runs/first/model")
        assert ran.out.startswith("no difference")

    @pytest.mark.parametrize(
        ("other", "said"),
        [("runs/answers", "is a run and runs/answers a generation"), ("runs/notes", "no run, sweep"), ("x", "no such")],
    )
    def test_what_is_refused(self, other, said, runs, alphapo):
        ran = alphapo("diff", "runs/first", other)
        assert ran.code == 2
        assert said in ran.fault


class TestRm:
    def test_it_asks_and_nobody_is_there(self, runs, alphapo, snapshot):
        before = snapshot(runs)
        ran = alphapo("rm", "runs/first")
        assert ran.code == 2
        assert "type --yes" in ran.err
        assert snapshot(runs) == before

    def test_it_removes_what_it_is_told_to(self, runs, alphapo):
        ran = alphapo("rm", "runs/first", "runs/answers", "--yes")
        assert ran.code == 0, ran.err
        assert sorted(p.name for p in runs.iterdir()) == ["a-model", "notes", "second"]

    def test_never_a_running_one(self, runs, alphapo, snapshot):
        lock = acquire(runs / "second" / ".claim")
        try:
            before = snapshot(runs / "first")
            ran = alphapo("rm", "runs/first", "runs/second", "--yes")
            assert ran.code == 2
            assert f"is running (process {os.getpid()} on" in ran.fault
            assert snapshot(runs / "first") == before
        finally:
            lock.release()

    def test_a_sweep_with_a_running_cell(self, runs, alphapo):
        sweep = runs / "alpha-00000000"
        (sweep / "cells").mkdir(parents=True)
        shutil.move(runs / "second", sweep / "cells" / "c1")
        cells = [{"id": "c1", "point": {"seed": 0}, "overrides": ["seed=0"]}]
        (sweep / "sweep.json").write_text(json.dumps({"name": "alpha", "hash": "00000000", "cells": cells}))
        lock = acquire(sweep / "cells" / "c1" / ".claim")
        try:
            assert alphapo("rm", str(sweep), "--yes").code == 2
        finally:
            lock.release()
        assert alphapo("rm", str(sweep), "--yes").code == 0
        assert not sweep.exists()

    @pytest.mark.parametrize("record", ["", "{}", '{"cells": "none"}', '{"method": "bayes"}'])
    def test_a_cell_that_a_damaged_record_hides_is_running_all_the_same(self, record, runs, alphapo):
        sweep = runs / "alpha-00000000"
        (sweep / "cells").mkdir(parents=True)
        shutil.move(runs / "second", sweep / "cells" / "c1")
        (sweep / "sweep.json").write_text(record)
        lock = acquire(sweep / "cells" / "c1" / ".claim")
        try:
            ran = alphapo("rm", str(sweep), "--yes")
        finally:
            lock.release()
        assert ran.code == 2
        assert "is running" in ran.fault
        assert alphapo("rm", str(sweep), "--yes").code == 0
        assert not sweep.exists()

    def test_what_cannot_be_removed_whole_is_named(self, runs, alphapo, monkeypatch):
        """A file of somebody else's in it; the suite may run as root, whom nothing is refused."""

        def refused(folder, *_, **__):
            (Path(folder) / "summary.json").unlink()
            raise PermissionError(13, "Permission denied", "model")

        monkeypatch.setattr("alphapo_cli.cli.housekeeping.removal.shutil.rmtree", refused)
        ran = alphapo("rm", "runs/first", "--yes")
        assert ran.code == 2
        (left,) = runs.glob(".first.*")
        assert f"first: removed in part (Permission denied (model)); remove what is left, {left}, by hand" in ran.err

    @pytest.mark.parametrize("place", ["runs/notes", "runs/a-model", "runs", "gone", "link", "foreign"])
    def test_what_is_none_of_ours_stays(self, place, runs, alphapo, tmp_path, snapshot):
        (tmp_path / "link").symlink_to(runs / "first")
        (tmp_path / "foreign").mkdir()  # other programs sweep, too
        (tmp_path / "foreign" / "sweep.json").write_text('{"method": "bayes", "cells": []}')
        before = snapshot(tmp_path)
        assert alphapo("rm", place, "--yes").code == 2
        assert snapshot(tmp_path) == before


class TestClean:
    @pytest.fixture
    def cache(self, tmp_path) -> Path:
        """Three entries of 1,000 bytes: 40 days, 3 days and no time old."""
        folder = tmp_path / "cache"
        for name, days in (("tokens/old", 40), ("base/recent", 3), ("tokens/new", 0)):
            (folder / name).mkdir(parents=True)
            (folder / name / "data").write_bytes(b"x" * 1000)
            then = time.time() - days * 86400
            for place in (folder / name / "data", folder / name):
                os.utime(place, (then, then))
        return folder

    def left(self, cache):
        return sorted(p.name for p in cache.glob("*/*"))

    def test_what_a_link_leads_to_stays(self, cache, alphapo, tmp_path):
        (tmp_path / "kept").mkdir()
        (cache / "tokens" / "link").symlink_to(tmp_path / "kept")
        os.utime(cache / "tokens" / "link", (1, 1), follow_symlinks=False)
        assert alphapo("clean", "--older-than", "30d", "--yes", cache=cache).code == 0
        assert self.left(cache) == ["new", "recent"]
        assert (tmp_path / "kept").is_dir()

    def test_it_shows_and_removes_nothing(self, cache, alphapo):
        ran = alphapo("clean", cache=cache)
        assert ran.code == 0
        assert "3 entries, 2.9 KiB" in ran.out
        assert re.search(r"tokens +token ids of data +2 ", ran.out)
        assert self.left(cache) == ["new", "old", "recent"]

    @pytest.mark.parametrize(
        ("option", "value", "left"),
        [
            ("--older-than", "30d", ["new", "recent"]),
            ("--older-than", "1w", ["new", "recent"]),
            ("--older-than", "0h", ["new"]),  # entries of the last hour stay
            ("--keep", "2K", ["new", "recent"]),
            ("--keep", "1500", ["new"]),
            ("--keep", "0", ["new"]),
        ],
    )
    def test_by_age_and_by_size(self, option, value, left, cache, alphapo):
        assert alphapo("clean", option, value, "--yes", cache=cache).code == 0
        assert self.left(cache) == left

    @pytest.mark.parametrize(("option", "value"), [("--older-than", "long"), ("--keep", "-3G"), ("--keep", "3X")])
    def test_what_is_refused(self, option, value, cache, alphapo):
        ran = alphapo("clean", option, value, "--yes", cache=cache)
        assert ran.code == 2
        assert option in ran.fault
        assert self.left(cache) == ["new", "old", "recent"]

    def test_it_asks(self, cache, alphapo):
        assert alphapo("clean", "--keep", "0", cache=cache).code == 2
        assert self.left(cache) == ["new", "old", "recent"]


class TestWording:
    def test_figures(self):
        assert rate(0.31, 256, (0.25, 0.37)) == "31 % [25, 37], n = 256"
        assert rate(0.31, None) == "31 %"
        assert rate(0.31, 256, (0.26, 0.36), 0.9) == "31 % [26, 36], n = 256 (90 % interval)"
        assert (
            rate(1.0, 7) == "100 % [57, 100], n = 7"
        )  # 7 / (7 + c^2), c = 2.306 of Student's t with 8 degrees of freedom
        assert (size(0), size(1536), size(5 << 30)) == ("0 B", "1.5 KiB", "5.0 GiB")
        assert (duration(5), duration(200), duration(86400), duration(13 * 86400)) == (
            "5 s",
            "3 min",
            "1 day",
            "13 days",
        )
