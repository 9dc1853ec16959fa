"""The commit in a manifest is alphapo's own; no repository of somebody else's is asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from alphapo_cli.runs import provenance


def test_a_foreign_repository_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hook").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "hook").chmod(0o755)
    for line in (["init", "-q"], ["config", "core.fsmonitor", str(tmp_path / "hook")]):
        subprocess.run(["git", *line], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    found = provenance.git_commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40
    assert not (tmp_path / "ran").exists()


def test_an_installed_package_asks_no_repository_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    installed = tmp_path / ".venv" / "alphapo_cli" / "runs"
    installed.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(installed / "provenance.py"))
    assert provenance.git_commit() is None
