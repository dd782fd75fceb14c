"""Labelled images that lie in shards: tar files, or what a library reads row by row."""

from __future__ import annotations

import itertools
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from mobilevit.data.formats.folders import DataError
from mobilevit.data.sampler import Batch, EpochOrder, Order
from mobilevit.data.shards.order import POOL, ShardOrder


class Shards(Protocol):
    """Images that are read shard by shard."""

    @property
    def counts(self) -> Sequence[int]:
        """Samples of each shard."""

    @property
    def in_a_row(self) -> bool:
        """Whether a sample costs reading what lies before it in its shard, or a new connection."""

    def read(self, shard: int, start: int) -> Iterator[bytes]:
        """The files of a shard's images, from its `start`-th sample on.

        Raises:
            DataError: it cannot be read.
        """

    def name(self, shard: int, position: int) -> str:
        """What to call a sample."""

    def some(self, numbers: Sequence[int]) -> Shards:
        """Chosen shards, in this order."""

    def look(self) -> None:
        """See that all is there, as far as that is quickly seen.

        Raises:
            DataError: something is missing.
        """


class ShardSamples:
    """The samples in shards, as `Samples`; numbered shard after shard."""

    def __init__(self, shards: Shards, labels: np.ndarray, classes: tuple[str, ...]) -> None:
        """`labels`: of each sample, its place in `classes`."""
        self.shards, self.classes = shards, classes
        self.labels: Any = labels
        self._begins = [0, *itertools.accumulate(shards.counts)]
        self._reader: _Reader | None = None

    def read_ahead(self, batch: Batch[Any]) -> None:
        """Read what a batch says, in shards that are read in a row; `source` then has it."""
        if self.shards.in_a_row:
            self._reading().ahead(batch)

    def source(self, index: int) -> bytes:
        """The image's file.

        Raises:
            DataError: its shard cannot be read.
        """
        return self._reading().one(index)

    def name(self, index: int) -> str:
        """What to call a sample."""
        return self.shards.name(*self._place(index))

    def relabelled(self, classes: tuple[str, ...]) -> ShardSamples:
        """The same samples, labelled by the places of their classes' names in other names.

        Raises:
            DataError: a class that has samples is not among `classes`.
        """
        used = [self.classes[label] for label in np.unique(self.labels)]
        if unknown := [name for name in used if name not in classes]:
            raise DataError(f"unknown classes: {', '.join(unknown)}; known: {', '.join(classes)}")
        places = np.array(
            [classes.index(name) if name in classes else -1 for name in self.classes], np.int32
        )
        return ShardSamples(self.shards, places[self.labels], classes)

    def some(self, numbers: Sequence[int]) -> ShardSamples:
        """The samples of chosen shards."""
        places = [np.arange(self._begins[n], self._begins[n + 1]) for n in numbers]
        labels = self.labels[np.concatenate(places)]
        return ShardSamples(self.shards.some(numbers), labels, self.classes)

    def neighbours(self, indices: Sequence[int]) -> list[int]:
        """As many samples as `indices`, but one behind the other: from the first one's shard on."""
        begin = self._begins[self._place(indices[0])[0]]
        return [(begin + step) % len(self.labels) for step in range(len(indices))]

    def _place(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._begins, index) - 1
        return shard, index - self._begins[shard]

    def _reading(self) -> _Reader:
        """This process's reader: streams that two processes read from would lose their place."""
        if self._reader is None or self._reader.process != os.getpid():
            self._reader = _Reader(self.shards, self._begins)
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        """What a worker that is not forked is given."""
        return {**self.__dict__, "_reader": None}


class _Reader:
    """One process's streams, and what was read from them ahead."""

    def __init__(self, shards: Shards, begins: Sequence[int]) -> None:
        self.process = os.getpid()
        self._shards, self._begins = shards, begins
        self._lanes: dict[int, tuple[_Cursor, dict[int, bytes]]] = {}
        self._held: dict[int, bytes] = {}
        self._any = _Cursor(shards)

    def ahead(self, batch: Batch[Any]) -> None:
        """Read what the batch's lane needs, and hold it."""
        if batch.first or batch.lane not in self._lanes:
            self._lanes[batch.lane] = (_Cursor(self._shards), {})
        cursor, self._held = self._lanes[batch.lane]
        for index in itertools.chain.from_iterable(itertools.starmap(range, batch.runs)):
            shard = bisect_right(self._begins, index) - 1
            self._held[index] = cursor.read(shard, index - self._begins[shard])

    def one(self, index: int) -> bytes:
        """A sample: held, or else read now."""
        held = self._held.pop(index, None)
        if held is not None:
            return held
        shard = bisect_right(self._begins, index) - 1
        if self._shards.in_a_row:
            return self._any.read(shard, index - self._begins[shard])
        return next(self._shards.read(shard, index - self._begins[shard]))


class _Cursor:
    """A place in a shard from which reading goes on."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._at = (-1, 0)
        self._rows: Iterator[bytes] = iter(())

    def read(self, shard: int, position: int) -> bytes:
        """One sample; those between the last one and it are passed over."""
        current, at = self._at
        if current != shard or at > position:
            self._rows, at = self._shards.read(shard, position), position
        try:
            for _ in range(at, position):
                next(self._rows)
            data = next(self._rows)
        except StopIteration:
            name = self._shards.name(shard, position)
            raise DataError(f"{name}: the shard has ended before it; it has changed") from None
        self._at = (shard, position + 1)
        return data


def order_of(
    samples: Any,
    count: int,
    *,
    seed: int,
    pool: int = POOL,
    rank: int = 0,
    world_size: int = 1,
) -> Order:
    """The order in which training sees samples; those in shards, near to how they lie.

    Args:
        samples: of any kind.
        count: how many there are.
        seed: of the order.
        pool: in shards, samples among which batches are drawn.
        rank: which process this is, of `world_size`.
        world_size: processes that share the samples.

    Raises:
        DataError: there are too few shards for so many processes.
    """
    if not isinstance(samples, ShardSamples):
        return EpochOrder(count, seed=seed, rank=rank, world_size=world_size)
    return ShardOrder(
        samples.shards.counts,
        seed=seed,
        rank=rank,
        world_size=world_size,
        pool=pool,
        in_a_row=samples.shards.in_a_row,
    )
