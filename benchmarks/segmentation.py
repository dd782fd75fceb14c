"""Time DeepLabv3 on a MobileViT against torchvision's segmentation on a MobileNetV3.

    python benchmarks/segmentation.py [--rounds N]

512 px, batch 1, VOC's 21 classes, logits at the image's size, one thread, float32, all in one
process; each round runs every contestant once, in a new order. Weights are random. Ours is fused
and channels-last, torchvision's unmodified and channels-last.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import torch
from harness import measure
from torch import nn
from torchvision.models import segmentation

from mobilevit.models.fuse import fuse
from mobilevit.models.registry import build

SIZE = 512
OURS = ("deeplabv3_mobilevit_xxs", "deeplabv3_mobilevit_xs", "deeplabv3_mobilevit_s")
THEIRS = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large")


def step(network: nn.Module) -> Callable[[], object]:
    """One forward pass."""
    images = torch.rand(1, 3, SIZE, SIZE)

    def run() -> None:
        with torch.inference_mode():
            network(images)

    return run


def main() -> None:
    """Time all, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    networks: dict[str, nn.Module] = {}
    for name in OURS:
        networks[name] = build(name, num_classes=21).eval()
    for name in THEIRS:
        make = getattr(segmentation, name)
        network = make(weights=None, weights_backbone=None, num_classes=21).eval()
        networks[f"torchvision {name}"] = network
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)
        networks[f"torchvision {name}, channels-last"] = last
    sizes = {
        name: sum(weight.numel() for weight in network.parameters())
        for name, network in networks.items()
    }
    steps = {
        name: step(fuse(network) if name in OURS else network) for name, network in networks.items()
    }
    print("| | M parameters | ms |\n|---|---|---|")
    for name, seconds in measure(steps, rounds).items():
        print(f"| {name} | {sizes[name] / 1e6:.2f} | {1000 * statistics.median(seconds):.0f} |")


if __name__ == "__main__":
    main()
