"""Tables for a terminal, whose cells hold names of columns, files and models: text of others."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

from alphapo_cli.errors import visible


class Table(RichTable):
    """A rich table that shows its texts as they are.

    Control characters become visible, and what rich would take for a style, such as `[red]`, is no style.
    """

    def __init__(self, *headers: Any, title: str | None = None, **settings: Any) -> None:
        super().__init__(*map(_plain, headers), title=_plain(title), **settings)

    def add_column(self, header: Any = "", *rest: Any, **settings: Any) -> None:
        """See rich's."""
        super().add_column(_plain(header), *rest, **settings)

    def add_row(self, *cells: Any, **settings: Any) -> None:
        """See rich's."""
        super().add_row(*map(_plain, cells), **settings)


def _plain(cell: Any) -> Any:
    return escape(visible(cell)) if isinstance(cell, str) else cell
