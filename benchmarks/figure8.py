"""Patch sizes A (2, 2, 2) against B (8, 4, 2), three tasks, three sizes: the paper's Figure 8.

    python benchmarks/figure8.py [--runtime torch,onnx] [--variants xxs,xs,s] [--runs 50]
                                 [--out FOLDER]

One thread, batch 1, float32, new weights; classification at 256 px, SSDLite at 320, DeepLabv3 at
512. Prints the tables of `mobilevit benchmark`, the paper's milliseconds next to ours, and the
costs of B and of the tasks, in the paper and here. The plot shows the paper's accuracies.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping

from paper import FIGURE8, B, comparison, processor_times

import mobilevit
from mobilevit.utils.tables import markdown

TASKS = {"": "classification", "ssdlite_": "detection", "deeplabv3_": "segmentation"}


def ratio(times: Mapping[str, float | None], name: str, other: str) -> str:
    """The time of one network over that of the other; a dash if either is unknown."""
    first, second = times.get(name), times.get(other)
    return "-" if first is None or second is None else f"{first / second:.2f}"


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="torch,onnx", help="separated by commas")
    parser.add_argument("--variants", default="xxs,xs,s", help="separated by commas")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--out", help="folder for all figures, tables and a plot")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    variants = [f"mobilevit_{name}" for name in options.variants.split(",")]
    selected = {
        name: one
        for name, one in FIGURE8.items()
        if name.removesuffix(B).removeprefix("ssdlite_").removeprefix("deeplabv3_") in variants
    }
    result = mobilevit.benchmark(
        *selected,
        runtime=options.runtime.split(","),
        warmup=3,
        runs=options.runs,
        accuracies={name: one.accuracy / 100 for name, one in selected.items() if one.accuracy},
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
            for configuration, suffix in (("A", ""), ("B", B)) if head else ():
                pair = name + suffix, variant + suffix
                rows.append(
                    (
                        f"{variant}, {configuration}: {task} / classification",
                        *(ratio(c, *pair) for c in columns.values()),
                    )
                )
    print(result, comparison(times, selected, runtimes), sep="\n\n", end="\n\n")
    print(markdown(("ratios of times", *columns), rows))


if __name__ == "__main__":
    main()
