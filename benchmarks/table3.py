"""MobileViT-XS beside MobileNetV2, DeiT-tiny and PiT: the paper's Table 3 on this machine.

    python benchmarks/table3.py [--runtime torch,onnx] [--runs 100] [--out FOLDER]

One thread, batch 1, float32, new weights; MobileViT at 256 px, the others at 224, as in the paper.
Prints all that `mobilevit benchmark` says, the paper's milliseconds beside ours, and both orders.
"""

from __future__ import annotations

import argparse
import logging

from paper import TABLE3, beside, processor_times

import mobilevit


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="torch,onnx", help="with commas between")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--out", help="folder for all figures, tables and a plot")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    result = mobilevit.benchmark(
        *TABLE3,
        runtime=options.runtime.split(","),
        runs=options.runs,
        accuracies={name: one.accuracy / 100 for name, one in TABLE3.items()},
        out=options.out,
    )
    times = processor_times(result)
    runtimes = list(dict.fromkeys(runtime for _, runtime in times))
    print(result, beside(result, TABLE3, runtimes), sep="\n\n", end="\n\n")
    columns = {
        "iPhone 12, neural engine": {name: one.neural_engine for name, one in TABLE3.items()},
        "iPhone 12, CPU": {name: one.cpu for name, one in TABLE3.items()},
        **{
            runtime: {name: times[name, runtime] for name in TABLE3 if (name, runtime) in times}
            for runtime in runtimes
        },
    }
    for head, values in columns.items():
        order = sorted(values, key=values.__getitem__)
        print(f"{head}: {' < '.join(TABLE3[name].called for name in order)}")


if __name__ == "__main__":
    main()
