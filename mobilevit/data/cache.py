"""A folder of decoded images, so that later epochs and later runs need not decode them again.

Each file holds one image as decoding gives it, at one size: the cache changes no pixel, so it does
not matter which images it has. Files are written in one step and never changed, so any number of
processes and runs can share a folder, and each can be killed at any instant.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL
from filelock import FileLock
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mobilevit.data.errors import DataError
from mobilevit.utils.files import remove_leftovers, replace_file

Decoded: TypeAlias = tuple[Image.Image | np.ndarray, tuple[int, int]]
"""An RGB image, and the (height, width) of the image that it was made from."""

DIGITS = 32
NAME = re.compile(rf"[0-9a-f]{{{DIGITS}}}\.safetensors")
HEADER = 1024
"""Bytes of a file beside its pixels, at most."""
USED = "bytes_used"
"""The file that holds how many bytes all others have, as text of `DIGITS` characters."""


class ImageCache:
    """Images in a folder that grows to at most `limit` bytes; then it keeps those that it has.

    Sources are paths or the content of files. An image is decoded again if its file has another
    size or time of change, or if Pillow has been updated.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        """Create the folder if need be, and delete its oldest images beyond the limit.

        Raises:
            DataError: the folder cannot be written, or holds other files.
        """
        self.folder, self.limit = Path(folder), limit
        self._refused = limit + 1
        """The smallest image that had no room; the folder only fills up."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            with self._lock():
                self._count()
        except OSError as error:
            raise self._failure(error) from error

    def load(
        self, source: str | os.PathLike[str] | bytes, variant: str, decode: Callable[[], Decoded]
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Pixels `[H, W, 3]`, uint8, and the (height, width) of the image that they are from.

        They come from the folder, or else from `decode`, and are then stored if there is room.
        `variant` says how `decode` makes them from the source.

        Raises:
            ImageError: by `decode`.
            DataError: the folder cannot be written, as when the disk is full.
        """
        if isinstance(source, bytes):
            origin, stamp = hashlib.sha256(source).hexdigest(), ""
        else:
            origin = os.path.abspath(source)
            try:
                status = os.stat(origin)
            except OSError:  # `decode` reports why it cannot be read
                return _pixels(decode())
            stamp = f"{status.st_size} bytes, changed at {status.st_mtime_ns} ns, "
        stamp += f"Pillow {PIL.__version__}"
        key = hashlib.sha256(f"{variant}\0{origin}".encode("utf-8", "surrogateescape"))
        path = self.folder / f"{key.hexdigest()[:DIGITS]}.safetensors"
        found = _read(path, stamp)
        if found is None:
            found = _pixels(decode())
            self._store(path, *found, stamp)
        return found

    def _store(self, path: Path, pixels: np.ndarray, size: tuple[int, int], stamp: str) -> None:
        needed = pixels.nbytes + HEADER
        if needed >= self._refused:
            return
        facts = {"stamp": stamp, "height": str(size[0]), "width": str(size[1])}
        try:
            with self._lock():
                fits = self._reserve(needed - (path.stat().st_size if path.exists() else 0))
            if fits:
                with replace_file(path, size=needed) as fresh:
                    save_file({"pixels": pixels}, fresh, facts)
            else:
                self._refused = needed
        except OSError as error:
            raise self._failure(error) from error

    def _reserve(self, needed: int) -> bool:
        """Count bytes that will be written, if they fit."""
        with (self.folder / USED).open("r+b", buffering=0) as file:
            used = int(file.read(DIGITS)) + needed
            if used > self.limit:
                return False
            file.seek(0)
            file.write(f"{used:{DIGITS}}".encode())
        return True

    def _count(self) -> None:
        """Count the bytes in the folder anew, since a killed process may not have written its own.

        The oldest images beyond the limit are deleted.
        """
        images: list[tuple[int, int, Path]] = []  # time, bytes, file
        for path in self.folder.iterdir():
            if NAME.fullmatch(path.name):
                status = path.stat()
                images.append((status.st_mtime_ns, status.st_size, path))
            elif path.name != USED and not path.name.startswith("."):
                raise DataError(
                    f"{self.folder} holds other files, such as {path.name}: choose an empty or a "
                    "new folder as data.cache"
                )
        used = sum(size for _, size, _ in images)
        for _, size, path in sorted(images):
            if used <= self.limit:
                break
            path.unlink()
            used -= size
        with replace_file(self.folder / USED) as fresh:
            fresh.write_text(f"{used:{DIGITS}}")

    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".lock")

    def _failure(self, error: OSError) -> DataError:
        return DataError(
            f"{self.folder}: the cache cannot be written: {error}; choose another data.cache, a "
            "smaller data.cache_gb, or none"
        )


def _pixels(decoded: Decoded) -> tuple[np.ndarray, tuple[int, int]]:
    image, size = decoded
    # Copied from a PIL image, whose own pixels are read-only.
    return np.array(image) if isinstance(image, Image.Image) else image, size


def _read(path: Path, stamp: str) -> tuple[np.ndarray, tuple[int, int]] | None:
    """The pixels in a file, and the size that came with them; None unless it has that stamp."""
    try:
        with safe_open(path, "np") as file:
            facts = file.metadata()
            if facts["stamp"] == stamp:
                return file.get_tensor("pixels"), (int(facts["height"]), int(facts["width"]))
    except (FileNotFoundError, SafetensorError):  # the latter of a disk that lost what was written
        pass
    return None
