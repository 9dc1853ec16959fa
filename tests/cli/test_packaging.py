"""The wheel: what it holds, and that an installed command finds its configuration from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def pip(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (made,) = folder.glob("alphapo-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel alone in a folder; what it depends on comes from this environment."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    return target


def alphapo(installed, cwd, *arguments):
    program = "import sys; from alphapo_cli.cli.main import main; main(sys.argv[1:])"
    env = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_yaml_is_inside_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("conf", "sweeps"):
        files = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*.yaml")}
        assert files
        assert {f"alphapo_cli/{name}" for name in files} <= names


def test_nothing_else_is_put_at_the_top(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"alphapo_cli"}
    assert not [name for name in names if "test" in name or name.endswith((".pyc", ".ipynb"))]


def test_every_module_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "alphapo_cli").rglob("*.py")}
    assert modules <= names


def test_the_parts_of_the_report_are_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    parts = {p.relative_to(ROOT).as_posix() for p in (ROOT / "alphapo_cli" / "report").iterdir() if p.is_file()}
    assert {Path(p).suffix for p in parts} >= {".j2", ".css", ".js"}
    assert parts <= names


def test_its_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (entry,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
    assert "alphapo = alphapo_cli.cli.main:main" in archive.read(entry).decode()
    (metadata,) = [n for n in archive.namelist() if n.endswith("/METADATA")]
    text = archive.read(metadata).decode()
    assert "Name: alphapo\n" in text
    for extra in ("vllm", "vllm-cpu", "slurm", "ray", "test", "bench"):
        assert f"Provides-Extra: {extra}\n" in text
    assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())


def test_an_installed_command_finds_its_configuration_from_anywhere(installed, tmp_path):
    import json

    conf = json.loads(alphapo(installed, tmp_path, "env"))["conf"]
    assert conf == str(installed / "alphapo_cli" / "conf")
    assert "name: dpo" in alphapo(installed, tmp_path, "train", "objective=dpo", "--print-config")
    assert alphapo(installed, tmp_path, "sweep", "alpha", "--print-config").startswith("# 13 cells over")
    assert list(tmp_path.iterdir()) == []


def test_the_command_of_this_environment_agrees_with_the_module(tmp_path):
    script = Path(sys.executable).with_name("alphapo")
    forms = [[str(script)], [sys.executable, "-m", "alphapo_cli"]]
    said = [subprocess.run([*f, "--version"], cwd=tmp_path, capture_output=True, text=True).stdout for f in forms]
    assert said[0] == said[1] != ""
