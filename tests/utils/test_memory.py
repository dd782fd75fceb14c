"""Memory that is kept between tensors."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from mobilevit.utils.memory import keep_freed_memory, peak_memory

NUMBERS = 20 << 20  # 80 MiB, more than the largest block that glibc itself keeps


def page_faults() -> int:
    """Of making and freeing a large tensor ten times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(NUMBERS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_freed_memory_serves_the_next_tensor() -> None:
    usual = page_faults()
    with keep_freed_memory():
        # Aligned tensors do not fit the very gap that one left: a few gaps have to join first.
        page_faults(), page_faults()
        assert page_faults() < usual / 4
        kept = resident()
    assert resident() < kept - 4 * NUMBERS / 2


def test_off_changes_nothing() -> None:
    with keep_freed_memory(False):
        usual = page_faults()
    assert page_faults() > usual / 2


def test_peak_counts_what_was_held() -> None:
    held = torch.ones(NUMBERS)
    assert held.nbytes < peak_memory() < 1 << 40
