"""docs/architecture.md shows the levels as the contract has them, and names files that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
assert _spec is not None
assert _spec.loader is not None
architecture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(architecture)


def test_the_picture_is_the_contract() -> None:
    assert architecture.PAGE.read_text(encoding="utf-8") == architecture.page()


def test_every_place_has_a_level_and_no_import_leads_up() -> None:
    package = ROOT / "alphapo_cli"
    places = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/__init__.py")}
    assert {place for level in architecture.levels() for place in level} == places - {"__init__"}
    assert architecture.counts()["edges not downwards"] == 0


def test_there_are_no_more_places_levels_and_edges_than_the_page_says() -> None:
    most = re.search(
        r"at most (\d+) places, (\d+) levels and (\d+) edges", architecture.PAGE.read_text(encoding="utf-8")
    )
    assert most is not None
    limits = dict(zip(("places", "levels", "edges"), map(int, most.groups()), strict=True))
    assert limits == {"places": 21, "levels": 14, "edges": 106}
    counts = architecture.counts()
    assert {what: counts[what] for what in limits if counts[what] > limits[what]} == {}


def test_the_walks_name_files_that_exist() -> None:
    text = architecture.PAGE.read_text(encoding="utf-8").split("## Six decisions")[0]
    names = re.findall(r"`([\w/]+\.py)`", text)
    assert len(names) > 30
    files = [str(p.relative_to(ROOT / "alphapo_cli")) for p in (ROOT / "alphapo_cli").rglob("*.py")]
    for name in names:
        assert any(file == name or file.endswith(f"/{name}") for file in files), name


def test_what_is_larger_than_the_rest_is_named_there() -> None:
    text = (
        architecture.PAGE.read_text(encoding="utf-8").split("## Larger than the rest")[1].split("## Six decisions")[0]
    )
    named = re.findall(r"`([\w./]+)`", text)
    assert sorted(architecture.larger()) == sorted(set(named) - {"cli/"})
