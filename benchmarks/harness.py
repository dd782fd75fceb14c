"""What the scripts here share: steps timed in turns, and the ratios of their times."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Step = Callable[[], object]
WARMUP = 2
"""Rounds that do not count."""


def measure(
    steps: dict[str, Step],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    timer: Callable[[Step], float] | None = None,
) -> dict[str, list[float]]:
    """Seconds that each step takes in each round, in a new order each round.

    They are those of `clock`, or what `timer` returns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order, draw = list(steps), random.Random(0)
    for index in range(rounds + WARMUP):
        draw.shuffle(order)
        for name in order:
            took = timer(steps[name]) if timer else _seconds(steps[name], clock)
            if index >= WARMUP:
                seconds[name].append(took)
    return seconds


def _seconds(step: Step, clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return clock() - start


def gpu_seconds(step: Step) -> float:
    """A GPU's time from the beginning of a step, with it idle, to the end of its last kernel."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


class Ratio(NamedTuple):
    """Median and quartiles of the rounds' own ratios."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, times: Sequence[float], baseline: Sequence[float]) -> Ratio:
        """How many times as long as the baseline something takes."""
        ratios = [one / other for one, other in zip(times, baseline, strict=True)]
        return cls(*statistics.quantiles(ratios, n=4))

    def __str__(self) -> str:
        """`1.20 (1.15 to 1.30)`."""
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"
