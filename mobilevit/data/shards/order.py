"""The order of samples in shards: shuffled, and yet read almost sequentially.

Shards are shuffled and laid end to end. Each rank takes an equal part of that sequence and cuts it
into streams. Batches come from the streams in turn, each drawn at random from a pool of the
stream's next samples. So a process reads only a few shards at a time, each from beginning to end,
and workers do not share shards.

The order is a pure function of (seed, epoch, sizes of the shards, batches). It does not depend on
the number of workers, and a position in it is the number of batches before it.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from mobilevit.data.errors import DataError
from mobilevit.data.sampler import Order

log = logging.getLogger(__name__)

STREAMS = (12, 6, 4, 3, 2, 1)
"""How many streams a rank may interleave: the first number that there are enough shards for. Many
numbers of workers divide twelve."""
POOL = 4096
"""How many of a rank's next samples, over all its streams, batches are drawn from."""


class ShardOrder(Order):
    """One rank's share of the samples in shards, in another order each epoch.

    The sequence of shards is padded with its own head to a multiple of `world_size`, so that all
    ranks take the same number of steps; only those samples are seen twice in an epoch.
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
        sequential: bool = False,
    ) -> None:
        """Order samples that are numbered shard after shard.

        Args:
            counts: samples in each shard.
            pool: samples that batches are drawn from, over all streams.
            shuffle: if False, each stream gives its samples as they are stored.
            sequential: whether shards can only be read from the beginning.
        """
        super().__init__(sum(counts), seed=seed, rank=rank, world_size=world_size)
        self.counts, self.shuffle, self.sequential = counts, shuffle, sequential
        if sequential and len(counts) < world_size:
            raise DataError(
                f"there are fewer shards ({len(counts)}) than processes ({world_size}), and each "
                "would read the same ones: write more and smaller shards, or use fewer processes"
            )
        per_rank = max(1, len(counts) // world_size)
        self.streams = next(streams for streams in STREAMS if streams <= per_rank)
        self.pool = pool // self.streams if shuffle else 0

    @property
    def identity(self) -> str:
        digest = hashlib.sha256(repr(list(self.counts)).encode()).hexdigest()[:16]
        return f"{self.samples} samples in {len(self.counts)} shards ({digest})"

    def workers(self, requested: int) -> int:
        """How many of the requested workers can have streams of their own; for local files, all."""
        if not self.sequential or requested <= 1:
            return requested
        usable = max(n for n in range(1, requested + 1) if self.streams % n == 0)
        if usable < requested:
            log.warning(
                "%d of %d workers are used: the %d shards of %d process%s are read %d at a time; "
                "more shards would keep more workers busy",
                *(usable, requested, len(self.counts), self.world_size),
                *("es" * (self.world_size > 1), self.streams),
            )
        return usable

    def deal(self, sizes: Sequence[int], skip: int = 0) -> Iterator[list[int]]:
        """Batches of these sizes, from one stream after another, without the first `skip`."""
        lengths = [sum(sizes[stream :: self.streams]) for stream in range(self.streams)]
        ends = [0, *itertools.accumulate(lengths)]
        sequence = self._sequence()
        streams = [
            _Stream(
                _cut(sequence, begin, end),
                self.pool,
                np.random.default_rng((self.seed, self.epoch, 3, self.rank, number))
                if self.shuffle
                else None,
            )
            for number, (begin, end) in enumerate(itertools.pairwise(ends))
        ]
        for step, size in enumerate(sizes):
            batch = streams[step % self.streams].take(size)
            if step >= skip:
                yield batch

    def _sequence(self) -> list[range]:
        """This rank's part of the shards laid end to end."""
        ends = [0, *itertools.accumulate(map(int, self.counts))]
        shards = np.arange(len(self.counts))
        if self.shuffle:
            shards = np.random.default_rng((self.seed, self.epoch, 1)).permutation(shards)
        everything = [range(ends[shard], ends[shard + 1]) for shard in shards]
        everything *= -(-len(self) * self.world_size // self.samples)  # repeats from the head
        return _cut(everything, self.rank * len(self), (self.rank + 1) * len(self))


class _Stream:
    """A sequence of samples, and a pool of the next ones that batches are drawn from."""

    def __init__(
        self, sequence: list[range], pool: int, generator: np.random.Generator | None
    ) -> None:
        """Without a generator, batches are in the order of the sequence."""
        self._sequence, self._pool_size, self._generator = deque(sequence), pool, generator
        self._pool = np.empty(0, np.int64)

    def take(self, size: int) -> list[int]:
        while self._sequence and (missing := self._pool_size + size - len(self._pool)) > 0:
            samples = self._sequence.popleft()
            now, later = samples[:missing], samples[missing:]
            if later:
                self._sequence.appendleft(later)
            self._pool = np.append(self._pool, np.arange(now.start, now.stop))
        if self._generator is None:
            drawn = np.arange(size)
        else:
            drawn = self._generator.choice(len(self._pool), size, replace=False)
        batch: list[int] = self._pool[drawn].tolist()
        self._pool = np.delete(self._pool, drawn)
        return batch


def _cut(sequence: list[range], begin: int, end: int) -> list[range]:
    """The part of concatenated ranges from one position to another."""
    part, position = [], 0
    for samples in sequence:
        if piece := samples[max(begin - position, 0) : max(end - position, 0)]:
            part.append(piece)
        position += len(samples)
    return part
