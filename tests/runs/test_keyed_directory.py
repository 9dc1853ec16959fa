"""Directories of answers and evaluations: found by what went in, also after a version that knew fewer settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alphapo_cli.config.schema import RunConfig
from alphapo_cli.errors import UsageError
from alphapo_cli.stages.directories.evaluation import EvalDirectory
from alphapo_cli.stages.directories.generation import GenerateDirectory
from alphapo_cli.storage.hashing import digest

ANSWERS = {
    "generator": "m", "model": {"weights": "w"}, "prompts": "p",
    "generation": {"backend": "transformers", "samples": 1, "max_new_tokens": 9, "temperature": 1.0, "top_p": 1.0,
                   "stop_ids": [2], "seed": 0},
}  # fmt: skip
JUDGED = {"outputs": "o", "reference": "r", "judge": {"name": "openai", "model": "j", "temperature": 1.0, "seed": 0}}
KINDS = [(GenerateDirectory, ANSWERS), (EvalDirectory, JUDGED)]


def made(path: Path, identity: dict) -> Path:
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps({"identity": identity}))
    return path


def changed(identity: dict, **settings: object) -> dict:
    (group,) = identity.keys() & {"generation", "judge"}
    return {**identity, group: {**identity[group], **settings}}


@pytest.mark.parametrize(("kind", "identity"), KINDS)
class TestPlace:
    def test_a_setting_at_its_default_changes_no_name(self, kind, identity, tmp_path, monkeypatch):
        run = RunConfig(dir=str(tmp_path))
        before = kind.place(None, None, run, "m", identity).path
        (group,) = identity.keys() & {"generation", "judge"}
        monkeypatch.setattr(kind, "DEFAULTS", {**kind.DEFAULTS, f"{group}.new": 3})
        assert kind.place(None, None, run, "m", changed(identity, new=3)).path == before
        assert kind.place(None, None, run, "m", changed(identity, new=4)).path != before
        made(before, identity)
        assert kind(before).begun(changed(identity, new=3), replace=False)

    def test_one_that_an_earlier_version_named_is_found(self, kind, identity, tmp_path):
        old = made(tmp_path / f"{kind.COMMAND}-m-{digest(identity)[:8]}", identity)
        assert kind.place(None, None, RunConfig(dir=str(tmp_path)), "m", identity).path == old
        other = kind.place(None, None, RunConfig(dir=str(tmp_path)), "m", changed(identity, seed=1))
        assert not other.path.exists()

    def test_also_inside_a_run(self, kind, identity, tmp_path):
        first = made(tmp_path / kind.COMMAND, changed(identity, seed=1))
        old = made(tmp_path / f"{kind.COMMAND}-{digest(identity)[:8]}", identity)
        run = RunConfig()
        assert kind.place(None, tmp_path, run, "m", identity).path == old
        assert kind.place(None, tmp_path, run, "m", changed(identity, seed=1)).path == first
        assert not kind.place(None, tmp_path, run, "m", changed(identity, seed=2)).path.exists()

    def test_a_default_that_changed_is_named(self, kind, identity, tmp_path, monkeypatch):
        run = RunConfig(dir=str(tmp_path))
        place = made(kind.place(None, None, run, "m", identity).path, identity)
        (group,) = identity.keys() & {"generation", "judge"}
        monkeypatch.setattr(kind, "DEFAULTS", {**kind.DEFAULTS, f"{group}.temperature": 0.7})
        cooler = changed(identity, temperature=0.7)
        assert kind.place(None, None, run, "m", cooler).path == place
        with pytest.raises(UsageError, match=rf"differs in: {group}\.temperature"):
            kind(place).begun(cooler, replace=False)
        assert kind.place(None, None, run, "m", identity).path == place
