"""Loaders: worker processes read batches ahead."""

import itertools
import logging
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

log = logging.getLogger(__name__)

T = TypeVar("T")


class BatchSource(Protocol):
    """A data set that makes batches itself; those to train on begin with `[B, 3, H, W]`."""

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

    def __getitems__(self, keys: list[Any]) -> Any:
        try:
            return self.batches.__getitems__(keys)
        except (ImageError, DataError) as error:
            return error


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
    try:
        source = iter(batches)
        if previous is not None:
            signal.signal(signal.SIGCHLD, previous)
        for batch in source:
            if isinstance(batch, ImageError | DataError):
                try:
                    raise batch
                finally:
                    del batch  # the error's traceback refers to this frame, and this to the workers
            yield batch
    except RuntimeError as error:
        # An error within a worker begins with "Caught RuntimeError in DataLoader worker".
        if not str(error).startswith(("DataLoader worker (pid", "Pin memory thread exited")):
            raise
        raise WorkerError(
            f"a worker that reads images has died ({error}). The machine may be short of memory "
            f"(fewer {option} need less), or its /dev/shm may be full"
        ) from error


class _WorkerLoader:
    """Batches of a data set, which worker processes read ahead."""

    finishes_alone = False
    """What follows the death of a worker: a `WorkerError`; or, if true, the remaining batches are
    read by this process, and the error is left in `failure`."""

    def __init__(
        self, dataset: BatchSource, keys: Iterable[list[Any]], workers: int, **options: Any
    ) -> None:
        """`keys`: those of each batch; with 0 `workers`, this process reads."""
        self.failure: WorkerError | None = None
        self._dataset, self._keys = dataset, keys
        self._loader: DataLoader[Any] | None = DataLoader(
            _Reporting(dataset),
            batch_sampler=keys,
            num_workers=workers,
            collate_fn=as_is,
            worker_init_fn=init_worker,
            generator=torch.Generator(),  # not the global one, which draws dropout
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def __iter__(self) -> Iterator[Any]:
        if self._loader is None and self.failure is None:
            raise RuntimeError("this loader has been closed")
        taken = 0
        try:
            for batch in () if self._loader is None else delivered(self._loader):
                taken += 1
                yield batch
        except WorkerError as error:
            if not self.finishes_alone:
                raise
            log.warning("a worker has died: reading continues without workers, up to a checkpoint")
            # A copy, because the traceback refers to the workers.
            self.failure = WorkerError(*error.args)
            self.close()
        if self.failure:
            for keys in itertools.islice(self._keys, taken, None):
                yield self._dataset.__getitems__(keys)

    def close(self) -> None:
        """End the workers, which would delay the end of the process by their `GRACE`."""
        self._loader = None


class EvaluationLoader(_WorkerLoader):
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
        self._length = math.ceil(len(dataset) / world_size / batch_size)
        if shards is None or not shards.sequential:
            share = list(range(rank, len(dataset), world_size))
            starts = range(0, len(share), batch_size)
            batches = [share[start : start + batch_size] for start in starts]
        elif world_size > 1:
            raise DataError(
                "shards at URLs, from commands and in tables are evaluated by one process alone: "
                "validate on a folder of images, or on local shards"
            )
        else:
            # Interleaved, so that each worker reads shards of its own.
            order = ShardOrder(shards.counts, shuffle=False, sequential=True)
            left = range(len(order), 0, -batch_size)
            sizes = [min(batch_size, samples) for samples in left]
            batches, workers = list(order.deal(sizes)), order.workers(workers)
        super().__init__(dataset, batches, workers)

    def __len__(self) -> int:
        """The batches of the first process; others may have fewer, or none.

        Lightning leaves validation out where there are none, and the others would wait.
        """
        return self._length


class EpochLoader(_WorkerLoader):
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
        super().__init__(dataset, batches, workers, persistent_workers=workers > 0)

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
        for batch in super().__iter__():
            self._position["taken"] += 1
            yield batch
        self._position = {"epoch": epoch, "taken": 0}

    def state_dict(self) -> dict[str, Any]:
        """The position: an epoch and the number of batches taken of it."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position, if the next iteration is of its epoch."""
        self._position = {"epoch": state["epoch"], "taken": state["taken"]}
