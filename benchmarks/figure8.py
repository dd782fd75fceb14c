"""Patch sizes A (2, 2, 2) against B (8, 4, 2), three tasks, three sizes: the paper's Figure 8.

    python benchmarks/figure8.py [--runtime torch,onnx] [--variants xxs,xs,s] [--runs 50]
                                 [--out FOLDER]

One thread, batch 1, float32, new weights; classification at 256 px, SSDLite at 320, DeepLabv3 at
512. Prints all that `mobilevit benchmark` says, the paper's milliseconds beside ours, and what B
and the tasks cost, as the paper reports it and here. The plot has the paper's accuracies.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping

from paper import FIGURE8, B, beside, processor_times

import mobilevit
from mobilevit.utils.tables import markdown

TASKS = {"": "classification", "ssdlite_": "detection", "deeplabv3_": "segmentation"}


def ratio(times: Mapping[str, float | None], one: str, other: str) -> str:
    """How many times as long as `other` one takes; a dash where either is not known."""
    first, second = times.get(one), times.get(other)
    return "-" if first is None or second is None else f"{first / second:.2f}"


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="torch,onnx", help="with commas between")
    parser.add_argument("--variants", default="xxs,xs,s", help="with commas between")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--out", help="folder for all figures, tables and a plot")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    variants = [f"mobilevit_{name}" for name in options.variants.split(",")]
    chosen = {
        name: one
        for name, one in FIGURE8.items()
        if name.removesuffix(B).removeprefix("ssdlite_").removeprefix("deeplabv3_") in variants
    }
    result = mobilevit.benchmark(
        *chosen,
        runtime=options.runtime.split(","),
        warmup=3,
        runs=options.runs,
        accuracies={name: one.accuracy / 100 for name, one in chosen.items() if one.accuracy},
        out=options.out,
    )
    times = processor_times(result)
    runtimes = list(dict.fromkeys(runtime for _, runtime in times))
    columns: dict[str, Mapping[str, float | None]] = {
        "iPhone 12": {name: one.neural_engine for name, one in FIGURE8.items()},
        **{
            runtime: {name: ms for (name, where), ms in times.items() if where == runtime}
            for runtime in runtimes
        },
    }
    rows = []
    for variant in variants:
        for head, task in TASKS.items():
            name = head + variant
            rows.append(
                (f"{variant}, {task}: B / A", *(ratio(c, name + B, name) for c in columns.values()))
            )
            for kind, suffix in (("A", ""), ("B", B)) if head else ():
                pair = name + suffix, variant + suffix
                rows.append(
                    (
                        f"{variant}, {kind}: {task} / classification",
                        *(ratio(c, *pair) for c in columns.values()),
                    )
                )
    print(result, beside(result, chosen, runtimes), sep="\n\n", end="\n\n")
    print(markdown(("ratios of times", *columns), rows))


if __name__ == "__main__":
    main()
