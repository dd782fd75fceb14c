"""Time as a device sees it."""

from __future__ import annotations

import time

import torch


def now(device: torch.device | str) -> float:
    """Seconds, once the device has done all that it was told."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
