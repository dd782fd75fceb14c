"""The multi-scale sampler of the paper (section 3.3): small images in large batches, and so on.

Every step has its own image size, drawn at random, and a batch size that goes with it, so that
a step costs about the same whatever its size. `MultiScaleSchedule` plans the steps of an epoch as
a pure function of its options, the seed and the epoch: all processes of a run that ask get the
same plan, whatever else draws random numbers in them. `MultiScaleBatchSampler` deals samples out
to the plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from torch.utils.data import Sampler

BatchRule = Literal["area", "floor", "max"]


def scales(
    minimum: int, maximum: int, base: int, *, count: int = 5, multiple: int = 32
) -> list[int]:
    """Sizes in pixels: `count` evenly spaced ones and `base`, rounded to `multiple`, each once.

    160 to 320 around 256 gives 160, 192, 256, 288, 320, as in the authors' runs.

    Raises:
        ValueError: a range that is empty or does not hold `base`.
    """
    if not 0 < minimum <= base <= maximum or count < 1:
        raise ValueError(f"sizes from {minimum} to {maximum} do not hold the base size {base}")
    sizes = [*np.linspace(minimum, maximum, count), base]
    # Halves go up: to even, as `round` has them, 80 would become 64, below any range from 80 on.
    return sorted({max(1, int(size / multiple + 0.5)) * multiple for size in sizes})


class Step(NamedTuple):
    """What one training step takes, on every rank."""

    height: int
    width: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class MultiScaleSchedule:
    """The plan of a multi-scale run: epoch -> steps.

    Three batch rules have been published; b is `base_batch`, s a step's size:

    * `area`: b * base_size^2 / s^2, the authors' later code;
    * `floor`: the same but never under b, the authors' code of 2021;
    * `max`: b * max(sizes)^2 / s^2, as the paper's text has it, where b is the batch of the
      largest size.

    A batch is rounded down to whole samples, then to the nearest multiple of `batch_multiple`
    (the 2021 code: 8, its number of GPUs).
    """

    samples: int
    """Samples that one rank sees in an epoch."""
    sizes: tuple[int, ...]
    """Image sizes (squares) to draw from, in pixels; one size makes the standard sampler."""
    base_size: int = 256
    base_batch: int = 128
    batch_rule: BatchRule = "area"
    batch_multiple: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a plan without steps.

        Raises:
            ValueError: no samples, no sizes, an unknown batch rule, or a number below 1.
        """
        if self.batch_rule not in ("area", "floor", "max"):
            raise ValueError(f"batch_rule must be area, floor or max, not {self.batch_rule!r}")
        if not self.sizes or min(*self.sizes, self.base_size, self.base_batch) < 1:
            raise ValueError("sizes and batch sizes must be at least 1")
        if self.samples < 1 or self.batch_multiple < 1:
            raise ValueError("a schedule needs at least one sample and a batch multiple of 1")

    def batch_size(self, size: int) -> int:
        """The batch that goes with a size."""
        reference = max(self.sizes) if self.batch_rule == "max" else self.base_size
        batch = self.base_batch * reference**2 // size**2
        if self.batch_rule == "floor":
            batch = max(self.base_batch, batch)
        multiple = self.batch_multiple
        return max(multiple, (batch + multiple // 2) // multiple * multiple)

    def epoch(self, epoch: int) -> list[Step]:
        """The steps of one epoch; their batches sum up to `samples`.

        The last batch holds what is left. One sample alone joins the batch before it: batch norm
        cannot learn from a batch of one.
        """
        draw = np.random.default_rng((self.seed, epoch, 0))
        steps: list[Step] = []
        left = self.samples
        while left:
            size = int(draw.choice(self.sizes))
            batch = min(left, self.batch_size(size))
            if left - batch == 1:
                batch += 1
            steps.append(Step(size, size, batch))
            left -= batch
        return steps


class SampleKey(NamedTuple):
    """What a data set needs to make one training sample."""

    sample: int
    height: int
    width: int
    epoch: int


class Order(Protocol):
    """An order of one rank's samples, anew each epoch."""

    epoch: int

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is dealt out next."""

    def __len__(self) -> int:
        """Samples of one rank."""

    def deal(self, sizes: Sequence[int], skip: int = 0) -> Iterator[list[int]]:
        """Batches of these sizes, but for the first `skip`; all samples of the epoch, once."""

    def workers(self, wanted: int) -> int:
        """How many processes, of those wanted, can share the reading."""

    @property
    def identity(self) -> str:
        """What tells the order apart from another of the same epoch."""


class EpochOrder(Sampler[int]):
    """A shuffled order of samples, anew each epoch; one rank's share of it.

    A pure function of (seed, epoch). The order is padded with its own head to a multiple of
    `world_size`, the only way in which a sample is seen twice.
    """

    def __init__(self, samples: int, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        """Order `samples` indices; this is process `rank` of `world_size`."""
        self.samples, self.seed, self.rank, self.world_size = samples, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def _indices(self) -> np.ndarray:
        order = np.random.default_rng((self.seed, self.epoch, 1)).permutation(self.samples)
        order = np.resize(order, len(self) * self.world_size)  # repeats from the head
        return order[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[int]:
        """Indices of this rank's samples."""
        return (int(index) for index in self._indices())

    def __len__(self) -> int:
        """Samples of one rank."""
        return -(-self.samples // self.world_size)

    def deal(self, sizes: Sequence[int], skip: int = 0) -> Iterator[list[int]]:
        """Batches of these sizes, but for the first `skip`."""
        order = self._indices()
        ends = list(itertools.accumulate(sizes))
        for begin, end in list(itertools.pairwise([0, *ends]))[skip:]:
            yield order[begin:end].tolist()

    def workers(self, wanted: int) -> int:
        """All that are wanted: any of them can read any sample."""
        return wanted

    @property
    def identity(self) -> str:
        """The number of samples."""
        return f"{self.samples} samples"


class MultiScaleBatchSampler(Sampler[list[SampleKey]]):
    """Batches of `SampleKey`s: an order of samples dealt out to a schedule's steps."""

    def __init__(self, order: Order, schedule: MultiScaleSchedule) -> None:
        """Deal `order` out to `schedule`.

        Raises:
            ValueError: the two are of different lengths.
        """
        if len(order) != schedule.samples:
            raise ValueError(f"{len(order)} samples for a schedule of {schedule.samples}")
        self.sampler = order
        self.schedule = schedule

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """The batches of the order's epoch."""
        return self.after(0)

    def after(self, skip: int) -> Iterator[list[SampleKey]]:
        """The batches of the order's epoch that follow the first `skip`."""
        epoch = self.sampler.epoch
        steps = self.schedule.epoch(epoch)
        batches = self.sampler.deal([step.batch_size for step in steps], skip)
        for (height, width, _), batch in zip(steps[skip:], batches, strict=True):
            yield [SampleKey(index, height, width, epoch) for index in batch]

    def __len__(self) -> int:
        """Batches in the order's epoch."""
        return len(self.schedule.epoch(self.sampler.epoch))
