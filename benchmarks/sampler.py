"""Time an epoch with the multi-scale sampler against one with the standard sampler.

    python benchmarks/sampler.py FOLDER [--size 128] [--batch 64] [--rounds N]

FOLDER has one folder per class, or train/ and val/. One process, one thread, decoding included or
not; each round trains every sampler on as many pictures, one sampler after the other, in an order
drawn anew. An epoch is a number of pictures too, hence the ratio of these times is that of epochs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from mobilevit.data.datasets import FolderSamples, TrainingSet
from mobilevit.data.folder import splits
from mobilevit.data.multiscale import (
    EpochOrder,
    MultiScaleBatchSampler,
    MultiScaleSchedule,
    SampleKey,
    scales,
)
from mobilevit.data.preprocessing import Preprocessing
from mobilevit.data.transforms import AugmentOptions, BatchMix, TrainTransform
from mobilevit.models.variants import build

STANDARD = "standard"


def endless(order: EpochOrder, schedule: MultiScaleSchedule) -> Iterator[list[SampleKey]]:
    """Batches of one epoch after another."""
    batches = MultiScaleBatchSampler(order, schedule)
    epoch = 0
    while True:
        order.set_epoch(epoch)
        yield from batches
        epoch += 1


class Contestant:
    """One sampler with a network that trains on its batches."""

    def __init__(self, dataset: TrainingSet, schedule: MultiScaleSchedule, classes: int) -> None:
        """Start at the first batch of the first epoch."""
        self.dataset = dataset
        self.batches = endless(EpochOrder(schedule.samples), schedule)
        self.network = build("mobilevit_xxs", num_classes=classes)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, fused=True)

    def run(self, pictures: int) -> tuple[float, float, int]:
        """Train on at least so many: seconds a picture with decoding and without, and steps."""
        decoding = learning = 0.0
        seen = steps = 0
        while seen < pictures:
            start = time.perf_counter()
            images, labels = self.dataset.__getitems__(next(self.batches))
            decoded = time.perf_counter()
            self.optimizer.zero_grad()
            F.cross_entropy(self.network(images), labels).backward()
            self.optimizer.step()
            learning += time.perf_counter() - decoded
            decoding += decoded - start
            seen, steps = seen + len(labels), steps + 1
        return (decoding + learning) / seen, learning / seen, steps


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the samplers against each other.")
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=128, help="base size in pixels")
    parser.add_argument("--min", type=int, default=96, help="smallest size")
    parser.add_argument("--max", type=int, default=160, help="largest size")
    parser.add_argument("--batch", type=int, default=64, help="batch at the base size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=600, help="at least, a sampler and round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    train = splits(options.folder).train
    transform = TrainTransform(AugmentOptions(), Preprocessing())
    classes = len(train.classes)
    dataset = TrainingSet(
        FolderSamples(train), transform, BatchMix(AugmentOptions(), classes), seed=0
    )
    several = tuple(scales(options.min, options.max, options.size))
    plans = {STANDARD: ((options.size,), "area")}
    plans |= {f"multi-scale, {rule}": (several, rule) for rule in ("area", "floor", "max")}
    schedules = {
        name: MultiScaleSchedule(
            samples=len(train),
            sizes=sizes,
            base_size=options.size,
            base_batch=options.batch,
            rule=rule,
        )
        for name, (sizes, rule) in plans.items()
    }
    contestants = {
        name: Contestant(dataset, schedule, classes) for name, schedule in schedules.items()
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in plans}
    order, draw = list(plans), random.Random(0)
    for index in range(options.rounds + 1):
        draw.shuffle(order)
        for name in order:
            whole, network, _ = contestants[name].run(options.pictures)
            if index:  # the first round warms up
                times[name].append((whole, network))
    print(
        f"sizes {several}; {len(train)} pictures an epoch; ratio: standard / this, higher is faster"
    )
    print(
        f"{'sampler':22}{'steps/epoch':>12}{'ms/picture':>12}{'ratio':>8}{'without decoding':>18}"
    )
    for name, pairs in times.items():
        ratios = [
            statistics.median(
                a[part] / b[part] for a, b in zip(times[STANDARD], pairs, strict=True)
            )
            for part in (0, 1)
        ]
        steps = statistics.mean(len(schedules[name].epoch(epoch)) for epoch in range(20))
        milliseconds = 1e3 * statistics.median(whole for whole, _ in pairs)
        print(f"{name:22}{steps:12.1f}{milliseconds:12.2f}{ratios[0]:8.2f}{ratios[1]:18.2f}")


if __name__ == "__main__":
    main()
