"""Timing on devices that compute asynchronously."""

import time

import torch


def now(device: torch.device | str) -> float:
    """The time in seconds, once the device has finished its work."""
    device_type = torch.device(device).type
    if device_type == "cuda":
        torch.cuda.synchronize(device)
    elif device_type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
