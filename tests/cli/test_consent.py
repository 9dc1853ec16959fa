"""The code of a model's directory runs only where the line says so, whatever a stored configuration says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import BARE, TINY, Ran

ANSWERS = ("generation.backend=transformers", "data.limit=2", "generation.max_new_tokens=4")
SHORT = (*TINY, *BARE, "trainer.max_steps=1", "probe.samples=0")
FROM = ("data=glassbox", *SHORT)
TYPED = "model.trust_remote_code=true"
# Every setting and argument that takes a run directory; "{}" is the run.
LINES = {
    "generate": ("generate", "{}", *ANSWERS),
    "train": ("train", "model.path={}", *FROM),
    "run": ("run", "model.path={}", *FROM, "--judge", "glassbox"),
    "sweep": ("sweep", "model.path={}", *FROM, "seed=0,1", "launcher.workers=0"),
    "reference": ("train", *SHORT, "objective=dpo", "model.reference={}"),
    "guide": ("train", *SHORT, "objective=tgdpo", "model.guide={}"),
}


@pytest.fixture
def hostile(trained: Ran, tmp_path: Path) -> Path:
    """A run whose configuration consents, whose model needs code of its own, and which claims no checksums."""
    run = Path(shutil.copytree(trained.path, tmp_path / "hostile"))
    config = (run / "config.yaml").read_text()
    assert "trust_remote_code: false" in config
    (run / "config.yaml").write_text(config.replace("trust_remote_code: false", "trust_remote_code: true"))
    for name, dropped in (("summary.json", ("files", "checksum")), ("manifest.json", ("checksums", "checksum"))):
        kept = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({key: value for key, value in kept.items() if key not in dropped}))
    settings = json.loads((run / "model" / "config.json").read_text())
    settings |= {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, "model_type": "evil"}
    (run / "model" / "config.json").write_text(json.dumps(settings))
    (run / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return run


@pytest.mark.parametrize("command", LINES)
def test_stored_consent_counts_for_nothing(
    command: str, hostile: Path, alphapo: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = alphapo(*(word.format(hostile) for word in LINES[command]))
    assert ran.code in (1, 2), ran.err
    assert not (tmp_path / "ran").exists()
    assert f"type {TYPED}" in ran.err, ran.err


def test_typed_consent_does(hostile: Path, alphapo: Callable[..., Ran], tmp_path: Path) -> None:
    """So that what the others show is not another fault of the directory."""
    alphapo("generate", str(hostile), *ANSWERS, TYPED)
    assert (tmp_path / "ran").exists()


def test_a_judge_that_is_a_run(hostile: Path, alphapo: Callable[..., Ran], tmp_path: Path) -> None:
    """Without vLLM it is refused before that; with it, its code is not run either."""
    rows = [{"instruction": "a", "output": "b", "generator": "g"}]
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text(json.dumps(rows))
    line = ("eval", "one.json", "--reference", "two.json", "--judge", "vllm", f"judge.model={hostile}")
    assert alphapo(*line).code in (1, 2)
    assert not (tmp_path / "ran").exists()
