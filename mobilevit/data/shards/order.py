"""The order in which samples that lie in shards are read: near to how they lie, and yet shuffled.

Shards are shuffled, and laid end to end. Each rank takes an equal part of that row, and cuts it
into lanes. Batches come from one lane after another, each drawn at random from a pool of samples
that its lane reads ahead. So a process reads no more than a few shards at a time, each from its
begin to its end, and every worker has lanes of its own.

All of it is a pure function of (seed, epoch, sizes of the shards, batches): the number of workers
plays no part, a place in the order is the number of batches before it, and what a worker has to
read ahead for a batch is known when the batch is planned.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from mobilevit.data.formats.folders import DataError
from mobilevit.data.sampler import Batch

log = logging.getLogger(__name__)

LANES = (12, 6, 4, 3, 2, 1)
"""How many lanes a rank may have: the most that there are shards for. Many numbers of workers
divide twelve."""
POOL = 4096
"""Samples of one rank, in all its lanes, among which the next batches are drawn."""


class ShardOrder:
    """An order of the samples in shards, anew each epoch; one rank's share of it.

    Each sample is seen once an epoch, over all ranks. The row of shards is padded with its own head
    to a multiple of `world_size`, the only way in which a sample is seen twice; all ranks have the
    same number of samples, and so of steps.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pool: int = POOL,
        shuffle: bool = True,
        in_a_row: bool = False,
    ) -> None:
        """Order samples that are numbered shard after shard.

        Args:
            counts: samples of each shard.
            seed: of the shuffling.
            rank: which process this is, of `world_size`.
            world_size: processes that share the samples.
            pool: samples among which batches are drawn, over all lanes.
            shuffle: else the samples come as they lie, lane by lane.
            in_a_row: whether the shards can only be read from begin to end.

        Raises:
            DataError: shards that can only be read from begin to end are fewer than processes.
        """
        self.counts, self.seed, self.rank, self.world_size = counts, seed, rank, world_size
        self.shuffle, self.in_a_row, self.epoch = shuffle, in_a_row, 0
        self.samples = sum(counts)
        if in_a_row and len(counts) < world_size:
            raise DataError(
                f"there are fewer shards ({len(counts)}) than processes ({world_size}), and each "
                "would read the same ones: write more and smaller shards, or use fewer processes"
            )
        each = max(1, len(counts) // world_size)
        self.lanes = next(lanes for lanes in LANES if lanes <= each)
        self.pool = pool // self.lanes if shuffle else 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is dealt out next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples of one rank."""
        return -(-self.samples // self.world_size)

    @property
    def identity(self) -> str:
        """The shards and their sizes."""
        known = hashlib.sha256(repr(list(self.counts)).encode()).hexdigest()[:16]
        return f"{self.samples} samples in {len(self.counts)} shards ({known})"

    def workers(self, wanted: int) -> int:
        """As many of the wanted processes as can have lanes of their own.

        Any process can read any sample of shards that are files here, so there it is all of them.
        """
        if not self.in_a_row or wanted <= 1:
            return wanted
        usable = max(n for n in range(1, wanted + 1) if self.lanes % n == 0)
        if usable < wanted:
            log.warning(
                "%d of %d workers read: %d shards for %d process%s are read %d at a time; more "
                "shards would take more workers",
                *(usable, wanted, len(self.counts), self.world_size),
                *("es" * (self.world_size > 1), self.lanes),
            )
        return usable

    def deal(self, sizes: Sequence[int], skip: int = 0) -> Iterator[Batch[int]]:
        """Batches of these sizes, but for the first `skip`, from one lane after another."""
        ends = [0] * self.lanes  # samples of each lane
        for step, size in enumerate(sizes):
            ends[step % self.lanes] += size
        cuts = [0, *itertools.accumulate(ends)]
        row = self._row()
        lanes = [
            _Lane(
                _cut(row, begin, end),
                self.pool,
                np.random.default_rng((self.seed, self.epoch, 3, self.rank, number))
                if self.shuffle
                else None,
            )
            for number, (begin, end) in enumerate(itertools.pairwise(cuts))
        ]
        for step, size in enumerate(sizes):
            number = step % self.lanes
            batch = lanes[number].take(size, read=step >= skip)
            if step >= skip:
                batch.lane = number
                yield batch

    def _row(self) -> list[tuple[int, int]]:
        """This rank's part of the shards laid end to end, as runs (from, to) of samples."""
        begins = np.concatenate([[0], np.cumsum(self.counts)])
        shards = np.arange(len(self.counts))
        if self.shuffle:
            shards = np.random.default_rng((self.seed, self.epoch, 1)).permutation(shards)
        whole = [(int(begins[shard]), int(begins[shard + 1])) for shard in shards]
        whole *= -(-len(self) * self.world_size // self.samples)  # repeats from the head
        return _cut(whole, self.rank * len(self), (self.rank + 1) * len(self))


class _Lane:
    """Samples that are read one after another, and a pool of them that batches are drawn from."""

    def __init__(
        self, runs: list[tuple[int, int]], pool: int, generator: np.random.Generator | None
    ) -> None:
        """Read `runs`, `pool` samples ahead; without a generator batches come as samples lie."""
        self._runs, self._pool, self._generator = deque(runs), pool, generator
        self._held = np.empty(0, np.int64)
        self._asked = False

    def take(self, size: int, *, read: bool) -> Batch[int]:
        """The next batch; with what to read for it, if it is to be made."""
        runs = []
        while self._runs and len(self._held) < self._pool + size:
            begin, end = self._runs.popleft()
            stop = min(end, begin + self._pool + size - len(self._held))
            if stop < end:
                self._runs.appendleft((stop, end))
            runs.append((begin, stop))
            self._held = np.concatenate([self._held, np.arange(begin, stop)])
        if read and not self._asked:
            # Batches before this one were made already; what was read for them, and not used, is
            # read again, in the order in which it lies.
            runs = _runs(self._held)
        if self._generator is None:
            drawn = np.arange(size)
        else:
            drawn = self._generator.choice(len(self._held), size, replace=False)
        batch: Batch[int] = Batch(self._held[drawn].tolist())
        batch.runs, batch.first = runs, not self._asked
        self._held = np.delete(self._held, drawn)
        self._asked = self._asked or read
        return batch


def _cut(row: list[tuple[int, int]], begin: int, end: int) -> list[tuple[int, int]]:
    """The part of a row of runs between two places in it."""
    part, place = [], 0
    for first, last in row:
        low, high = max(begin - place, 0), min(end - place, last - first)
        if low < high:
            part.append((first + low, first + high))
        place += last - first
    return part


def _runs(indices: np.ndarray) -> list[tuple[int, int]]:
    """Numbers, in the order in which they were read -> runs (from, to)."""
    if not len(indices):
        return []
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(indices, breaks)]
