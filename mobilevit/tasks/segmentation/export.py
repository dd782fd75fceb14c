"""Exported segmentation networks."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilevit.models.segmentation import Segmenter
from mobilevit.tasks.export import Comparison, TaskExport

CLOSE = 3
"""A reference also lists the classes of a pixel whose probability is within so many tolerances of
the highest."""


class Mask(nn.Module):
    """Logits `[B, K, H, W]` to classes `[B, H, W]`, uint8 (int32 of more than 256 classes)."""

    def forward(self, logits: Tensor) -> Tensor:
        dtype = torch.uint8 if logits.shape[1] <= 256 else torch.int32
        return logits.argmax(dim=1).to(dtype)


def compare(
    model: Segmenter, images: Tensor, outputs: Sequence[Tensor], tolerance: float
) -> Comparison:
    """Compare masks: by how much less probable PyTorch finds the file's class than its own."""
    probabilities, mask = model(images).softmax(dim=1), outputs[0]
    highest = probabilities.max(dim=1)
    found = probabilities.gather(1, mask[:, None].long())[:, 0]
    return Comparison(highest.values - found, highest.indices == mask)


def reference(model: Segmenter, images: Tensor, tolerance: float) -> dict[str, Any]:
    """The mask of one image, and the classes that are nearly as probable as a pixel's own."""
    probabilities = model(images)[0].softmax(0)  # [K, H, W]
    highest = probabilities.max(dim=0)
    gaps = (highest.values - probabilities).flatten(1)  # [K, H * W]
    limit = CLOSE * tolerance
    others = gaps <= limit
    others.scatter_(0, highest.indices.flatten()[None], False)
    label, pixel = others.nonzero(as_tuple=True)
    rows = zip(pixel.tolist(), label.tolist(), gaps[label, pixel].tolist(), strict=True)
    close = [[p, k, round(gap, 6)] for p, k, gap in rows]
    return {"mask": {**run_lengths(highest.indices.numpy()), "limit": limit, "close": close}}


def reference_of_file(outputs: Sequence[Tensor], num_classes: int) -> dict[str, Any]:
    """The mask of one image."""
    return {"mask": {**run_lengths(outputs[0][0].numpy()), "limit": 0.0, "close": []}}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask `[H, W]` as pairs of a class and its number of consecutive pixels."""
    flat = mask.reshape(-1).astype(np.int64)
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    lengths = np.diff(starts, append=flat.size)
    pairs = zip(flat[starts].tolist(), lengths.tolist(), strict=True)
    height, width = mask.shape
    return {"height": height, "width": width, "runs": list(chain.from_iterable(pairs))}


EXPORT = TaskExport(
    outputs=("mask",),
    raw_outputs=("logits",),
    postprocess=lambda model, size, supports_nms: Mask(),
    compare=compare,
    network_outputs=lambda outputs, raw: outputs[0],
    model_attributes=("align_corners",),
    reference=reference,
    reference_of_file=reference_of_file,
)
