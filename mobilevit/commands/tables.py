"""Text that a terminal shows, made as a string."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

WIDTH = 110


def render(*parts: RenderableType, width: int = WIDTH) -> str:
    """Tables and lines as plain text, without colour codes and trailing blanks."""
    console = Console(file=StringIO(), width=width, color_system=None, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())
