"""The multi-scale sampler of the paper (section 3.3): smaller images come in larger batches.

Every step has its own image size, drawn at random, and a batch size that depends on it, so that all
steps cost about the same. `MultiScaleSchedule` plans the steps of an epoch as a pure function of
its options, the seed and the epoch, so that all processes have the same plan.
`MultiScaleBatchSampler` deals samples out to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from mobilevit.utils.options import Count, Options

BatchRule = Literal["area", "floor", "max"]


def scales(
    minimum: int, maximum: int, base: int, *, count: int = 5, multiple: int = 32
) -> list[int]:
    """Image sizes: `count` evenly spaced ones and `base`, rounded to `multiple`, each once.

    The sizes of the authors' runs:

    >>> scales(160, 320, base=256)
    [160, 192, 256, 288, 320]
    """
    if not 0 < minimum <= base <= maximum or count < 1:
        raise ValueError(f"sizes from {minimum} to {maximum} do not include the base size {base}")
    sizes = [*np.linspace(minimum, maximum, count), base]
    # Halves go up. `round` takes them to even: 80 would become 64, smaller than any size allowed.
    return sorted({max(1, int(size / multiple + 0.5)) * multiple for size in sizes})


class Step(NamedTuple):
    """The images of one training step on each rank."""

    height: int
    width: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class MultiScaleSchedule(Options):
    """The steps of each epoch of a multi-scale run.

    Three rules for the batch size have been published; b is `base_batch`, s a step's size:

    * `area`: b * base_size^2 / s^2, the authors' later code;
    * `floor`: the same but at least b, the authors' code of 2021;
    * `max`: b * max(sizes)^2 / s^2, the paper's text, where b is the batch of the largest size.

    The result is rounded down, then to the nearest multiple of `batch_multiple` (8 in the code of
    2021, its number of GPUs).

    >>> MultiScaleSchedule(samples=1000, sizes=(160, 256, 320)).batch_size(160)
    327
    """

    samples: Count
    """Samples of one rank in an epoch."""
    sizes: tuple[int, ...]
    """Image sizes (squares) to draw from, in pixels; a single one is the standard sampler."""
    base_size: Count = 256
    base_batch: Count = 128
    batch_rule: BatchRule = "area"
    batch_multiple: Count = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.sizes, default=0) < 1:
            raise ValueError(f"sizes must be at least 1, not {self.sizes}")

    def batch_size(self, size: int) -> int:
        reference = max(self.sizes) if self.batch_rule == "max" else self.base_size
        batch = self.base_batch * reference**2 // size**2
        if self.batch_rule == "floor":
            batch = max(self.base_batch, batch)
        multiple = self.batch_multiple
        return max(multiple, (batch + multiple // 2) // multiple * multiple)

    def epoch(self, epoch: int) -> list[Step]:
        """The steps of one epoch, whose batches sum to `samples`; the last one has what is left."""
        draw = np.random.default_rng((self.seed, epoch, 0))
        steps: list[Step] = []
        left = self.samples
        while left:
            size = int(draw.choice(self.sizes))
            batch = min(left, self.batch_size(size))
            # Batch norm cannot learn from a batch of one, so a single last sample joins this batch.
            if left - batch == 1:
                batch += 1
            steps.append(Step(size, size, batch))
            left -= batch
        return steps


class SampleKey(NamedTuple):
    """What a data set needs to know to make one training sample."""

    sample: int
    height: int
    width: int
    epoch: int


class Order(ABC):
    """A shuffled order of one rank's samples, different in each epoch."""

    def __init__(self, samples: int, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.samples, self.seed, self.rank, self.world_size = samples, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples of one rank."""
        return -(-self.samples // self.world_size)

    @abstractmethod
    def deal(self, sizes: Sequence[int], skip: int = 0) -> Iterator[list[int]]:
        """All samples of the epoch in batches of these sizes, without the first `skip` batches."""

    def workers(self, requested: int) -> int:
        """How many of the requested workers can read side by side."""
        return requested


class EpochOrder(Order):
    """An order of samples with random access, as a pure function of (seed, epoch).

    It is padded with its own head to a multiple of `world_size`; only those samples are seen twice.
    """

    def deal(self, sizes: Sequence[int], skip: int = 0) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch, 1)).permutation(self.samples)
        order = np.resize(order, len(self) * self.world_size)  # repeats from the head
        own = order[self.rank :: self.world_size]
        for batch in np.split(own, np.cumsum(sizes)[:-1])[skip:]:
            yield batch.tolist()


class MultiScaleBatchSampler(Sampler[list[SampleKey]]):
    """Batches of `SampleKey`s: the samples of an order, dealt out to the steps of a schedule."""

    def __init__(self, order: Order, schedule: MultiScaleSchedule) -> None:
        if len(order) != schedule.samples:
            raise ValueError(f"{len(order)} samples for a schedule of {schedule.samples}")
        self.sampler, self.schedule, self.skip = order, schedule, 0

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """The batches of the order's epoch after the first `skip`."""
        epoch = self.sampler.epoch
        steps = self.schedule.epoch(epoch)
        batches = self.sampler.deal([step.batch_size for step in steps], self.skip)
        for (height, width, _), batch in zip(steps[self.skip :], batches, strict=True):
            yield [SampleKey(index, height, width, epoch) for index in batch]

    def __len__(self) -> int:
        """Batches in the order's epoch, including skipped ones."""
        return len(self.schedule.epoch(self.sampler.epoch))
