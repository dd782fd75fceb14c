"""Labelled images in shards: tar files, or tables that `datasets` reads."""

from __future__ import annotations

import itertools
import os
import tempfile
import weakref
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
from torch.utils.data import get_worker_info

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import Issue, ParsedDataset
from mobilevit.data.sampler import Order
from mobilevit.data.shards.order import POOL, STREAMS, ShardOrder
from mobilevit.data.splits import LabelSamples

_READING = Lock()


class Shard(ABC):
    """Labelled images that are stored one after another."""

    labels: np.ndarray
    """int [samples]: indices of classes."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Its name, wherever it is stored."""

    size: int
    """In bytes; of tables, all of the data set's local files; 0: not known."""

    @property
    def sequential(self) -> bool:
        """Whether it can only be read from its beginning, as over a network."""
        return True

    @abstractmethod
    def read(self, start: int = 0) -> Iterator[bytes]:
        """The image files from the `start`-th sample on."""

    @abstractmethod
    def name(self, position: int) -> str:
        """A sample's name in messages."""

    def problem(self, *, quick: bool) -> Issue | None:
        """How it differs from its index: in all of its bytes, or `quick`, in the size of a file."""
        return None


class ShardImages:
    """The images in shards, numbered shard after shard."""

    def __init__(self, location: str, shards: Sequence[Shard]) -> None:
        self.location, self.shards = location, shards
        self.counts = [len(shard.labels) for shard in shards]
        self.sequential = any(shard.sequential for shard in shards)
        self._first = [0, *itertools.accumulate(self.counts)]
        self._buffers: dict[int, _ShardBuffer] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: int) -> bytes:
        number, position = self.locate(index)
        if not self.sequential:
            return next(self.shards[number].read(position))
        with _READING:
            return self._read_buffered(number, position)

    def _read_buffered(self, number: int, position: int) -> bytes:
        if self._process != os.getpid():  # forked: two processes cannot read one stream
            self._process, self._buffers = os.getpid(), {}
        # Taken out and put back at the end, so that the first one is the least recently used.
        buffer = self._buffers.pop(number, None) or _ShardBuffer(self.shards[number])
        data = buffer.read(position)
        if buffer.unread:
            self._buffers[number] = buffer
        # Each stream of a worker uses two or three shards. Of more, which ranks or streams share,
        # the least recently used are dropped.
        worker = get_worker_info()
        while len(self._buffers) > -(-3 * STREAMS[0] // (worker.num_workers if worker else 1)):
            del self._buffers[next(iter(self._buffers))]
        return data

    def name(self, index: int) -> str:
        number, position = self.locate(index)
        return self.shards[number].name(position)

    def locate(self, index: int) -> tuple[int, int]:
        """The number of an image's shard, and its position there."""
        number = bisect_right(self._first, index) - 1
        return number, index - self._first[number]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but open streams, for a worker that is not forked."""
        return {**self.__dict__, "_buffers": {}}


class _ShardBuffer:
    """Random access to a shard that can only be read from its beginning.

    Images are copied to a temporary file, up to the one requested. The file has no name, so the
    system deletes it even if the process is killed.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard, self._images, self._ends = shard, shard.read(), [0]
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with this object
        weakref.finalize(self, self._file.close)
        self.unread = len(shard.labels)
        """How many samples have not been requested."""

    def read(self, position: int) -> bytes:
        while len(self._ends) < position + 2:
            data = next(self._images, None)
            if data is None:
                name = self._shard.name(position)
                raise DataError(f"{name}: the shard ends before it; it has changed")
            self._append(data)
        begin, end = self._ends[position : position + 2]
        self._file.seek(begin)
        self.unread -= 1
        return self._file.read(end - begin)

    def _append(self, data: bytes) -> None:
        try:
            self._file.seek(self._ends[-1])
            left = memoryview(data)
            while left:  # on a disk that is nearly full, a part is written before the error
                left = left[self._file.write(left) :]
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: a shard cannot be buffered there: {error}; set TMPDIR "
                "to another folder, or write smaller shards"
            ) from error
        self._ends.append(self._ends[-1] + len(data))


@dataclass(frozen=True, eq=False)
class ShardSamples(LabelSamples):
    """Labelled images in shards."""

    @classmethod
    def from_shards(cls, root: str, shards: Sequence[Shard], classes: Sequence[str]) -> Self:
        return cls.from_dataset(
            ParsedDataset(
                root=Path(root),
                format="shards",
                display_name="shards",
                images=ShardImages(root, shards),
                classes=tuple(classes),
                labels=np.concatenate([shard.labels for shard in shards]),
            )
        )

    @property
    def images(self) -> ShardImages:
        """All images in the shards, whether they are among the samples or not."""
        assert isinstance(self.dataset.images, ShardImages)
        return self.dataset.images

    @property
    def location(self) -> str:
        """As it was given: a path would lose a slash of a URL."""
        return self.images.location

    def names(self) -> set[str]:
        """No names: shards would have to be read for them."""
        return set()

    def check_files(self) -> list[Issue]:
        """Shards that are missing, or are not of the size in the index."""
        return [issue for shard in self.images.shards if (issue := shard.problem(quick=True))]

    def strata(self) -> list[list[int]]:
        return [list(range(len(self)))]

    def hold_out(self, fraction: float, seed: int) -> tuple[Self, Self]:
        """Hold out a share of the shards, at random: at least one, and not all."""
        shards = self.images.shards
        if len(shards) < 2:
            raise DataError(
                f"{self.location}: one shard cannot be divided; give shards to train on and shards "
                "to evaluate on"
            )
        count = min(max(round(len(shards) * fraction), 1), len(shards) - 1)
        order = np.random.default_rng((seed, 4)).permutation(len(shards)).tolist()
        val, train = (
            replace(
                self.from_shards(self.location, [shards[n] for n in sorted(part)], self.classes),
                class_map=self.class_map,
            )
            for part in (order[:count], order[count:])
        )
        return train, val

    def describe_held_out(self, val: Self, fraction: float) -> str:
        return f"{len(val.images.shards)} of {len(self.images.shards)} shards"

    def where_class(self, name: str) -> str:
        return self.location

    def contents(self) -> Iterator[tuple[str, str]]:
        """The identity of each shard, its size, and a checksum of its labels."""
        for shard in self.images.shards:
            labels = zlib.crc32(shard.labels.astype(np.int64).tobytes())
            yield shard.identity, f"{shard.size:,} bytes, labels {labels:08x}"

    def subset(self, indices: Iterable[int]) -> Self:
        """The samples at `indices`; in sequential shards, as many consecutive ones.

        These begin with the shard of the first index, so that few shards have to be read.
        """
        subset = super().subset(indices)
        if self.images.sequential:
            first = int(subset.indices[0])
            first -= self.images.locate(first)[1]
            consecutive = (first + np.arange(len(subset))) % len(self.images)
            return replace(subset, indices=consecutive)
        return subset

    def order(self, *, seed: int, pool: int = POOL, rank: int = 0, world_size: int = 1) -> Order:
        """The order in which training sees the samples: nearly as they are stored."""
        return ShardOrder(
            self.images.counts,
            seed=seed,
            rank=rank,
            world_size=world_size,
            pool=pool,
            sequential=self.images.sequential,
        )
