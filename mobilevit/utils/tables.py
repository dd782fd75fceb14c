"""Tables and text for terminals, rendered to strings."""

import math
from collections.abc import Collection, Iterable, Sequence
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Column, Table

WIDTH = 110


def render(*parts: RenderableType, width: int = WIDTH) -> str:
    """Render tables and lines without colour codes or trailing spaces."""
    console = Console(file=StringIO(), width=width, color_system=None, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


def table(*columns: str) -> Table:
    """An empty table; its first column is left-aligned, the others right-aligned."""
    result = Table(box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        result.add_column(column, justify="right" if position else "left")
    return result


def markdown(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)
) -> str:
    """A table in Markdown; the columns in `left` are left-aligned, the others right-aligned.

    >>> print(markdown(("px", "ms"), [("224", "9.5")]))
    | px  |  ms |
    |-----|-----|
    | 224 | 9.5 |
    """
    columns = (
        Column(head, justify="left" if index in left else "right")
        for index, head in enumerate(heads)
    )
    result = Table(*columns, box=box.MARKDOWN)
    for row in rows:
        result.add_row(*map(escape, row))
    # Wider than any table, so that nothing is cut or wrapped.
    return render(result, width=1000).strip()


def percent(value: float, digits: int = 2) -> str:
    """A fraction in per cent; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.{digits}%}"


def json_value(value: Any) -> Any:
    """Replace NaN, which JSON lacks, by None."""
    return None if isinstance(value, float) and math.isnan(value) else value
