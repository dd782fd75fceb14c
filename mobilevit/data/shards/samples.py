"""Labelled images in shards: tar files, or tables that `datasets` reads."""

from __future__ import annotations

import itertools
import os
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import get_worker_info

from mobilevit.data.errors import DataError
from mobilevit.data.sampler import EpochOrder, Order
from mobilevit.data.shards.order import POOL, STREAMS, ShardOrder


class Shards(Protocol):
    """Images that are read shard by shard."""

    @property
    def counts(self) -> Sequence[int]:
        """Samples in each shard."""

    @property
    def sequential(self) -> bool:
        """Whether a shard can only be read from its beginning, as over a network."""

    def read(self, shard: int, start: int = 0) -> Iterator[bytes]:
        """The image files of a shard from its `start`-th sample on."""

    def name(self, shard: int, position: int) -> str:
        """A sample's name in messages."""

    def subset(self, numbers: Sequence[int]) -> Shards:
        """The shards of these numbers, in this order."""

    def check_files(self) -> None:
        """Check that all files exist, as far as that takes no time."""


class ShardSamples:
    """Labelled images in shards, numbered shard after shard unless `indices` select some."""

    def __init__(
        self,
        shards: Shards,
        labels: np.ndarray,
        classes: tuple[str, ...],
        indices: Sequence[int] | None = None,
    ) -> None:
        """`labels`: the index in `classes` of each sample in the shards."""
        self.shards, self.classes = shards, classes
        self._all_labels, self.indices = labels, indices
        self.labels: Any = labels if indices is None else labels[list(indices)]
        self._first = [0, *itertools.accumulate(shards.counts)]
        self._buffers: dict[int, _ShardBuffer] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.labels)

    def source(self, index: int) -> bytes:
        shard, position = self._locate(index)
        if not self.shards.sequential:
            return next(self.shards.read(shard, position))
        if self._process != os.getpid():  # forked: two processes cannot read one stream
            self._process, self._buffers = os.getpid(), {}
        # Taken out and put back at the end, so that the first one is the least recently used.
        buffer = self._buffers.pop(shard, None) or _ShardBuffer(self.shards, shard)
        data = buffer.read(position)
        if buffer.unread:
            self._buffers[shard] = buffer
        # Each stream of a worker uses two or three shards. Of more, which ranks or streams share,
        # the least recently used are dropped.
        worker = get_worker_info()
        while len(self._buffers) > -(-3 * STREAMS[0] // (worker.num_workers if worker else 1)):
            del self._buffers[next(iter(self._buffers))]
        return data

    def name(self, index: int) -> str:
        return self.shards.name(*self._locate(index))

    def relabel(self, classes: tuple[str, ...]) -> ShardSamples:
        """The same samples with labels that index `classes`; names are matched."""
        used = [self.classes[label] for label in np.unique(self._all_labels)]
        if unknown := [name for name in used if name not in classes]:
            raise DataError(f"unknown classes: {', '.join(unknown)}; known: {', '.join(classes)}")
        new = np.array(
            [classes.index(name) if name in classes else -1 for name in self.classes], np.int32
        )
        return ShardSamples(self.shards, new[self._all_labels], classes, self.indices)

    def select_shards(self, numbers: Sequence[int]) -> ShardSamples:
        labels = [self._all_labels[self._first[n] : self._first[n + 1]] for n in numbers]
        return ShardSamples(self.shards.subset(numbers), np.concatenate(labels), self.classes)

    def subset(self, indices: Sequence[int]) -> ShardSamples:
        """The samples at `indices`; in sequential shards, as many consecutive ones.

        These begin with the shard of the first index, so that few shards have to be read.
        """
        if self.shards.sequential:
            begin = self._first[self._locate(indices[0])[0]]
            indices = [(begin + step) % len(self._all_labels) for step in range(len(indices))]
        return ShardSamples(self.shards, self._all_labels, self.classes, indices)

    def _locate(self, index: int) -> tuple[int, int]:
        """A sample's shard, and its position there."""
        index = index if self.indices is None else self.indices[index]
        shard = bisect_right(self._first, index) - 1
        return shard, index - self._first[shard]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but open streams, for a worker that is not forked."""
        return {**self.__dict__, "_buffers": {}}


class _ShardBuffer:
    """Random access to a shard that can only be read from its beginning.

    Images are copied to a temporary file, up to the one requested. The file has no name, so the
    system deletes it even if the process is killed.
    """

    def __init__(self, shards: Shards, shard: int) -> None:
        self._shards, self._shard = shards, shard
        self._images = shards.read(shard)
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with this object
        weakref.finalize(self, self._file.close)
        self._ends = [0]
        self.unread = shards.counts[shard]
        """How many samples have not been requested."""

    def read(self, position: int) -> bytes:
        while len(self._ends) < position + 2:
            data = next(self._images, None)
            if data is None:
                name = self._shards.name(self._shard, position)
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


def order_of(
    samples: object,
    count: int,
    *,
    seed: int,
    pool: int = POOL,
    rank: int = 0,
    world_size: int = 1,
) -> Order:
    """The order in which training sees `count` samples: in shards, nearly as they are stored."""
    if not isinstance(samples, ShardSamples):
        return EpochOrder(count, seed=seed, rank=rank, world_size=world_size)
    return ShardOrder(
        samples.shards.counts,
        seed=seed,
        rank=rank,
        world_size=world_size,
        pool=pool,
        sequential=samples.shards.sequential,
    )
