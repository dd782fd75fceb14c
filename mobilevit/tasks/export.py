"""What differs by task in an exported file: outputs, and their comparison with PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import nms


class Comparison(NamedTuple):
    """A file's predictions compared with PyTorch's: of images, pixels, boxes or anchors."""

    differences: Tensor
    """In probability, of any shape; see `mobilevit.exports.verify.Verification`."""
    equal: Tensor
    """Whether predictions are equal, of any shape."""

    @property
    def largest(self) -> float:
        # torch's maximum propagates NaN, Python's does not.
        return float(self.differences.max()) if self.differences.numel() else 0.0

    @property
    def mean(self) -> float:
        return float(self.differences.mean()) if self.differences.numel() else 0.0

    @property
    def agreement(self) -> float:
        return float(self.equal.float().mean())

    @classmethod
    def join(cls, comparisons: Sequence[Comparison]) -> Comparison:
        """Of several batches or images."""
        parts = zip(*comparisons, strict=True)
        return cls(*(torch.cat([part.flatten() for part in one]) for one in parts))


@dataclass(frozen=True, kw_only=True)
class TaskExport:
    """A task's part in exports."""

    outputs: tuple[str, ...]
    """Names of a file's outputs, in order."""
    raw_outputs: tuple[str, ...]
    """Names of the network's own outputs, which a raw file returns."""
    postprocess: Callable[[Any, int, bool], nn.Module]
    """(network, image side in pixels, whether the runtime has non-maximum suppression) -> module
    that turns the network's outputs into a file's, all computed in float32."""
    compare: Callable[[Any, Tensor, Sequence[Tensor], float], Comparison]
    """(fused network, images `[B, 3, H, W]`, a file's outputs, tolerance) -> how they differ from
    PyTorch's, where differences up to the tolerance do not count."""
    compare_raw: Callable[[Any, Tensor, Sequence[Tensor]], Comparison] = (
        lambda model, images, outputs: compare_logits(model(images), outputs[0])
    )
    """The same for a raw file."""
    network_outputs: Callable[[Sequence[Tensor], bool], Any]
    """A file's outputs (true: those of a raw file) as `Task.postprocess` takes them."""
    model_attributes: tuple[str, ...] = ()
    """Attributes of the network that `Task.postprocess` reads; a file has them too."""
    reference: Callable[[Any, Tensor, float], dict[str, Any]]
    """PyTorch's prediction for one image `[1, 3, H, W]` as JSON, with which a web page compares its
    own; `Expected` in the page's `types.js` has the fields."""
    reference_of_file: Callable[[Sequence[Tensor], int], dict[str, Any]]
    """The same from a quantized file's own outputs, for a number of classes."""


def compare_logits(expected: Tensor, outputs: Tensor, *, axis: int = 1) -> Comparison:
    """Compare logits by their probabilities along an axis."""
    differences = (expected.softmax(axis) - outputs.softmax(axis)).abs().amax(axis)
    return Comparison(differences, expected.argmax(axis) == outputs.argmax(axis))


@torch.library.custom_op("mobilevit::suppress", mutates_args=())
def suppress(
    boxes: Tensor, scores: Tensor, max_per_class: int, iou_threshold: float, score_threshold: float
) -> Tensor:
    """Non-maximum suppression within each class of each image, like ONNX's `NonMaxSuppression`.

    A custom operator, so that exporters find it in the graph and put their runtime's in its place.

    Args:
        boxes: corners `[B, A, 4]`.
        scores: `[B, K, A]`.
        max_per_class: boxes kept of each class.
        iou_threshold: boxes that overlap a more probable one by more than this are suppressed.
        score_threshold: boxes with a score not above this are suppressed too.

    Returns:
        Rows of (image, class, anchor) `[M, 3]`, int64.
    """
    rows = []
    for image in range(len(scores)):
        for label in range(scores.shape[1]):
            (candidates,) = (scores[image, label] > score_threshold).nonzero(as_tuple=True)
            order = nms(boxes[image, candidates], scores[image, label, candidates], iou_threshold)
            kept = candidates[order][:max_per_class]
            rows.append(torch.stack((kept * 0 + image, kept * 0 + label, kept), dim=1))
    return torch.cat(rows)


@suppress.register_fake
def _(
    boxes: Tensor, scores: Tensor, max_per_class: int, iou_threshold: float, score_threshold: float
) -> Tensor:
    rows = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((rows, 3), dtype=torch.int64)
