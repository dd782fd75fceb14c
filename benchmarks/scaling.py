"""MobileViT against MobileViTv2 as images grow: time, memory, and the time attention takes.

    python benchmarks/scaling.py [--models mobilevit_xs,mobilevitv2_075]
                                 [--sizes 256,384,512,768,1024] [--runtime torch,onnx] [--runs 10]
                                 [--out FOLDER]

One thread, batch 1, float32, new weights. Attention takes N^2 products for N patches in v1, and N
in v2. The exponents of time and memory are slopes of log(time) over log(pixels): by least squares
over all sizes, and between the last two. The fraction of multiply-accumulates in attention counts
the products among tokens alone; the fraction of time, measured in PyTorch, includes the attention
layers' linear layers.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from statistics import linear_regression, median

import torch
from torch import nn

import mobilevit
from mobilevit.commands.benchmark.models import find_subjects
from mobilevit.commands.benchmark.report import Row
from mobilevit.models.fuse import fuse
from mobilevit.models.layers import SelfAttention, SeparableSelfAttention
from mobilevit.utils.tables import markdown

RUNS = 3
"""Runs of the network whose attention layers are timed."""


class Stopwatch:
    """Times the attention layers of a network."""

    def __init__(self, network: nn.Module) -> None:
        """Register hooks on them."""
        self.total = 0.0
        for module in network.modules():
            if isinstance(module, SelfAttention | SeparableSelfAttention):
                module.register_forward_pre_hook(self._begin)
                module.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self.begun = time.process_time()

    def _end(self, *_: object) -> None:
        self.total += time.process_time() - self.begun


def attention_time(model: str, size: int) -> float:
    """The fraction of the processor time that attention layers take in PyTorch."""
    (subject,) = find_subjects([model], [size])
    assert subject.network is not None
    network = fuse(subject.network)
    watch, images = Stopwatch(network), torch.rand(1, 3, size, size)
    shares = []
    with torch.inference_mode():
        for _ in range(RUNS + 1):
            watch.total, begun = 0.0, time.process_time()
            network(images)
            shares.append(watch.total / (time.process_time() - begun))
    return median(shares[1:])


def exponents(sizes: list[int], values: list[float | None]) -> tuple[str, str]:
    """Slopes of log(value) over log(pixels): over all sizes, and between the last two."""
    points = [(2 * math.log(size), math.log(v)) for size, v in zip(sizes, values, strict=True) if v]
    if len(points) < 2:
        return "-", "-"
    slopes = (linear_regression(*zip(*part, strict=True)).slope for part in (points, points[-2:]))
    first, last = (f"{slope:.2f}" for slope in slopes)
    return first, last


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="mobilevit_xs,mobilevitv2_075")
    parser.add_argument("--sizes", default="256,384,512,768,1024")
    parser.add_argument("--runtime", default="torch,onnx")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", help="folder for all figures, tables and a plot")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    torch.set_num_threads(1)
    models, sizes = options.models.split(","), [int(text) for text in options.sizes.split(",")]
    result = mobilevit.benchmark(
        *models,
        runtime=options.runtime.split(","),
        sizes=sizes,
        warmup=2,
        runs=options.runs,
        out=options.out,
    )
    print(result, end="\n\n")

    found: dict[tuple[str, str], dict[int, Row]] = {}
    for row in result.rows:
        if row.cpu_ms is not None:
            found.setdefault((row.model, row.runtime), {})[row.size] = row
    heads = ("", *(f"{size} px" for size in sizes), "exponent", "of the last two")
    tables = {
        "ms": lambda row: row.cpu_ms,
        "MB while running": lambda row: (row.running_bytes or 0) / 1e6,
    }
    for unit, value in tables.items():
        lines = []
        for (model, runtime), by_size in found.items():
            values = [value(by_size[size]) if size in by_size else None for size in sizes]
            cells = ("-" if v is None else f"{v:.1f}" for v in values)
            lines.append((f"{model}, {runtime}, {unit}", *cells, *exponents(sizes, values)))
        print(markdown(heads, lines), end="\n\n")
    lines = []
    for model in models:
        costs = [mobilevit.describe(model=model, size=size).cost for size in sizes]
        shares = (f"{cost.attention / cost.macs:.1%}" for cost in costs)
        lines.append((f"{model}, of multiply-accumulates", *shares))
        shares = (f"{attention_time(model, size):.1%}" for size in sizes)
        lines.append((f"{model}, of the time in PyTorch", *shares))
    print(markdown(("fraction in attention", *heads[1 : len(sizes) + 1]), lines))


if __name__ == "__main__":
    main()
