"""Tar shards: where samples begin in them, and reading them from there."""

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

from mobilevit.data.formats.folders import DataError, has_image_extension
from mobilevit.data.shards.index import ROW, Part, Shard, is_remote, open_place

log = logging.getLogger(__name__)

WAITS: tuple[float, ...] = (1.0, 5.0)
"""Seconds before a URL or a command, whose reading failed, is tried once more, and again."""

_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_GAP = 1 << 16  # bytes that are read rather than jumped over


class Found(NamedTuple):
    """What a look through a tar has found."""

    shard: Shard
    labels: tuple[str, ...]
    """What `cls` says, of each sample."""
    rows: np.ndarray
    """A `ROW` for each sample, without labels."""


class _Hashing:
    """A stream that keeps a digest and a count of what was read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.sha256, self.size = stream, hashlib.sha256(), 0
        self.tail = b""

    def read(self, count: int) -> bytes:
        block = _read(self.stream, count)
        self.sha256.update(block)
        self.size += len(block)
        self.tail = (self.tail + block[-len(_END) :])[-len(_END) :]
        return block

    def has_ended(self) -> bool:
        """Read what is left; whether it is a tar's end."""
        while self.read(1 << 20):
            pass
        return self.tail == _END


def look_through(place: str, file: str) -> Found:
    """Read a tar from begin to end, and note where its samples are.

    A sample is an image, such as `key.jpg`, and `key.cls`, one behind the other. Other members of
    the same key (`key.json`) are passed over, and so are names such as `__this__`, as webdataset
    does.

    Args:
        place: the tar; a file, a URL or a `pipe:` command.
        file: what the index is to call it.

    Raises:
        DataError: it cannot be read, is no plain tar, or a sample lacks its image or class.
    """
    labels: list[str] = []
    rows: list[tuple[int, int, int]] = []
    try:
        with _opened(place, to_its_end=True) as stream:
            hashing = _Hashing(stream)
            with tarfile.open(fileobj=hashing, mode="r|") as tar:  # type: ignore[call-overload]
                for key, members in itertools.groupby(_members(tar), key=lambda found: found[0]):
                    try:
                        label, row = _sample(place, key, list(members))
                    except DataError:
                        if hashing.has_ended():
                            raise
                        break
                    labels.append(label)
                    rows.append(row)
            if not hashing.has_ended():
                raise tarfile.ReadError("it has no end")
    except tarfile.TarError as error:
        how = f"cut off behind {len(rows)} samples" if rows else "no uncompressed tar"
        raise DataError(f"{place}: is {how}: {error}") from error
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error}") from error
    if not rows:
        raise DataError(f"{place}: holds no samples, such as key.jpg with key.cls")
    shard = Shard(file, len(rows), hashing.size, hashing.sha256.hexdigest())
    return Found(shard, tuple(labels), np.array(rows, ROW))


class _Member(NamedTuple):
    """A file in a tar."""

    key: str
    extension: str
    offset: int
    size: int
    text: str
    """Of `cls`; else empty."""


def _members(tar: tarfile.TarFile) -> Iterator[_Member]:
    """The files in a tar; their keys end at the first dot of their names, as webdataset's do."""
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
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


def _sample(place: str, key: str, members: list[_Member]) -> tuple[str, tuple[int, int, int]]:
    """The class and the row of one sample."""
    images = [member for member in members if has_image_extension(f"x.{member.extension}")]
    classes = [member for member in members if member.extension == "cls"]
    if len(images) != 1 or len(classes) != 1:
        there = ", ".join(f"{key}.{member.extension}" for member in members)
        raise DataError(
            f"{place}: a sample is one image and one .cls of the same key, one behind the other; "
            f"of {key!r} there is {there}"
        )
    return classes[0].text, (0, images[0].offset, images[0].size)


class TarShards:
    """Shards of samples whose places are known."""

    def __init__(self, part: Part, places: Sequence[str]) -> None:
        """Read `part` at `places`, one for each of its shards."""
        self.part, self.places = part, tuple(places)
        self.counts = [shard.samples for shard in part.shards]
        self.in_a_row = any(map(is_remote, places))
        self._begins = [0, *itertools.accumulate(self.counts)]

    def some(self, numbers: Sequence[int]) -> TarShards:
        """Chosen shards, in this order."""
        return TarShards(self.part.some(list(numbers)), [self.places[number] for number in numbers])

    def look(self) -> None:
        """See that files are there, and of the sizes that the index says.

        Raises:
            DataError: some are not.
        """
        wrong = list(filter(None, map(_why_not, self.places, self.part.shards)))
        if wrong:
            raise DataError(
                f"{len(wrong)} of {len(self.places)} shards are not as their index says:\n  "
                + "\n  ".join(wrong[:20])
                + ("\n  ..." if len(wrong) > 20 else "")
            )

    def read(self, shard: int, start: int) -> Iterator[bytes]:
        """The files of a shard's images, from its `start`-th sample on.

        What is read through a network is tried again, from the same sample on.

        Raises:
            DataError: the shard is missing, cut off, or not the one that the index describes.
        """
        place, count = self.places[shard], self.counts[shard]
        waits = list(WAITS) if is_remote(place) else []
        position = start
        while position < count:
            try:
                with _opened(place) as stream:
                    at = 0
                    while position < count:
                        data, at = self._sample(stream, at, shard, position)
                        position += 1
                        yield data
            except FileNotFoundError:
                raise DataError(f"{place}: there is no such shard") from None
            except OSError as error:
                said = str(error) if isinstance(error, _CutOffError) else f"{place}: {error}"
                if not waits:
                    raise DataError(said) from error
                log.warning("%s; tried again", said)
                time.sleep(waits.pop(0))

    def _sample(self, stream: IO[bytes], at: int, shard: int, position: int) -> tuple[bytes, int]:
        """One image's bytes, and where the stream then is."""
        row = self.part.rows[self._begins[shard] + position]
        begin, size = int(row["offset"]) - _BLOCK, int(row["size"])
        _go_to(stream, at, begin)
        block = _read(stream, _BLOCK + size)
        where = f"sample {position} of {self.counts[shard]}"
        if len(block) < _BLOCK + size:
            raise _CutOffError(
                f"{self.places[shard]}: ends inside {where}; it is cut off, and should have "
                f"{self.part.shards[shard].size} bytes"
            )
        if _stated_size(block) != size:
            raise DataError(
                f"{self.places[shard]}: {where} is not where the index says; the two do not belong "
                "together: write the index anew, by `mobilevit shard`"
            )
        return block[_BLOCK:], begin + _BLOCK + size

    def name(self, shard: int, position: int) -> str:
        """What to call a sample: the shard and, where that is a file here, the file in it."""
        place = self.places[shard]
        if is_remote(place):
            return f"{place}: sample {position}"
        row = self.part.rows[self._begins[shard] + position]
        with open(place, "rb") as file:
            file.seek(int(row["offset"]) - _BLOCK)
            name = file.read(100).rstrip(b"\0").decode("utf-8", "replace")
        return f"{place}: {name}"


class _CutOffError(OSError):
    """A stream that ended too early."""


def _why_not(place: str, shard: Shard) -> str | None:
    """What is wrong with a shard that is a file here, as far as its size tells."""
    if is_remote(place):
        return None
    try:
        size = os.stat(place).st_size
    except FileNotFoundError:
        return f"{place}: is missing"
    if size == shard.size:
        return None
    how = "it is cut off" if size < shard.size else "it is another one"
    return f"{place}: has {size} bytes and not {shard.size}: {how}"


@contextmanager
def _opened(place: str, *, to_its_end: bool = False) -> Iterator[IO[bytes]]:
    """A stream; unless it is read to its end, a command that prints it may end as it likes."""
    stream = open_place(place)
    read = False
    try:
        yield stream
        read = to_its_end
    finally:
        try:
            stream.close()
        except OSError:
            if read:
                raise


def _read(stream: IO[bytes], count: int) -> bytes:
    """So many bytes, or all that are left; a pipe gives them in pieces."""
    block = stream.read(count)
    if len(block) == count or not block:
        return block
    blocks, got = [block], len(block)
    while got < count and (block := stream.read(count - got)):
        blocks.append(block)
        got += len(block)
    return b"".join(blocks)


def _stated_size(header: bytes) -> int | None:
    """The size that a tar's header states; None where it is no header."""
    try:
        return int(header[124:136].rstrip(b"\0 "), 8)
    except ValueError:
        return None


def _go_to(stream: IO[bytes], at: int, place: int) -> None:
    """Move forward in a stream: by jumping, or where it cannot, by reading."""
    if place - at > _GAP and hasattr(stream, "seek"):
        try:
            stream.seek(place)
            return
        except ValueError:  # of HTTP without ranges, and pipes: `io.UnsupportedOperation`
            pass
    while at < place:
        block = stream.read(min(place - at, 1 << 20))
        if not block:
            return  # what is read next is then empty
        at += len(block)
