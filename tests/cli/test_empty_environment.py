"""The wheel and the sdist in an environment that holds nothing else, used in a directory that holds nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SHORT = ("trainer.max_steps=4", "data.glassbox.pairs=64", "probe.pairs=8", "probe.samples=8")


def ran(line, cwd, env=None):
    done = subprocess.run([str(word) for word in line], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist of the tree as it is."""
    folder = tmp_path_factory.mktemp("dist")
    ran([Path(sys.executable).with_name("uv"), "build", "--quiet", "--out-dir", folder, ROOT], folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module", params=["wheel", pytest.param("sdist", marks=pytest.mark.nightly)])
def command(request, built, tmp_path_factory):
    """`alphapo` in an environment of its own."""
    venv = tmp_path_factory.mktemp("empty") / "venv"
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "EXTRAS")}
    ran([ROOT / ".ci" / "install"], ROOT, {**own, "VENV": str(venv), "PACKAGE": str(built[request.param])})
    yield venv / "bin" / "alphapo"
    shutil.rmtree(venv)  # two gigabytes


def test_a_sweep_runs_there(command, shared_cache, tmp_path):
    env = {name: value for name, value in environment(shared_cache).items() if name != "PYTHONPATH"}
    done = ran([command, "sweep", "alpha", "objective.shape.alpha=-1,0,1", *SHORT], tmp_path, env)
    assert "3 cells" in done.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    assert {"report.html", "displacement.png", "outcome.png"} <= {path.name for path in sweep.iterdir()}
    program = "import alphapo_cli, importlib.util as u; print(alphapo_cli.__path__[0], u.find_spec('vllm'), u.find_spec('pytest'))"
    where, *extras = ran([command.with_name("python"), "-c", program], tmp_path, env).stdout.split()
    assert str(command.parents[1]) in where
    assert extras == ["None", "None"]
    # What is not there is named with the extra that brings it.
    refused = subprocess.run(
        [str(command), "generate", "generation=vllm"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert refused.returncode == 2
    assert "vllm" in refused.stderr.splitlines()[-1]
    assert "pip install" in refused.stderr.splitlines()[-1]
