"""`${oc.env:...}` on a user's line is for paths; anywhere else it would carry a secret into a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from alphapo_cli.config.compose import compose, compose_each
from alphapo_cli.config.overrides import Sources, read_line
from alphapo_cli.config.schema import TrainConfig
from alphapo_cli.errors import ConfigError

SECRET = "sk-nobody-may-see-this"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("SCRATCH", "/scratch/me")


def composed(*line: str, user: Path | None = None) -> TrainConfig:
    sources = Sources(user)
    return compose("train", TrainConfig, [read_line(line, sources)], sources)


@pytest.mark.parametrize(
    "line",
    ["run.dir=${oc.env:SCRATCH}/runs", "model.path=${oc.env:SCRATCH}/model", "model.reference=${oc.env:SCRATCH}/model"],
)
def test_paths_may(line: str) -> None:
    key = line.partition("=")[0].split(".")
    assert str(getattr(getattr(composed(line, "data=glassbox"), key[0]), key[1])).startswith("/scratch/me/")


@pytest.mark.parametrize(
    "line",
    ["data.system=${oc.env:OPENAI_API_KEY}", "data.system='key ${oc.env:OPENAI_API_KEY}'", "data.template=${oc.env:OPENAI_API_KEY}",
     "tracking.tags=[${oc.env:OPENAI_API_KEY}]", "run.name=${oc.env:OPENAI_API_KEY}", "data.system='${oc.decode:${oc.env:OPENAI_API_KEY}}'",
     "data.chat_template_kwargs={a:'${oc.env:OPENAI_API_KEY}'}"],
)  # fmt: skip
def test_nothing_else_may(line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composed(line)
    assert SECRET not in str(refused.value)
    assert line.partition("=")[0] in str(refused.value)


def test_nor_by_way_of_a_path() -> None:
    with pytest.raises(ConfigError, match=r"data.system: an interpolation"):
        composed("model.path=${oc.env:OPENAI_API_KEY}", "data=glassbox", "data.system=${model.path}")


def test_nor_in_a_cell_or_a_file(tmp_path: Path) -> None:
    sources = Sources()
    cells = [read_line([f"data.system={text}"], sources) for text in ("a", "${oc.env:OPENAI_API_KEY}")]
    with pytest.raises(ConfigError, match=r"data.system: an interpolation"):
        compose_each("train", TrainConfig, [], cells, sources)
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text("# @package _global_\ndata:\n  system: ${oc.env:OPENAI_API_KEY}\n")
    with pytest.raises(ConfigError, match=r"data.system: an interpolation") as refused:
        composed("experiment=mine", user=tmp_path)
    assert SECRET not in str(refused.value)
