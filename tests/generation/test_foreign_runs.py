"""A run directory may be somebody else's: its settings are read, its code does not run and nothing in it is resolved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ran

SECRET = "sk-nobody-may-see-this"


@pytest.fixture
def foreign(trained: Ran, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.path, tmp_path / "foreign"))


def changed(run: Path, group: str, key: str, value: str) -> None:
    """Put a value of a group into config.yaml, as an editor would."""
    lines = (run / "config.yaml").read_text().splitlines()
    start = lines.index(f"{group}:")
    at = next(i for i in range(start, len(lines)) if lines[i].startswith(f"  {key}:"))
    lines[at] = f"  {key}: {value}"
    (run / "config.yaml").write_text("\n".join(lines) + "\n")


LINE = ("generation.backend=transformers", "data.limit=2", "generation.max_new_tokens=4")


def test_its_code_runs_only_where_that_is_typed(foreign: Path, alphapo: Callable[..., Ran], tmp_path: Path) -> None:
    changed(foreign, "model", "trust_remote_code", "true")
    config = foreign / "model" / "config.json"
    settings = json.loads(config.read_text())
    settings |= {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, "model_type": "evil"}
    config.write_text(json.dumps(settings))
    (foreign / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    ran = alphapo("generate", str(foreign), *LINE)
    assert ran.code in (1, 2)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["system", "template"])
def test_an_interpolation_in_it_is_not_resolved(
    key: str, foreign: Path, alphapo: Callable[..., Ran], tmp_path: Path
) -> None:
    changed(foreign, "data", key, "'${oc.env:OPENAI_API_KEY}'")
    ran = alphapo("generate", str(foreign), *LINE, env={"OPENAI_API_KEY": SECRET})
    assert ran.code == 2
    assert f"data.{key} holds an interpolation (${{...}})" in ran.fault
    assert SECRET not in ran.out + ran.err
    assert not any(SECRET in f.read_text(errors="replace") for f in (tmp_path / "runs").rglob("*") if f.is_file())


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "data: {max_length: many}\n"])
def test_a_damaged_configuration_is_named(text: str, foreign: Path, alphapo: Callable[..., Ran]) -> None:
    (foreign / "config.yaml").write_text(text)
    ran = alphapo("generate", str(foreign), *LINE)
    assert ran.code == 2
    assert "config.yaml" in ran.fault or "prompts" in ran.fault


def test_a_run_as_it_is(foreign: Path, alphapo: Callable[..., Ran]) -> None:
    ran = alphapo("generate", str(foreign), *LINE)
    assert ran.code == 0, ran.err
