"""Time networks of timm and torchvision next to those of this library.

    pip install -e '.[bench,onnx]'
    python benchmarks/outside.py mobilevit_xs timm:mobilenetv2_100 torchvision:mobilenet_v3_large
                                 [--runtime torch,onnx] [--runs 50]

A name can end in a size, as in mobilevit_xs@320; by default a network runs at the size that its
library uses it at. New weights, batch 1, float32, one thread, a preprocessed tensor in and logits
out, all in one process, in turns. PyTorch runs ours fused and the others channels-last; other
runtimes run ours as exported by this library, and the others as exported by the runtime's own tool
with its default options. The table has the median processor time, and as a multiple of the first.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from exports import SUFFIXES, TOOLS
from harness import Step, measure
from torch import Tensor, nn

import mobilevit
from mobilevit.commands.benchmark.models import ModelSpec, find_subjects, set_batch_norms
from mobilevit.exports.backends.registry import open_exported
from mobilevit.models.fuse import fuse
from mobilevit.utils.tables import markdown


class Contestant(NamedTuple):
    """A network in evaluation mode, and the size it runs at."""

    network: Any
    size: int
    is_ours: bool


class SegmentationLogits(nn.Module):
    """A segmentation network of torchvision that returns logits alone."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap `network`."""
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.network(images)["out"]


def make(text: str) -> Contestant:
    """Build a network by its name."""
    home, _, name = text.partition(":")
    if home not in ("timm", "torchvision"):
        (subject,) = find_subjects([text], None)
        return Contestant(subject.network, subject.size, True)
    spec = ModelSpec.parse(name)
    torch.manual_seed(0)
    build = timm_network if home == "timm" else torchvision_network
    network, own = build(spec.name, spec.size)
    set_batch_norms(network, spec.size or own)
    return Contestant(network, spec.size or own, False)


def timm_network(name: str, size: int | None) -> tuple[nn.Module, int]:
    """A classifier of timm, and the size timm uses it at."""
    timm = importlib.import_module("timm")
    usual = timm.get_pretrained_cfg(name).to_dict()
    own = usual["input_size"][-1]
    # Vision transformers have an embedding for each patch.
    sized = {"img_size": size} if size not in (None, own) and usual.get("fixed_input_size") else {}
    return timm.create_model(name, pretrained=False, **sized), own


def torchvision_network(name: str, size: int | None) -> tuple[nn.Module, int]:
    """A classifier or segmentation network of torchvision, and the size it is used at."""
    models = importlib.import_module("torchvision.models")
    usual = models.get_model_weights(name).DEFAULT.transforms()
    if name in models.list_models(module=models.segmentation):
        network = models.get_model(name, weights=None, weights_backbone=None)
        return SegmentationLogits(network), usual.resize_size[0]
    own = usual.crop_size[0]
    sized = {"image_size": size} if size not in (None, own) and name.startswith("vit_") else {}
    return models.get_model(name, weights=None, **sized), own


def step(one: Contestant, runtime: str, path: Path) -> Step:
    """One forward pass in a runtime; `path` is for an exported file."""
    images = torch.rand(1, 3, one.size, one.size)
    if runtime == "torch":
        network = (
            fuse(one.network) if one.is_ours else one.network.to(memory_format=torch.channels_last)
        )
        return torch.inference_mode()(lambda: network(images))
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        if one.is_ours:
            mobilevit.export(one.network, mobilevit.ExportOptions(out=str(path), raw=True))
            run: Any = open_exported(path)
        else:
            run = TOOLS[runtime](one.network, images, path)
    array = images.numpy()
    return lambda: run(array)


def processor_times(
    names: Sequence[str], runtimes: Sequence[str], runs: int
) -> dict[tuple[str, str], float]:
    """Milliseconds of processor time by (name, runtime)."""
    found: dict[tuple[str, str], float] = {}
    contestants = {name: make(name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for runtime in runtimes:
            suffix = SUFFIXES.get(runtime, "")
            steps = {
                name: step(one, runtime, Path(folder) / f"{index}{suffix}")
                for index, (name, one) in enumerate(contestants.items())
            }
            for name, seconds in measure(steps, runs, clock=time.process_time).items():
                found[name, runtime] = 1000 * statistics.median(seconds)
    return found


def table(names: Sequence[str], runtimes: Sequence[str], times: Mapping[Any, float]) -> str:
    """Milliseconds, and in parentheses multiples of the first row's."""
    rows = []
    for name in names:
        pairs = [(times[name, runtime], times[names[0], runtime]) for runtime in runtimes]
        rows.append((name, *(f"{ms:.2f} ({ms / first:.2f})" for ms, first in pairs)))
    return markdown(("ms", *runtimes), rows)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Time networks of other libraries next to ours.")
    parser.add_argument("names", nargs="+", help="mobilevit_xs, timm:NAME, torchvision:NAME@SIZE")
    parser.add_argument("--runtime", default="torch", help="torch, onnx, ...: separated by commas")
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runtimes = options.runtime.split(",")
    times = processor_times(options.names, runtimes, options.runs)
    print(table(options.names, runtimes, times))


if __name__ == "__main__":
    main()
