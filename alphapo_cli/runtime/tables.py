"""Tables for a terminal, whose cells hold names of columns, files and models: text of others."""

from __future__ import annotations

from typing import Any

from rich.table import Table as RichTable

from alphapo_cli.errors import visible


class Table(RichTable):
    """A rich table that shows control characters of its title and cells, where they are text, and sends none."""

    def __init__(self, *headers: Any, title: str | None = None, **settings: Any) -> None:
        super().__init__(*headers, title=None if title is None else visible(title), **settings)

    def add_row(self, *cells: Any, **settings: Any) -> None:
        """See rich's; cells of text are made `visible`."""
        super().add_row(*(visible(cell) if isinstance(cell, str) else cell for cell in cells), **settings)
