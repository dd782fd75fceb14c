"""The order of samples in shards: shuffled, and yet read almost sequentially.

Shards are shuffled and laid end to end. Each rank takes an equal part of that sequence and cuts it
into streams. Batches come from the streams in turn, each drawn at random from a pool of the
stream's next samples. So a process reads only a few shards at a time, each from beginning to end,
and workers do not share shards.

The order is a pure function of (seed, epoch, sizes of the shards, batches). It does not depend on
the number of workers, and a position in it is the number of batches before it.
"""

import logging
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
        per_stream = [sizes[stream :: self.streams] for stream in range(self.streams)]
        parts = np.split(self._sequence(), np.cumsum(list(map(sum, per_stream)))[:-1])
        streams = [
            _draw(part, stream_sizes, self.pool, self._generator(number))
            for number, (part, stream_sizes) in enumerate(zip(parts, per_stream, strict=True))
        ]
        for step in range(len(sizes)):
            batch = next(streams[step % self.streams])
            if step >= skip:
                yield batch

    def _generator(self, stream: int) -> np.random.Generator | None:
        if not self.shuffle:
            return None
        return np.random.default_rng((self.seed, self.epoch, 3, self.rank, stream))

    def _sequence(self) -> np.ndarray:
        """This rank's part of the shards laid end to end."""
        shards = np.split(np.arange(self.samples), np.cumsum(self.counts)[:-1])
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch, 1)).permutation(len(shards))
            shards = [shards[number] for number in order]
        # Repeats from the head.
        padded = np.resize(np.concatenate(shards), len(self) * self.world_size)
        return padded[self.rank * len(self) : (self.rank + 1) * len(self)]


def _draw(
    sequence: np.ndarray,
    sizes: Sequence[int],
    pool_size: int,
    generator: np.random.Generator | None,
) -> Iterator[list[int]]:
    """Batches drawn from a pool of a sequence's next samples; without a generator, in order."""
    pool, taken = np.empty(0, np.int64), 0
    for size in sizes:
        missing = pool_size + size - len(pool)
        pool = np.append(pool, sequence[taken : taken + missing])
        taken += missing
        if generator is None:
            drawn = np.arange(size)
        else:
            drawn = generator.choice(len(pool), size, replace=False)
        yield pool[drawn].tolist()
        pool = np.delete(pool, drawn)
