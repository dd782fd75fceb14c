"""Calls into Pillow: no warning of its leaves, and whatever it raises leaves as `ImageError`."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

# What Pillow raises on damaged files, collected from fuzzed ones. Only calls into Pillow are
# guarded by it, so that a mistake of our own is not taken for a broken file.
PILLOW_ERRORS: tuple[type[Exception], ...] = (
    OSError,  # truncated or broken data; files that no format recognises
    SyntaxError,  # a header that contradicts itself
    ValueError,  # sizes, palettes and tiles that cannot be
    LookupError,  # IndexError, KeyError: tables that end early, unknown modes
    TypeError,  # tags of another type than the format says
    AttributeError,  # tags that are missing
    EOFError,  # a header without an image
    struct.error,
    zlib.error,
    ArithmeticError,  # OverflowError, ZeroDivisionError: absurd sizes
    AssertionError,  # what Pillow itself took for granted
    RuntimeError,  # the AVIF and WebP libraries
    MemoryError,
    Image.DecompressionBombError,  # an image within an image: ICO, ICNS, GIF frames
)


class ImageError(ValueError):
    """An image that cannot be read: `source` says which one, `reason` why."""

    def __init__(self, source: str, reason: str) -> None:
        """Both go to `args`, which is what crosses process boundaries."""
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        """Say which image, then why."""
        return f"{self.source}: {self.reason}"


class _PillowSilence:
    """Hides the warnings of Pillow's modules while at least one thread is reading.

    `warnings.catch_warnings` alone is not safe here: it saves and restores filters that all
    threads share, so two readers that overlap could bring the filters back too early or leave
    them changed for good. The first reader in therefore changes them, the last one out restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._catcher = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._catcher = warnings.catch_warnings()
                self._catcher.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._catcher.__exit__(None, None, None)


_silence = _PillowSilence()


@contextmanager
def pillow(name: str) -> Iterator[None]:
    """Guard calls into Pillow that concern the image called `name`."""
    with _silence:
        try:
            yield
        except ImageError:
            raise
        except PILLOW_ERRORS as error:
            raise ImageError(name, _reason(error)) from error


def _reason(error: Exception) -> str:
    """What to tell a person about an error of Pillow's."""
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {error}"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    if isinstance(error, OSError):
        return f"cannot be decoded: {error}"
    return f"cannot be decoded: {type(error).__name__} {error}".rstrip()
