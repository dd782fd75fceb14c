"""Loaders: data sets read by worker processes, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mobilevit.data.formats.folders import DataError
from mobilevit.data.images import ImageError
from mobilevit.data.sampler import MultiScaleBatchSampler, Order, SampleKey
from mobilevit.data.shards.order import ShardOrder
from mobilevit.utils.devices import init_worker

T = TypeVar("T")


class BatchSource(Protocol):
    """A data set that makes whole batches; images `[B, 3, H, W]` come first in each."""

    def __len__(self) -> int:
        """The number of samples."""

    def __getitems__(self, keys: list[Any]) -> Any:
        """One batch, of indices or of `SampleKey`s.

        Raises:
            ImageError: an image cannot be read.
            DataError: what holds the images cannot be read.
        """


def as_is(batch: T) -> T:
    """Collate what the data set has made into a batch already."""
    return batch


class _Reporting(Dataset[Any]):
    """A data set of batches; what cannot be read comes back as its error.

    What a worker raises, torch wraps into a text with the worker's traceback.
    """

    def __init__(self, batches: BatchSource) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitems__(self, keys: list[Any]) -> Any:
        try:
            return self.batches.__getitems__(keys)
        except (ImageError, DataError) as error:
            return error


def _loader(batches: BatchSource, workers: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(
        _Reporting(batches),
        num_workers=workers,
        collate_fn=as_is,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # not the global one, which draws dropout
        pin_memory=torch.cuda.is_available(),
        **options,
    )


class WorkerError(ChildProcessError):
    """A process that reads images has died."""


def _delivered(batches: Iterable[T | ImageError | DataError]) -> Iterator[T]:
    source = iter(batches)
    while True:
        try:
            batch = next(source)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkerError(
                f"a process that reads images has died ({error}). The machine may be short of "
                "memory (fewer --data.workers need less), or its /dev/shm may be full"
            ) from error
        if isinstance(batch, ImageError | DataError):
            try:
                raise batch
            finally:
                del batch  # else this frame would be kept by itself, and with it the workers
        yield batch


class EvaluationLoader:
    """The batches of a data set, all samples in order; each process of several takes its share."""

    def __init__(
        self,
        dataset: BatchSource,
        *,
        batch_size: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Load for process `rank` of `world_size`; no sample is seen twice.

        `workers` processes decode ahead; 0 decodes in this one.

        Raises:
            DataError: several processes, and samples that can only be read from begin to end.
        """
        shards = getattr(dataset, "shards", None)
        if shards is None or not shards.sequential:
            mine = range(rank, len(dataset), world_size)
            self._loader = _loader(dataset, workers, batch_size=batch_size, sampler=mine)
            return
        if world_size > 1:
            raise DataError(
                "sequential shards are evaluated by one process alone: "
                "validate on files, or on shards that lie on a disk"
            )
        # Interleaved, so that each worker reads shards of its own.
        order = ShardOrder(shards.counts, shuffle=False, sequential=True)
        sizes = [min(batch_size, len(order) - done) for done in range(0, len(order), batch_size)]
        batches = list(order.deal(sizes))
        self._loader = _loader(dataset, order.workers(workers), batch_sampler=batches)

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """The batches.

        Raises:
            ImageError: an image cannot be read.
        """
        return _delivered(self._loader)


class EpochLoader:
    """Training batches of one epoch after another, from a position that can be saved.

    Iterating gives what is left of the sampler's epoch: all of it, or after `load_state_dict` what
    follows the batches that were taken before.
    """

    def __init__(
        self, dataset: BatchSource, batches: MultiScaleBatchSampler, *, workers: int
    ) -> None:
        """`workers` processes decode ahead; 0 decodes in this one."""
        self.batches = batches
        workers = batches.sampler.workers(workers)
        self._position = {"epoch": 0, "taken": 0}
        self._left = _Left(batches)
        self._loader = _loader(
            dataset,
            workers,
            batch_sampler=self._left,
            persistent_workers=workers > 0,
        )

    @property
    def sampler(self) -> Order:
        """The order of samples; Lightning calls its `set_epoch`."""
        return self.batches.sampler

    def __len__(self) -> int:
        """Batches in the epoch, those before a resumed position included."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        """The batches that are left of the epoch; workers start with the first of them.

        Raises:
            ImageError: an image cannot be read.
        """
        epoch = self.sampler.epoch
        if self._position["epoch"] != epoch:
            self._position = {"epoch": epoch, "taken": 0}
        self._left.skip = self._position["taken"]
        for batch in _delivered(self._loader):
            self._position["taken"] += 1
            yield batch
        self._position = {"epoch": epoch, "taken": 0}

    def state_dict(self) -> dict[str, Any]:
        """The position: an epoch, and how many of its batches were taken; and of what data."""
        return {**self._position, "data": self.sampler.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start at a saved position, if the next iteration is of its epoch.

        Raises:
            DataError: the position is in other data, where it means nothing.
        """
        if (was := state.get("data", self.sampler.identity)) != self.sampler.identity:
            raise DataError(
                f"the data has changed since the run was interrupted: it was {was}, and is now "
                f"{self.sampler.identity}; go on with the same files, or begin a new run from the "
                "weights"
            )
        self._position = {"epoch": state["epoch"], "taken": state["taken"]}

    def close(self) -> None:
        """Let the workers go; there are no batches after that.

        Workers that are left to the end of the process take their `GRACE` there.
        """
        del self._loader


class _Left:
    """A batch sampler without its first `skip` batches."""

    def __init__(self, batches: MultiScaleBatchSampler) -> None:
        self.batches, self.skip = batches, 0

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.batches.after(self.skip)

    def __len__(self) -> int:
        return len(self.batches) - self.skip
