"""MobileViT-XS next to MobileNetV2, DeiT-tiny and PiT: the paper's Table 3 on this machine.

    python benchmarks/table3.py [--runtime torch,onnx] [--runs 100]

One thread, batch 1, float32, new weights; MobileViT at 256 px, the others at 224, as in the paper.
See outside.py for how they are run. Prints the paper's milliseconds next to ours, and all orders.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from outside import processor_times
from paper import TABLE3, comparison


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="The paper's Table 3 on this machine.")
    parser.add_argument("--runtime", default="torch,onnx", help="separated by commas")
    parser.add_argument("--runs", type=int, default=100)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runtimes = options.runtime.split(",")
    times = processor_times(list(TABLE3), runtimes, options.runs)
    print(comparison(times, TABLE3, runtimes), end="\n\n")
    columns = {
        "iPhone 12, neural engine": {name: one.neural_engine for name, one in TABLE3.items()},
        "iPhone 12, CPU": {name: one.cpu for name, one in TABLE3.items()},
        **{runtime: {name: times[name, runtime] for name in TABLE3} for runtime in runtimes},
    }
    for head, values in columns.items():
        order = sorted(values, key=values.__getitem__)
        print(f"{head}: {' < '.join(TABLE3[name].title for name in order)}")


if __name__ == "__main__":
    main()
