"""Devices, their clock, CPU cores, and how threads and loader workers share them."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mobilevit.utils.memory import return_freed_memory

GRACE = 30
"""Seconds for which a loader worker ignores SIGTERM."""


def available_cores() -> int:
    """CPU cores that this process may use, by its affinity and its container's limit."""
    from joblib import cpu_count  # slow to import

    return int(cpu_count())


def split_cores(available: int, *, on_gpu: bool) -> tuple[int, int]:
    """Divide cores between computing and loading: (compute threads, loader workers).

    On a CPU the network costs about ten times as much as decoding, so only one core in four loads.
    More threads and workers than cores would be far slower: threads that wait for each other spin
    and keep the workers from running. With a GPU all cores load.

    >>> split_cores(8, on_gpu=False)
    (6, 2)
    """
    if on_gpu:
        return 1, max(1, min(available - 1, 16))
    workers = max(1, available // 4) if available > 1 else 0
    return max(1, available - workers), workers


def compute_device(name: str) -> torch.device:
    """The device to compute on, which must be available; `auto` is a GPU if there is one."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, found in available.items() if found)
    if name not in available:
        raise ValueError(f"device must be auto, cpu, cuda or mps, not {name!r}")
    if not available[name]:
        raise ValueError(f"PyTorch finds no {name} device on this machine; try --device cpu")
    if name == "cuda":
        return torch.device(name, int(os.environ.get("LOCAL_RANK", "0")))  # torchrun's
    return torch.device(name)


def now(device: torch.device | str) -> float:
    """The time in seconds, once the device has finished its work."""
    device_type = torch.device(device).type
    if device_type == "cuda":
        torch.cuda.synchronize(device)
    elif device_type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Set torch's number of CPU threads inside a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def training_precision(device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices in TensorFloat-32 on an NVIDIA GPU, inside a `with` block.

    cuDNN computes convolutions in it by default. `cudnn.benchmark` can be set inside, too.
    """
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    if device.type == "cuda":  # of a CPU's products it would take bits as well
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark


def init_worker(_: int) -> None:
    """Initialise a loader worker: one thread, and signals are left to the main process.

    Terminals also send SIGINT to workers, and many schedulers SIGTERM; a worker that died would end
    the run before its state is saved. SIGTERM is obeyed after `GRACE` seconds, because the main
    process also sends it at its own end, to workers that are still waiting.
    """
    main = multiprocessing.parent_process()
    if main is not None and not main.is_alive():
        # torch's own check only notices a parent that dies later.
        os._exit(1)
    torch.set_num_threads(1)
    return_freed_memory()  # the main process may keep it, but some images are much larger
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):  # not on Windows, which has no SIGTERM either
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
