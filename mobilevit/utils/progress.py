"""Progress bars of commands, shown on standard error if that is a terminal."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_WAITING = 1 << 13  # items handed out at once


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


def map_parallel(
    work: Callable[[T], R],
    items: Sequence[T],
    description: str,
    *,
    workers: int,
    progress: bool = True,
) -> Iterator[R]:
    """Apply `work` to items in threads and yield the results in order, a bounded number ahead."""
    with (
        progress_bar(description, len(items), show=progress) as advance,
        ThreadPoolExecutor(workers) as executor,
    ):
        for begin in range(0, len(items), _WAITING):
            for result in executor.map(work, items[begin : begin + _WAITING]):
                yield result
                advance(1)
