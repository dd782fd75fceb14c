"""Progress bars of commands, shown on standard error if that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    description: str, total: int, *, show: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a bar that disappears at the end; yields the function that advances it.

    >>> with progress_bar("reading", total=2) as advance:
    ...     for _ in range(2):
    ...         advance(1)
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(
        transient=True, console=console, disable=not (show and console.is_terminal)
    ) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)
