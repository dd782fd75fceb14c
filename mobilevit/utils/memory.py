"""Main memory: kept for the next tensors, and its peak."""

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4  # of glibc's malloc.h
KEEP = {TRIM_THRESHOLD: -1, TOP_PAD: 64 << 20, MMAP_MAX: 0}
"""Never return memory to the system, and take much at once."""
USUAL = {TRIM_THRESHOLD: 64 << 20, TOP_PAD: 128 << 10, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}
"""What glibc arrives at in a process that has freed a tensor of 32 MiB."""


@contextmanager
def keep_freed_memory(enabled: bool = True) -> Iterator[None]:
    """Let freed memory serve the next tensors inside a `with` block, where malloc is glibc's.

    Else glibc returns a large tensor's memory to the system at once and takes it anew, page by
    page, for the next one: a quarter of a training step on a CPU was measured to go there. All
    threads of the process are affected. Afterwards what is free is returned.
    """
    if not enabled or platform.libc_ver()[0] != "glibc":
        yield
        return
    _set_options(KEEP)
    try:
        yield
    finally:
        return_freed_memory()


def return_freed_memory() -> None:
    """Return what is free to the system, now and later; in forked processes too."""
    if platform.libc_ver()[0] == "glibc":
        _set_options(USUAL)
        ctypes.CDLL(None).malloc_trim(0)


def _set_options(options: dict[int, int]) -> None:
    for name, value in options.items():
        ctypes.CDLL(None).mallopt(name, value)


def peak_memory() -> int:
    """The most main memory that this process has held, in bytes; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
