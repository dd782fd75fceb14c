"""Whether an exported file says what PyTorch says: its own runtime runs it on photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from mobilevit.data.preprocessing import frame_image, image_to_tensor
from mobilevit.exports.backends.registry import Runner
from mobilevit.exports.spec import ExportError, FileFacts, Precision
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import Network
from mobilevit.models.segmentation import Segmenter
from mobilevit.models.ssdlite import RawDetections, SSDLite, decode
from mobilevit.tasks.detection.loss_and_postprocess import PRESETS, detections

BOUNDS: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2}
"""So much may differ, in probability (and corners of boxes as shares of the image's sides)."""

LEAST_AGREEMENT = 0.9
"""Of a quantised file, unless said otherwise: share of images (pixels, anchors) whose answer is
PyTorch's."""

SIZES = ((256, 256), (224, 224), (192, 320))
"""(height, width) at which a file of dynamic size is run."""

LEAST_BATCH = 3
"""A file of dynamic batch is run on so many images at once."""

MOST_BATCH = 8
"""And on no more than these: a batch's logits are held for both."""


class DisagreementError(ExportError):
    """A file says something else than PyTorch."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How far a file is from PyTorch on some images."""

    images: int
    """Each size and mirror image counted."""
    difference: float
    """The largest in probability. Of a mask: the most that PyTorch's probability of a pixel's class
    lies above that of the class the file gives. Of boxes: the largest in score and corners (shares
    of the image's sides), or the score of a box that is missing."""
    agreement: float
    """Share of images whose likeliest class (or likeliest box's class) is the same; of
    segmentation the share of pixels, of raw detection that of anchors."""
    bound: float | None
    """On the difference; None where a file is quantised, and so held to agree."""
    least: float | None = None
    """Of a quantised file: the least agreement; None where it is evaluated otherwise."""

    def __str__(self) -> str:
        """One line."""
        bound = "" if self.bound is None else f" (bound {self.bound:g})"
        least = "" if self.least is None else f" (at least {self.least:.0%})"
        return (
            f"{self.images} images: differs by {self.difference:.2g} at most{bound}, same "
            f"answer in {self.agreement:.2%}{least}"
        )


class Compared(NamedTuple):
    """How one batch went."""

    difference: Tensor
    """One value."""
    agreement: Tensor
    """Share."""


def verify(
    run: Runner,
    model: Network,
    photos: Sequence[Image.Image],
    *,
    called: str | Path,
    least: float | None = LEAST_AGREEMENT,
) -> Verification:
    """Run an exported file on photos, and compare with the network that it was made of.

    A file of dynamic batch runs three images or more at once, one of dynamic size runs each photo
    at several sizes.

    Args:
        run: the file, opened in its runtime.
        model: the network.
        photos: RGB images of any size.
        called: what to call the file in messages.
        least: of a quantised file: the share of answers that must be the same; None: any.

    Raises:
        DisagreementError: the difference is over the bound, 1e-3 (fp32) or 1e-2 (fp16); of a
            quantised file: fewer answers are the same than `least`.
        ExportError: no photos.
    """
    if not photos:
        raise ExportError("a file cannot be verified without photos")
    facts, rule = run.facts, run.facts.config.preprocessing
    fused = fuse(model)
    bound = BOUNDS[facts.precision]
    compared, counts = [], []
    with torch.inference_mode():
        for frames in _batches(photos, facts):
            tensors = torch.stack([image_to_tensor(frame, rule) for frame in frames])
            given = tensors.numpy() if facts.raw else np.stack([np.asarray(f) for f in frames])
            said = [torch.from_numpy(part) for part in run(given)]
            compared.append(compare(fused, tensors, said, raw=facts.raw, bound=bound))
            counts.append(len(frames))
    agreements = torch.stack([one.agreement for one in compared])
    result = Verification(
        images=sum(counts),
        # torch's maximum is NaN where there is one.
        difference=float(torch.stack([one.difference for one in compared]).max()),
        agreement=float((agreements * torch.tensor(counts)).sum() / sum(counts)),
        bound=None if facts.quantize else bound,
        least=least if facts.quantize else None,
    )
    if facts.quantize:
        agrees = least is None or result.agreement >= least
    else:
        agrees = result.difference <= bound
    if not agrees:
        raise DisagreementError(f"{called} does not say what PyTorch says: {result}")
    return result


def _batches(photos: Sequence[Image.Image], facts: FileFacts) -> Iterator[list[Image.Image]]:
    """The images as the file takes them, framed."""
    if facts.dynamic == "size":
        for photo in photos:
            yield from ([photo.resize((width, height))] for height, width in SIZES)
        return
    frames = [frame_image(photo, facts.config.preprocessing) for photo in photos]
    if facts.dynamic is None:
        yield from ([frame] for frame in frames)
        return
    turn = Image.Transpose
    for change in (turn.FLIP_LEFT_RIGHT, turn.FLIP_TOP_BOTTOM):
        if len(frames) < LEAST_BATCH:
            frames += [frame.transpose(change) for frame in frames]
    for first in range(0, len(frames), MOST_BATCH):
        yield frames[first : first + MOST_BATCH]


def compare(
    model: Network, tensors: Tensor, said: Sequence[Tensor], *, raw: bool, bound: float
) -> Compared:
    """Compare a file's outputs with a network's, for one batch of prepared images.

    Args:
        model: fused, or in evaluation mode.
        tensors: `[B, 3, H, W]`.
        said: the file's outputs; see `mobilevit.exports.wrap`.
        raw: whether they are logits.
        bound: of boxes, which scores count as different.
    """
    expected = model(tensors)
    if isinstance(model, SSDLite):
        anchors = model.anchors(*tensors.shape[-2:])
        if not raw:
            images = [
                _compare_boxes(
                    RawDetections(*(p[i : i + 1] for p in expected)), anchors, one, bound
                )
                for i, one in enumerate(zip(*said, strict=True))
            ]
            differences, agreements = zip(*images, strict=True)
            return Compared(torch.stack(differences).max(), torch.stack(agreements).mean())
        corners = decode(expected.offsets, anchors) - decode(said[1], anchors)
        logits = _compare_logits(expected.logits, said[0], axis=2)
        return Compared(torch.maximum(logits.difference, corners.abs().max()), logits.agreement)
    if raw:
        return _compare_logits(expected, said[0], axis=1)
    probabilities = expected.softmax(dim=1)
    if isinstance(model, Segmenter):
        likeliest = probabilities.max(dim=1)
        chosen = probabilities.gather(1, said[0][:, None].long())[:, 0]
        return Compared(
            (likeliest.values - chosen).max(), (likeliest.indices == said[0]).float().mean()
        )
    return Compared(
        (probabilities - said[0]).abs().max(),
        (probabilities.argmax(1) == said[0].argmax(1)).float().mean(),
    )


def _compare_logits(expected: Tensor, said: Tensor, *, axis: int) -> Compared:
    difference = (expected.softmax(axis) - said.softmax(axis)).abs().max()
    return Compared(difference, (expected.argmax(axis) == said.argmax(axis)).float().mean())


def _compare_boxes(
    expected: RawDetections, anchors: Tensor, said: Sequence[Tensor], bound: float
) -> Compared:
    """Compare the boxes of one image.

    Which of two boxes is suppressed may hang on the last digit of their overlap. So every box of
    the file must be one of the network's candidates, with its score and corners; and every box that
    PyTorch finds must be in the file or be overlapped there by one as likely, of its class.
    """
    rule = PRESETS["later"]
    (truth,) = detections(expected, anchors, [(1, 1)], rule)
    exists = said[2] >= 0
    boxes, scores, labels = (part[exists] for part in said)
    labels = labels.long()
    corners = decode(expected.offsets[0], anchors).clamp(0, 1)  # [A, 4]
    likely = expected.logits[0].softmax(-1)[:, 1:].T  # [K, A]

    off = (likely[labels] - scores[:, None]).abs()  # [N, A]
    off = torch.maximum(off, (corners - boxes[:, None]).abs().amax(-1))
    wrong = off.amin(1)

    places = truth.boxes.as_subclass(Tensor)
    covers = box_iou(places, boxes) >= rule.overlap - bound  # [M, N]
    # A box outside the image has no area left, and so overlaps nothing.
    covers |= (places[:, None] - boxes).abs().amax(-1) <= bound
    covers &= truth.labels[:, None] == labels
    covered = (covers & (scores >= truth.scores[:, None] - bound)).any(1)
    # Boxes at an edge of what is kept may be on either side of it.
    floor = torch.full((len(likely),), rule.score)
    if rule.before is not None and rule.before < likely.shape[1]:
        floor = torch.maximum(floor, likely.topk(rule.before, dim=1).values[:, -1])
    if len(scores) == len(exists):
        floor = torch.maximum(floor, scores.min())
    missing = truth.scores[~covered & (truth.scores > floor[truth.labels] + bound)]

    same = truth.labels[:1].equal(labels[:1])
    return Compared(torch.cat((wrong, missing, torch.zeros(1))).max(), torch.tensor(float(same)))
