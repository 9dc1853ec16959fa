"""Pictures are made, but painted only where a test reads them."""

from __future__ import annotations

from typing import Any

import pytest

# Tests with one of these in their names.
READ_IT = ("judgements_of_the_public_tool", "writes_alpacaevals_files")


@pytest.fixture(autouse=True)
def picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Painting takes a third of the time of a small evaluation."""

    def make(results: Any, path: Any, *rates: Any) -> None:
        from alphapo_cli.plots.evaluation import evaluation_figure

        evaluation_figure(results, *rates)

    if not any(part in request.node.name for part in READ_IT):
        monkeypatch.setattr("alphapo_cli.plots.evaluation.evaluation_picture", make)
