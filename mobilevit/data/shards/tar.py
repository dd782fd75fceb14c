"""Tar shards: finding the samples in them, and reading samples at their offsets."""

import hashlib
import io
import itertools
import logging
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from subprocess import PIPE, Popen
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import Issue
from mobilevit.data.formats.files import has_image_extension
from mobilevit.data.shards.samples import Shard
from mobilevit.utils.urls import network_errors

log = logging.getLogger(__name__)

ROW = np.dtype([("label", "<i4"), ("offset", "<i8"), ("size", "<i4")])
"""One sample: its class, and the offset and size in bytes of its image in the shard."""
RETRY_AFTER: tuple[float, ...] = (1.0, 5.0)
"""Seconds to wait before the first and second retry of a URL or command."""

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)


def is_remote(location: str) -> bool:
    """Whether a location is a URL or a `pipe:` command, and not a local path.

    >>> is_remote("s3://bucket/train-000000.tar"), is_remote("shards/train-000000.tar")
    (True, False)
    """
    return "://" in location or location.startswith("pipe:")


@contextmanager
def open_location(location: str) -> Iterator[IO[bytes]]:
    """Open a local file, a URL that fsspec supports, or the output of a `pipe:` command."""
    if location.startswith("pipe:"):
        with Popen(location.removeprefix("pipe:"), shell=True, stdout=PIPE) as process:
            assert process.stdout is not None
            yield process.stdout
            # A command whose output is not read to its end fails for that reason.
            if not process.stdout.read(1) and process.wait():
                raise OSError(f"exit status {process.returncode}")
    elif is_remote(location):
        with io.BufferedReader(_RemoteFile(location)) as stream:
            yield stream
    else:
        with open(location, "rb") as stream:
            yield stream


class _RemoteFile(io.RawIOBase):
    """A file that fsspec opens, whose errors are `OSError` whatever its client raises."""

    def __init__(self, location: str) -> None:
        import fsspec

        # HTTP in one response: not every server supports ranges, and each range is a request.
        options = {"block_size": 0} if re.match(r"https?://", location) else {}
        try:
            with network_errors():
                self._file = fsspec.open(location, "rb", **options).open()
        except (ImportError, ValueError) as error:
            raise DataError(f"{location}: {error}") from error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with network_errors():
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):  # not where opening failed
            self._file.close()
        super().close()


@dataclass(frozen=True, eq=False)
class TarShard(Shard):
    """One tar file, and where in it the samples are."""

    location: str
    """A path, URL or `pipe:` command."""
    file: str
    """Its name, relative to the index's folder."""
    size: int
    """In bytes."""
    sha256: str
    rows: np.ndarray
    """A `ROW` for each sample."""

    @property
    def labels(self) -> np.ndarray:  # type: ignore[override]  # read-only
        return self.rows["label"]

    @property
    def identity(self) -> str:
        return f"{self.file} {self.sha256}"

    @property
    def sequential(self) -> bool:
        return is_remote(self.location)

    def problem(self, *, quick: bool) -> Issue | None:
        message = ""
        try:
            if not self.sequential and (size := os.stat(self.location).st_size) != self.size:
                message = f"has {size} bytes, not {self.size}: it is cut off, or another file"
            elif not quick:
                with open_location(self.location) as stream:
                    digest = hashlib.file_digest(stream, "sha256")  # type: ignore[arg-type]
                if digest.hexdigest() != self.sha256:
                    message = "differs from the shard in its index"
        except OSError as error:
            message = f"cannot be read: {error}"
        return Issue("shards", self.location, message, skippable=False) if message else None

    def read(self, start: int = 0) -> Iterator[bytes]:
        """The images from `start` on; URLs and commands that fail are tried again."""
        position = start
        waits = list(RETRY_AFTER) if self.sequential else []
        while position < len(self.rows):
            try:
                with open_location(self.location) as stream:
                    place = 0
                    while position < len(self.rows):
                        data, place = self._read_image(stream, place, position)
                        position += 1
                        yield data
            except FileNotFoundError:
                raise DataError(f"{self.location}: there is no such shard") from None
            except OSError as error:
                if not waits:
                    raise DataError(f"{self.location}: {error}") from error
                log.warning("%s: %s; trying again", self.location, error)
                time.sleep(waits.pop(0))

    def _read_image(self, stream: IO[bytes], place: int, position: int) -> tuple[bytes, int]:
        """An image, read with its header from a stream at `place`, and the place behind it."""
        size = int(self.rows["size"][position])
        begin = int(self.rows["offset"][position]) - _BLOCK
        if self.sequential:
            while place < begin and (skipped := stream.read(min(begin - place, 1 << 20))):
                place += len(skipped)
        else:
            stream.seek(begin)
        block = stream.read(_BLOCK + size)
        sample = f"sample {position} of {len(self.rows)}"
        if len(block) < _BLOCK + size:
            message = f"ends inside {sample}; it is cut off, and should have {self.size} bytes"
            raise OSError(message)
        try:
            stated = tarfile.TarInfo.frombuf(block[:_BLOCK], "utf-8", "replace").size
        except tarfile.HeaderError:
            stated = None
        if stated != size:
            raise DataError(
                f"{self.location}: {sample} is not where the index states; they do not belong "
                "together: write the index again with `mobilevit shard`"
            )
        return block[_BLOCK:], begin + _BLOCK + size

    def name(self, position: int) -> str:
        """The shard's location, and in a local file the sample's name."""
        if self.sequential:
            return f"{self.location}: sample {position}"
        return f"{self.location}: {self._names[int(self.rows['offset'][position])]}"

    @cached_property
    def _names(self) -> dict[int, str]:
        """The name of each file by its offset."""
        with tarfile.open(self.location) as tar:
            return {member.offset_data: member.name for member in tar}


def tar_name(location: str) -> str:
    """The last name ending with .tar in a path, URL or command."""
    if names := re.findall(r"[^/\\\s'\"]+\.tar", location):
        return str(names[-1])
    raise DataError(f"{location}: names no .tar file to identify it by")


def index_tar(location: str) -> tuple[TarShard, list[str]]:
    """Find the samples in a tar: a shard, whose labels are not set, and the text of each `cls`.

    A sample is an image, such as `key.jpg`, and `key.cls`, one after the other. As in webdataset,
    other members of the same key (`key.json`) and names such as `__this__` are ignored.
    """
    try:
        with _seekable(location) as stream:
            digest = hashlib.file_digest(stream, "sha256")  # type: ignore[arg-type]
            size = stream.tell()
            stream.seek(max(size - len(_END), 0))
            if stream.read() != _END:
                message = "cut off, or not an uncompressed tar: it does not end as one does"
                raise DataError(f"{location}: {message}")
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                samples = list(_find_samples(tar, location))
    except tarfile.TarError as error:
        raise DataError(f"{location}: not an uncompressed tar, or damaged: {error}") from error
    except OSError as error:
        raise DataError(f"{location}: cannot be read: {error}") from error
    if not samples:
        raise DataError(f"{location}: holds no samples, such as key.jpg with key.cls")
    rows = np.array([(0, image.offset_data, image.size) for _, image in samples], ROW)
    shard = TarShard(location, tar_name(location), size, digest.hexdigest(), rows)
    return shard, [label for label, _ in samples]


@contextmanager
def _seekable(location: str) -> Iterator[IO[bytes]]:
    """A local file, or a temporary copy of what is remote."""
    if not is_remote(location):
        with open(location, "rb") as file:
            yield file
        return
    with TemporaryFile() as copy:
        with open_location(location) as stream:
            shutil.copyfileobj(stream, copy)
        copy.seek(0)
        yield copy


def _find_samples(tar: tarfile.TarFile, location: str) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The `cls` and the image of each sample."""
    # As in webdataset, a key ends at the first dot of the file's name.
    named = ((re.fullmatch(r"((?:.*/)?[^/.]+)\.([^/]*)", member.name), member) for member in tar)
    parts = (
        (match[1], match[2].lower(), member)
        for match, member in named
        if match and member.isreg() and not re.match(r"__[^/]*__($|/)", member.name)
    )
    for key, members in itertools.groupby(parts, key=lambda part: part[0]):
        group = [(extension, member) for _, extension, member in members]
        images = [member for ending, member in group if has_image_extension(f"x.{ending}")]
        classes = [member for ending, member in group if ending == "cls"]
        if len(images) != 1 or len(classes) != 1:
            present = ", ".join(f"{key}.{extension}" for extension, _ in group)
            raise DataError(
                f"{location}: a sample is one image and one .cls of the same key, one after the "
                f"other; key {key!r} has {present}"
            )
        content = tar.extractfile(classes[0])
        assert content is not None
        yield content.read().decode("utf-8", "replace").strip(), images[0]
