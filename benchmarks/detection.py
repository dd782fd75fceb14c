"""Time SSDLite on a MobileViT against torchvision's SSDLite on a MobileNetV3.

    python benchmarks/detection.py [--rounds N]

320 px, batch 1, COCO's 80 classes, one thread, float32, all in one process; each round runs every
contestant once, in a new order. The network and its postprocessing (softmax, decoding, suppression)
are timed separately. Weights are random, so postprocessing gets synthetic outputs: the same number
of boxes above the score threshold for all, and background elsewhere; thresholds are torchvision's
for both. Ours is fused and channels-last, torchvision's unmodified and channels-last.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from harness import measure
from torch import Tensor
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList

from mobilevit.models.fuse import fuse
from mobilevit.models.registry import build
from mobilevit.models.ssdlite import RawDetections, SSDLite
from mobilevit.tasks.detection.postprocess import PostProcessing, detections

SIZE, LIKELY = 320, 300
PRESET = PostProcessing(score=0.001, pre_nms_topk=300, nms_threshold=0.55, max_detections=300)
"""torchvision's own."""
OURS = ("ssdlite_mobilevit_xxs", "ssdlite_mobilevit_xs", "ssdlite_mobilevit_s")
THEIRS = "torchvision ssdlite320_mobilenet_v3_large"


def synthetic_outputs(anchors: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Logits `[1, A, outputs]` with `LIKELY` anchors that are not background; offsets of 0."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(1, anchors, outputs, generator=draw)
    logits[..., 0] = 12.0
    anchor = torch.randperm(anchors, generator=draw)[:LIKELY]
    labels = torch.randint(1, outputs, (LIKELY,), generator=draw)
    logits[0, anchor, labels] = 12 + torch.randn(LIKELY, generator=draw)
    return logits, torch.zeros(1, anchors, 4)


def ours(name: str) -> tuple[Callable[[], object], Callable[[], object], int]:
    """Network, what follows it, and the parameters."""
    model = build(name, num_classes=80)
    assert isinstance(model, SSDLite)
    fast, images = fuse(model), torch.rand(1, 3, SIZE, SIZE)
    anchors = model.anchors(SIZE, SIZE)
    raw = RawDetections(*synthetic_outputs(len(anchors), 81))

    def network() -> None:
        with torch.inference_mode():
            fast(images)

    def after() -> object:
        with torch.inference_mode():
            return detections(raw, anchors, [(SIZE, SIZE)], PRESET)

    return network, after, sum(weight.numel() for weight in model.parameters())


def theirs(layout: torch.memory_format) -> tuple[Callable[[], object], Callable[[], object], int]:
    """The same for torchvision, without its resizing and normalization."""
    model = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=81
    ).eval()
    model = model.to(memory_format=layout)
    images = torch.rand(1, 3, SIZE, SIZE).contiguous(memory_format=layout)
    with torch.inference_mode():
        maps = list(model.backbone(images).values())
        anchors = model.anchor_generator(ImageList(images, [(SIZE, SIZE)]), maps)
    logits, offsets = synthetic_outputs(len(anchors[0]), 81)
    outputs = {"cls_logits": logits, "bbox_regression": offsets}

    def network() -> None:
        with torch.inference_mode():
            model.head(list(model.backbone(images).values()))

    def after() -> object:
        with torch.inference_mode():
            return model.postprocess_detections(outputs, anchors, [(SIZE, SIZE)])

    return network, after, sum(weight.numel() for weight in model.parameters())


def main() -> None:
    """Time all, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    contestants = {name: ours(name) for name in OURS}
    contestants[THEIRS] = theirs(torch.contiguous_format)
    contestants[f"{THEIRS}, channels-last"] = theirs(torch.channels_last)
    print("| | M parameters | network, ms | after it, ms |\n|---|---|---|---|")
    times = [
        measure({name: parts[stage] for name, parts in contestants.items()}, rounds)
        for stage in (0, 1)
    ]
    for name, (_, _, parameters) in contestants.items():
        network, after = (1000 * statistics.median(seconds[name]) for seconds in times)
        print(f"| {name} | {parameters / 1e6:.2f} | {network:.1f} | {after:.1f} |")


if __name__ == "__main__":
    main()
