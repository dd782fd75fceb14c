"""Tar shards: finding the samples in them, and reading samples at their offsets."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.formats.files import has_image_extension
from mobilevit.data.shards.index import ROW, Shard, ShardSplit, is_remote, open_location

log = logging.getLogger(__name__)

RETRY_AFTER: tuple[float, ...] = (1.0, 5.0)
"""Seconds to wait before the first and second retry of a URL or command."""

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)


class TarContent(NamedTuple):
    """The samples in a tar."""

    shard: Shard
    labels: tuple[str, ...]
    """The text of each sample's `cls`."""
    rows: np.ndarray
    """A `ROW` for each sample; labels are not set."""


def index_tar(location: str, file: str) -> TarContent:
    """Read a tar from beginning to end and find its samples.

    A sample is an image, such as `key.jpg`, and `key.cls`, one after the other. As in webdataset,
    other members of the same key (`key.json`) and names such as `__this__` are ignored. `file` is
    the shard's name in the index.
    """
    labels: list[str] = []
    rows: list[tuple[int, int, int]] = []
    try:
        with _opened(location, to_its_end=True) as stream:
            hashed = _HashedStream(stream)
            with tarfile.open(fileobj=hashed, mode="r|") as tar:  # type: ignore[call-overload]
                for key, members in itertools.groupby(_members(tar), key=lambda member: member.key):
                    try:
                        label, row = _sample(location, key, list(members))
                    except DataError:
                        if hashed.read_to_end():
                            raise
                        break  # the sample is incomplete because the tar is
                    labels.append(label)
                    rows.append(row)
            if not hashed.read_to_end():
                raise tarfile.ReadError("it has no end")
    except tarfile.TarError as error:
        problem = f"cut off after {len(rows)} samples" if rows else "not an uncompressed tar"
        raise DataError(f"{location}: {problem}: {error}") from error
    except OSError as error:
        raise DataError(f"{location}: cannot be read: {error}") from error
    if not rows:
        raise DataError(f"{location}: holds no samples, such as key.jpg with key.cls")
    shard = Shard(file, len(rows), hashed.size, hashed.sha256.hexdigest())
    return TarContent(shard, tuple(labels), np.array(rows, ROW))


class _HashedStream:
    """A stream that keeps the digest, size and end of what was read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.sha256, self.size, self.tail = stream, hashlib.sha256(), 0, b""

    def read(self, count: int) -> bytes:
        block = _read(self.stream, count)
        self.sha256.update(block)
        self.size += len(block)
        self.tail = (self.tail + block[-len(_END) :])[-len(_END) :]
        return block

    def read_to_end(self) -> bool:
        """Read the rest and return whether it ends as a tar does."""
        while self.read(1 << 20):
            pass
        return self.tail == _END


class _Member(NamedTuple):
    key: str
    extension: str
    offset: int
    size: int
    text: str
    """The content of a `cls`."""


def _members(tar: tarfile.TarFile) -> Iterator[_Member]:
    """The files in a tar; as in webdataset, a key ends at the first dot of the file's name."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # they would all be kept
        folder, slash, name = member.name.rpartition("/")
        stem, dot, extension = name.partition(".")
        if not member.isreg() or not stem or not dot or re.match(r"__[^/]*__($|/)", member.name):
            continue
        extension, text = extension.lower(), ""
        if extension == "cls":
            content = tar.extractfile(member)
            assert content is not None
            text = content.read().decode("utf-8", "replace").strip()
        yield _Member(folder + slash + stem, extension, member.offset_data, member.size, text)


def _sample(location: str, key: str, members: list[_Member]) -> tuple[str, tuple[int, int, int]]:
    images = [member for member in members if has_image_extension(f"x.{member.extension}")]
    classes = [member for member in members if member.extension == "cls"]
    if len(images) != 1 or len(classes) != 1:
        present = ", ".join(f"{key}.{member.extension}" for member in members)
        raise DataError(
            f"{location}: a sample is one image and one .cls of the same key, one after the other; "
            f"key {key!r} has {present}"
        )
    return classes[0].text, (0, images[0].offset, images[0].size)


class TarShards:
    """The shards of one split of an index."""

    def __init__(self, split: ShardSplit, locations: Sequence[str]) -> None:
        """`locations`: a path, URL or `pipe:` command for each shard of the split."""
        self.split, self.locations = split, tuple(locations)
        self.counts = [shard.samples for shard in split.shards]
        self.sequential = any(map(is_remote, locations))
        self._first = [0, *itertools.accumulate(self.counts)]

    def subset(self, numbers: Sequence[int]) -> TarShards:
        return TarShards(self.split.subset(numbers), [self.locations[n] for n in numbers])

    def check_files(self) -> None:
        """Check that local files exist and have the sizes that the index states."""
        wrong = []
        for location, shard in zip(self.locations, self.split.shards, strict=True):
            if is_remote(location):
                continue
            size = os.stat(location).st_size if os.path.exists(location) else None
            if size is None:
                wrong.append(f"{location}: is missing")
            elif size != shard.size:
                problem = "it is cut off" if size < shard.size else "it is another file"
                wrong.append(f"{location}: has {size} bytes, not {shard.size}: {problem}")
        if wrong:
            listed = "\n  ".join([*wrong[:20], "..."] if len(wrong) > 20 else wrong)
            raise DataError(
                f"{len(wrong)} of {len(self.locations)} shards do not match the index:\n  {listed}"
            )

    def read(self, shard: int, start: int = 0) -> Iterator[bytes]:
        """The image files of a shard from `start` on; URLs and commands that fail are retried."""
        location, position = self.locations[shard], start
        waits = list(RETRY_AFTER) if is_remote(location) else []
        while position < self.counts[shard]:
            try:
                with _opened(location) as stream:
                    offset = 0
                    while position < self.counts[shard]:
                        data, offset = self._read_sample(stream, offset, shard, position)
                        position += 1
                        yield data
            except FileNotFoundError:
                raise DataError(f"{location}: there is no such shard") from None
            except OSError as error:
                if not waits:
                    raise DataError(f"{location}: {error}") from error
                log.warning("%s: %s; trying again", location, error)
                time.sleep(waits.pop(0))

    def _read_sample(
        self, stream: IO[bytes], offset: int, shard: int, position: int
    ) -> tuple[bytes, int]:
        row = self.split.rows[self._first[shard] + position]
        begin, size = int(row["offset"]) - _BLOCK, int(row["size"])  # with the tar's header
        _skip(stream, begin - offset)
        block = _read(stream, _BLOCK + size)
        sample = f"sample {position} of {self.counts[shard]}"
        if len(block) < _BLOCK + size:
            raise OSError(
                f"ends inside {sample}; it is cut off, and should have "
                f"{self.split.shards[shard].size} bytes"
            )
        if _stated_size(block) != size:
            raise DataError(
                f"{self.locations[shard]}: {sample} is not where the index states; they do not "
                "belong together: write the index again with `mobilevit shard`"
            )
        return block[_BLOCK:], begin + _BLOCK + size

    def name(self, shard: int, position: int) -> str:
        """The shard's location, and in a local file the sample's name."""
        location = self.locations[shard]
        if is_remote(location):
            return f"{location}: sample {position}"
        row = self.split.rows[self._first[shard] + position]
        with open(location, "rb") as file:
            file.seek(int(row["offset"]) - _BLOCK)
            name = file.read(100).rstrip(b"\0").decode("utf-8", "replace")
        return f"{location}: {name}"


@contextmanager
def _opened(location: str, *, to_its_end: bool = False) -> Iterator[IO[bytes]]:
    """A stream; the exit status of a command counts only if all its output is read."""
    stream = open_location(location)
    finished = False
    try:
        yield stream
        finished = to_its_end
    finally:
        try:
            stream.close()
        except OSError:
            if finished:
                raise


def _read(stream: IO[bytes], count: int) -> bytes:
    """`count` bytes, or all that are left; a pipe gives them in pieces."""
    blocks = []
    while count and (block := stream.read(count)):
        blocks.append(block)
        count -= len(block)
    return b"".join(blocks)


def _skip(stream: IO[bytes], count: int) -> None:
    """Move forward by seeking or, in pipes and HTTP responses, by reading."""
    try:
        stream.seek(count, os.SEEK_CUR)
    except (AttributeError, ValueError):  # ValueError: `io.UnsupportedOperation`, and fsspec's
        while count and (block := stream.read(min(count, 1 << 20))):
            count -= len(block)


def _stated_size(header: bytes) -> int | None:
    """The size in a tar member's header; None if it is not a header."""
    try:
        return int(header[124:136].rstrip(b"\0 "), 8)
    except ValueError:
        return None
