"""Runs in several processes, started by torchrun on one or more machines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The position of this process among those of the run; the main one writes files and prints."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among those on this machine."""
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Number of machines, all with the same number of processes."""
        return self.world_size // self.local_size

    @classmethod
    def from_environment(cls) -> Processes:
        """Read torchrun's environment variables; without them there is one process."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        found = cls(
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        )
        if found.world_size % found.local_size:
            raise ValueError(
                f"{found.world_size} processes are not a multiple of the {found.local_size} on "
                "this machine: start the same number everywhere (torchrun --nproc-per-node)"
            )
        return found


@contextmanager
def process_group(processes: Processes, device: torch.device) -> Iterator[None]:
    """Connect the processes of a run; does nothing for a single one."""
    if processes.world_size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(processes.local_rank)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def gather_items(items: list[T]) -> list[T]:
    """The items of all processes, in the order of their ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return items
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, items)
    return [item for part in everyone for item in part]
