"""Errors in loader workers are told apart from their death."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from torch.utils.data import DataLoader, Dataset

from mobilevit.data.loader import WorkerError, delivered


class Broken(Dataset[int]):
    """Whose items are not to be had."""

    def __init__(self, *, dies: bool) -> None:
        self.dies = dies

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("a shape does not fit")


def batches(*, dies: bool) -> Iterator[object]:
    return delivered(DataLoader(Broken(dies=dies), num_workers=1))


def test_an_error_within_a_worker_is_no_death() -> None:
    with pytest.raises(RuntimeError, match="a shape does not fit") as caught:
        list(batches(dies=False))
    assert not isinstance(caught.value, WorkerError)


def test_a_killed_worker_is_reported() -> None:
    with pytest.raises(WorkerError, match=r"has died .*fewer --data\.workers need less"):
        list(batches(dies=True))
