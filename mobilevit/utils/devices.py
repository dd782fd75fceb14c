"""Who works on which processor core: the network's threads, and the processes that decode."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

GRACE = 30
"""Seconds that a worker told to terminate goes on."""


def available_cores() -> int:
    """Processor cores that this process may use, by its affinity and its container's limit."""
    from joblib import cpu_count  # slow to import

    return int(cpu_count())


def split_cores(available: int, *, on_gpu: bool) -> tuple[int, int]:
    """Divide cores between computing and loading: (compute threads, loader workers).

    On a CPU the network is the brake, at about ten times the cost of decoding, so one core in four
    loads, and at least one. More threads and workers than cores is the worst choice of all: threads
    that wait for each other spin, and keep the workers from running. With a GPU the cores load.
    """
    if on_gpu:
        return 1, max(1, min(available - 1, 16))
    workers = max(1, available // 4) if available > 1 else 0
    return max(1, available - workers), workers


def compute_device(name: str) -> torch.device:
    """The device to compute on; `auto` takes a GPU where there is one.

    Raises:
        ValueError: an unknown device, or one that this machine or this PyTorch does not have.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if name not in available:
        raise ValueError(f"device must be auto, cpu, cuda or mps, not {name!r}")
    if not available[name]:
        raise ValueError(f"there is no {name} device here that PyTorch can use; try --device cpu")
    if name == "cuda":
        return torch.device(name, int(os.environ.get("LOCAL_RANK", "0")))  # torchrun's
    return torch.device(name)


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Let torch compute on so many threads of a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def init_worker(_: int) -> None:
    """Set up a loader's worker: it decodes on one core, and leaves signals to the main process.

    A terminal sends Ctrl-C to the workers too, and many a scheduler SIGTERM; a worker that died of
    it would take the run with it before its state is saved. SIGTERM is obeyed after a while all the
    same: it is also how the main process, at its own end, gets rid of a worker that still waits.
    """
    main = multiprocessing.parent_process()
    if main is not None and not main.is_alive():
        # Killed already. torch's own watch would wait for a parent that it has never seen to go.
        os._exit(1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):  # not on Windows, which has no SIGTERM to obey either
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
