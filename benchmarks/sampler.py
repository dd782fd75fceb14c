"""Time an epoch with the multi-scale sampler against one with the standard sampler.

    python benchmarks/sampler.py FOLDER [--size 128] [--batch 64] [--rounds N] [--decode exact]

FOLDER has one folder per class, or train/ and val/. One process, one thread. Every step of any
schedule, a size and its batch, is timed once a round, in a new order: decoding its images, and the
training step. The time of an epoch is the sum over its scheduled steps, as a mean of twenty epochs,
so that the sizes that happen to be drawn do not matter. Where decoding has cores of its own, only
the training steps count.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import NamedTuple

import torch
from torch.nn import functional as F

from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.sampler import (
    MultiScaleSchedule,
    SampleKey,
    scales,
)
from mobilevit.data.splits import LabelSamples
from mobilevit.models.config import Preprocessing
from mobilevit.models.registry import build
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.transforms import ClassificationSet

STANDARD = "standard"
EPOCHS = 20


class Cost(NamedTuple):
    """Seconds that an image takes."""

    decoding: float
    learning: float


def time_steps(
    dataset: ClassificationSet, shapes: list[tuple[int, int]], *, classes: int, rounds: int
) -> list[dict[tuple[int, int], Cost]]:
    """For each round the cost of each step: (size, batch)."""
    network = build("mobilevit_xxs", num_classes=classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    found = []
    order, draw, taken = list(shapes), random.Random(0), 0
    for _ in range(rounds + 1):
        draw.shuffle(order)
        costs = {}
        for size, batch in order:
            keys = [
                SampleKey(number % len(dataset), size, size, number // len(dataset))
                for number in range(taken, taken + batch)
            ]
            taken += batch
            start = time.process_time()
            images, labels = dataset.__getitems__(keys)
            decoded = time.process_time()
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            learnt = time.process_time()
            costs[size, batch] = Cost((decoded - start) / batch, (learnt - decoded) / batch)
        found.append(costs)
    return found[1:]  # the first round warms up


def epoch_time(
    schedule: MultiScaleSchedule, costs: dict[tuple[int, int], Cost], *, decoding: bool
) -> float:
    """Seconds of an epoch; images of a last, smaller batch cost what they do in a full one."""
    seconds = 0.0
    for epoch in range(EPOCHS):
        for step in schedule.epoch(epoch):
            cost = costs[step.height, schedule.batch_size(step.height)]
            seconds += step.batch_size * (cost.learning + decoding * cost.decoding)
    return seconds / EPOCHS


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the samplers against each other.")
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=128, help="base size in pixels")
    parser.add_argument("--min", type=int, default=96, help="smallest size")
    parser.add_argument("--max", type=int, default=160, help="largest size")
    parser.add_argument("--batch", type=int, default=64, help="batch at the base size")
    parser.add_argument("--decode", choices=["fast", "exact"], default="fast")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, help="in an epoch; by default those of FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    train = open_splits(LabelSamples, DataOptions(root=options.folder, check=False)).train
    classes, samples = len(train.classes), options.images or len(train)
    dataset = ClassificationSet(
        train, Preprocessing(), ClassificationOptions(), seed=0, decode=options.decode
    )
    several = tuple(scales(options.min, options.max, options.size))
    plans = {STANDARD: ((options.size,), "area")}
    plans |= {f"multi-scale, {rule}": (several, rule) for rule in ("area", "floor", "max")}
    schedules = {
        name: MultiScaleSchedule(
            samples=samples,
            sizes=sizes,
            base_size=options.size,
            base_batch=options.batch,
            batch_rule=rule,
        )
        for name, (sizes, rule) in plans.items()
    }
    shapes = sorted(
        {(size, plan.batch_size(size)) for plan in schedules.values() for size in plan.sizes}
    )
    found = time_steps(dataset, shapes, classes=classes, rounds=options.rounds)
    times = {
        (name, decoding): [epoch_time(plan, costs, decoding=decoding) for costs in found]
        for name, plan in schedules.items()
        for decoding in (True, False)
    }
    print(
        f"sizes {several}, decoding {options.decode}; {samples} images an epoch; "
        "ratio: standard / this, higher is faster"
    )
    print(
        f"{'sampler':22}{'steps/epoch':>12}{'s/epoch':>10}{'ms/image':>12}{'decoding':>10}"
        f"{'ratio':>8}{'without decoding':>18}"
    )
    for name, plan in schedules.items():
        steps = statistics.mean(len(plan.epoch(epoch)) for epoch in range(EPOCHS))
        total = statistics.median(times[name, True])
        share = 1 - statistics.median(times[name, False]) / total
        ratios = [
            statistics.median(
                a / b for a, b in zip(times[STANDARD, part], times[name, part], strict=True)
            )
            for part in (True, False)
        ]
        print(
            f"{name:22}{steps:12.1f}{total:10.0f}{1e3 * total / samples:12.2f}{share:10.1%}"
            f"{ratios[0]:8.2f}{ratios[1]:18.2f}"
        )


if __name__ == "__main__":
    main()
