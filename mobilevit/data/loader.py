"""Loaders: worker processes read batches ahead."""

import math
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mobilevit.data.errors import DataError
from mobilevit.data.images import ImageError
from mobilevit.data.sampler import MultiScaleBatchSampler, Order
from mobilevit.data.shards.order import ShardOrder
from mobilevit.utils.devices import init_worker

T = TypeVar("T")


class BatchSource(Protocol):
    """A data set that makes batches itself, each beginning with its images `[B, 3, H, W]`."""

    def __len__(self) -> int:
        """The number of samples."""

    def __getitems__(self, keys: list[Any]) -> Any:
        """One batch, of indices or of `SampleKey`s; raises `ImageError` or `DataError`."""


def as_is(batch: T) -> T:
    """Return the batch: the data set has already collated it."""
    return batch


class _Reporting(Dataset[Any]):
    """A data set of batches that returns reading errors instead of raising them.

    In the main process, an error raised by a worker would be text with the worker's traceback.
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
    """A worker process has died."""


def delivered(
    batches: Iterable[T | ImageError | DataError], *, option: str = "--data.workers"
) -> Iterator[T]:
    """The batches of a loader; errors that workers return are raised.

    Raises:
        WorkerError: a worker has died; `option` sets their number.
    """
    # torch's handler would raise wherever this process is, as within a step of the optimizer.
    # Without it, a worker's death is noticed here, while waiting for a batch.
    main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGCHLD) if main and hasattr(signal, "SIGCHLD") else None
    source = iter(batches)
    if previous is not None:
        signal.signal(signal.SIGCHLD, previous)
    while True:
        try:
            batch = next(source)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkerError(
                f"a worker that reads images has died ({error}). The machine may be short of "
                f"memory (fewer {option} need less), or its /dev/shm may be full"
            ) from error
        if isinstance(batch, ImageError | DataError):
            try:
                raise batch
            finally:
                del batch  # the error's traceback refers to this frame, and this to the workers
        yield batch


class EvaluationLoader:
    """All samples in order, as batches; each of several processes loads its share of them."""

    def __init__(
        self,
        dataset: BatchSource,
        *,
        batch_size: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`workers` processes read ahead; with 0, this one reads."""
        shards = getattr(dataset, "shards", None)
        if shards is None or not shards.sequential:
            share = range(rank, len(dataset), world_size)
            self._loader = _loader(dataset, workers, batch_size=batch_size, sampler=share)
            self._length = math.ceil(len(dataset) / world_size / batch_size)
            return
        if world_size > 1:
            raise DataError(
                "shards at URLs, from commands and in tables are evaluated by one process alone: "
                "validate on a folder of images, or on local shards"
            )
        # Interleaved, so that each worker reads shards of its own.
        order = ShardOrder(shards.counts, shuffle=False, sequential=True)
        sizes = [min(batch_size, len(order) - done) for done in range(0, len(order), batch_size)]
        batches = list(order.deal(sizes))
        self._loader = _loader(dataset, order.workers(workers), batch_sampler=batches)
        self._length = len(batches)

    def __len__(self) -> int:
        """The batches of the first process; others may have fewer, or none.

        Lightning leaves validation out where there are none, and the others would wait.
        """
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return delivered(self._loader)


class EpochLoader:
    """Training batches, with a position that can be saved.

    Iteration gives the sampler's epoch or, after `load_state_dict`, what is left of it.
    """

    def __init__(
        self, dataset: BatchSource, batches: MultiScaleBatchSampler, *, workers: int
    ) -> None:
        """`workers` processes read ahead; with 0, this one reads."""
        self.batches = batches
        workers = batches.sampler.workers(workers)
        self._position = {"epoch": 0, "taken": 0}
        self._loader = _loader(
            dataset, workers, batch_sampler=batches, persistent_workers=workers > 0
        )

    @property
    def sampler(self) -> Order:
        """The order of samples; Lightning calls its `set_epoch`."""
        return self.batches.sampler

    def __len__(self) -> int:
        """Batches in the epoch, including those before a resumed position."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        epoch = self.sampler.epoch
        if self._position["epoch"] != epoch:
            self._position = {"epoch": epoch, "taken": 0}
        self.batches.skip = self._position["taken"]
        for batch in delivered(self._loader):
            self._position["taken"] += 1
            yield batch
        self._position = {"epoch": epoch, "taken": 0}

    def state_dict(self) -> dict[str, Any]:
        """The position: an epoch and the number of batches taken of it."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position, if the next iteration is of its epoch."""
        self._position = {"epoch": state["epoch"], "taken": state["taken"]}

    def close(self) -> None:
        """End the workers, which would delay the end of the process by their `GRACE`."""
        del self._loader
