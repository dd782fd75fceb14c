"""Time MobileViT against timm's and transformers' networks of the same weights.

    python benchmarks/speed.py [--what inference|training] [--rounds N] [--keep_memory]
                               [--json FILE]

All networks run in one process, on one thread, in float32; each round runs each of them once, in a
new order, so that a change in the machine's speed affects all of them. The table has the median
time, and how many times as long as ours the others took: median and quartiles of the rounds'
ratios. Times are of the processor, the system's work for the process included.

With `--keep_memory` all networks run as `mobilevit train` and `predict` run ours: freed memory is
kept for the next tensors.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import peers
import torch
from harness import Ratio, Step, measure
from torch import nn
from torch.nn import functional as F

from mobilevit.checkpoints.timm import V1
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import build
from mobilevit.utils.memory import keep_freed_memory


class Setting(NamedTuple):
    """A variant on a batch of square images."""

    variant: str
    size: int
    batch: int


INFERENCE = [
    Setting(variant, 256, batch)
    for variant in ("mobilevit_xxs", "mobilevit_s")
    for batch in (1, 16)
]
TRAINING = [Setting("mobilevit_xxs", 192, 32), Setting("mobilevit_s", 256, 8)]


def inference(setting: Setting) -> tuple[str, dict[str, Step]]:
    """The name of the baseline, and what each contestant does in one round."""
    weights = build(setting.variant).state_dict()
    ours = build(setting.variant).eval()
    ours.load_state_dict(weights)
    timm = peers.timm(setting.variant, V1.from_ours(weights)).eval()
    networks = {
        "ours, fused": fuse(ours),
        "ours": ours,
        "timm": timm,
        "timm, channels-last": copy.deepcopy(timm).to(memory_format=torch.channels_last),
        "transformers": peers.transformers(setting.variant, weights).eval(),
    }
    images = torch.rand(setting.batch, 3, setting.size, setting.size)
    check_equal(networks, images)

    def step(network: nn.Module) -> Step:
        def run() -> None:
            with torch.inference_mode():
                network(images)

        return run

    return "ours, fused", {name: step(network) for name, network in networks.items()}


def training(setting: Setting) -> tuple[str, dict[str, Step]]:
    """As `inference`: a step is forward, cross-entropy, backward and AdamW's update."""
    weights = build(setting.variant).state_dict()
    networks = {
        "ours, paper's dropouts": build(setting.variant),
        "ours, no dropout": build(setting.variant, dropout=0.0, classifier_dropout=0.0),
        "timm": peers.timm(setting.variant, V1.from_ours(weights)),  # it has no dropout
    }
    channels_last = copy.deepcopy(networks["timm"]).to(memory_format=torch.channels_last)
    networks["timm, channels-last"] = channels_last
    for name, network in networks.items():
        if name.startswith("ours"):
            network.load_state_dict(weights)
        network.eval()
    images = torch.rand(setting.batch, 3, setting.size, setting.size)
    labels = torch.randint(1000, (setting.batch,))
    check_equal(networks, images)

    def step(network: nn.Module) -> Step:
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=0.01, fused=True)

        def run() -> None:
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()

        return run

    steps = {name: step(network) for name, network in networks.items()}
    return "ours, paper's dropouts", steps


def check_equal(networks: dict[str, nn.Module], images: torch.Tensor) -> None:
    """Raise `AssertionError` unless all networks give the same logits."""
    with torch.inference_mode():
        logits = {name: network(images) for name, network in networks.items()}
    expected = logits["timm"]
    for name, found in logits.items():
        error = ((found - expected).abs().max() / expected.std()).item()
        assert error < 1e-4, f"{name} differs from timm by {error:.1e} of the logits' deviation"


def compare(setting: Setting, baseline: str, seconds: dict[str, list[float]]) -> list[dict]:
    """One row a contestant: its median time, and the ratio to ours with its quartiles."""
    rows = []
    for name, times in seconds.items():
        low, middle, high = Ratio.of(times, seconds[baseline])
        rows.append(
            {
                **setting._asdict(),
                "network": name,
                "milliseconds": 1e3 * statistics.median(times),
                "ratio": middle,
                "ratio_quartiles": [low, high],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Time MobileViT against timm and transformers.")
    parser.add_argument("--what", choices=["inference", "training"], help="default: both")
    parser.add_argument("--rounds", type=int, default=30, help="how often each network runs")
    parser.add_argument("--json", type=Path, help="also write the table's numbers to this file")
    parser.add_argument("--keep_memory", action="store_true", help="do not return freed memory")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2, for quartiles")
    torch.set_num_threads(1)
    torch.manual_seed(0)

    with keep_freed_memory(options.keep_memory):
        run(options)


def run(options: argparse.Namespace) -> None:
    """Measure, and print a table for each setting."""
    plan = {"inference": (INFERENCE, inference), "training": (TRAINING, training)}
    rows = []
    for what, (settings, prepare) in plan.items():
        if options.what not in (None, what):
            continue
        for setting in settings:
            baseline, steps = prepare(setting)
            seconds = measure(steps, options.rounds, clock=time.process_time)
            print(f"\n{what}: {setting.variant}, {setting.size} px, batch {setting.batch}")
            print(f"{'':24}{'median':>12}{'ratio':>8}  quartiles")
            for row in compare(setting, baseline, seconds):
                low, high = row["ratio_quartiles"]
                print(
                    f"{row['network']:24}{row['milliseconds']:9.1f} ms{row['ratio']:8.2f}"
                    f"  {low:.2f} to {high:.2f}",
                    flush=True,
                )
                rows.append({"what": what, **row})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
