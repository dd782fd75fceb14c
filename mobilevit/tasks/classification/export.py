"""Exported classifiers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mobilevit.models.classifier import Classifier
from mobilevit.tasks.export import Comparison, TaskExport


class Probabilities(nn.Module):
    """Logits `[B, K]` to probabilities."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(dim=-1)


def compare(
    model: Classifier, images: Tensor, outputs: Sequence[Tensor], tolerance: float
) -> Comparison:
    """Compare probabilities."""
    expected, found = model(images).softmax(dim=1), outputs[0]
    return Comparison((expected - found).abs().amax(1), expected.argmax(1) == found.argmax(1))


def network_outputs(outputs: Sequence[Tensor], raw: bool) -> Tensor:
    """Logits: logarithms of probabilities serve as such.

    A probability that underflows float32 counts as the smallest that does not.
    """
    (values,) = outputs
    return values if raw else values.clamp(min=torch.finfo(values.dtype).tiny).log()


def reference(model: Classifier, images: Tensor, tolerance: float) -> dict[str, Any]:
    """Probabilities of one image."""
    return {"probabilities": model(images)[0].softmax(0).tolist()}


EXPORT = TaskExport(
    outputs=("probabilities",),
    raw_outputs=("logits",),
    postprocess=lambda model, size, supports_nms: Probabilities(),
    compare=compare,
    network_outputs=network_outputs,
    reference=reference,
    reference_of_file=lambda outputs, num_classes: {"probabilities": outputs[0][0].tolist()},
)
