"""Text that a terminal shows, made as a string."""

from __future__ import annotations

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
    """Tables and lines as plain text, without colour codes and trailing blanks."""
    console = Console(file=StringIO(), width=width, color_system=None, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())


def table(*columns: str) -> Table:
    """A table with a head; the first column to the left, the others to the right."""
    result = Table(box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        result.add_column(column, justify="right" if position else "left")
    return result


def markdown(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)
) -> str:
    """A table that is Markdown as well; some columns to the left, the others to the right."""
    columns = (
        Column(head, justify="left" if index in left else "right")
        for index, head in enumerate(heads)
    )
    result = Table(*columns, box=box.MARKDOWN)
    for row in rows:
        result.add_row(*map(escape, row))
    # Wider than any table: nothing is cut, whatever the terminal.
    return render(result, width=1000).strip()


def percent(value: float, digits: int = 2) -> str:
    """A share in per cent; a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}%}"


def json_value(value: Any) -> Any:
    """A value for JSON, which has no NaN: null."""
    return None if isinstance(value, float) and math.isnan(value) else value
