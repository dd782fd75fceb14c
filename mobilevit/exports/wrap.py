"""From a photo to an answer in one graph: what an exported file holds.

A whole file takes pixels as decoders, cameras and bitmaps give them: `image`, uint8 `[B, H, W, 3]`,
red, green, blue, already framed (resized and cropped) to the size that the file was made for. A raw
one takes `tensor`, float32 `[B, 3, H, W]`, as `Preprocessing` makes it, and gives logits.

Where a runtime has an operation for non-maximum suppression, it is used; for those that have none
it is written in plain operations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from mobilevit.exports.half import halve
from mobilevit.exports.rewrite import (
    ExportClassifier,
    ExportDetector,
    ExportForm,
    ExportSegmenter,
    stem_of,
)
from mobilevit.models.config import Preprocessing, Task
from mobilevit.models.ssdlite import decode
from mobilevit.tasks.detection.loss_and_postprocess import PRESETS, PostProcessing

IMAGE, TENSOR = "image", "tensor"
"""Names of the input of a whole file, and of a raw one."""

OUTPUTS: dict[Task, tuple[str, ...]] = {
    "classification": ("probabilities",),
    "detection": ("boxes", "scores", "labels"),
    "segmentation": ("mask",),
}
"""What a whole file's outputs are called."""

RAW_OUTPUTS: dict[Task, tuple[str, ...]] = {
    "classification": ("logits",),
    "detection": ("logits", "offsets"),
    "segmentation": ("logits",),
}
"""What a raw file's outputs are called."""

MOST = 200
"""Boxes of an image, where the rule names no number: a file's outputs have a fixed shape."""

CANDIDATES = 1000
"""Boxes of an image that suppression in plain operations looks at: the likeliest of any class."""

ROUNDS = 24
"""Of suppression in plain operations. A round more is needed for each box of a chain in which every
one overlaps the next alone, so that it stays or goes by turns."""


@torch.library.custom_op("mobilevit::suppress", mutates_args=())
def suppress(
    boxes: Tensor, scores: Tensor, most: int, overlap: float, least_score: float
) -> Tensor:
    """Non-maximum suppression within each class of each image, as ONNX's `NonMaxSuppression`.

    An operation of its own, so that exporters find it in the graph and put their runtime's there.

    Args:
        boxes: corners `[B, A, 4]`.
        scores: `[B, K, A]`.
        most: boxes of a class that are kept.
        overlap: boxes that overlap a likelier one by more than this are suppressed.
        least_score: so are those that are not likelier than this.

    Returns:
        Rows of (image, class, anchor) `[M, 3]`, int64.
    """
    kept = [
        torch.stack((torch.full_like(places, b), torch.full_like(places, k), places), dim=1)
        for b in range(len(scores))
        for k in range(scores.shape[1])
        for places in [_kept(boxes[b], scores[b, k], overlap, least_score)[:most]]
    ]
    return torch.cat(kept)


def _kept(boxes: Tensor, scores: Tensor, overlap: float, least_score: float) -> Tensor:
    (candidates,) = (scores > least_score).nonzero(as_tuple=True)
    return candidates[nms(boxes[candidates], scores[candidates], overlap)]


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, most: int, overlap: float, least_score: float) -> Tensor:
    rows = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty((rows, 3), dtype=torch.int64)


def take_pixels(form: ExportForm, rule: Preprocessing) -> Tensor:
    """Make a network take pixel values 0..255 in the order red, green, blue.

    Order of channels, division by 255 and by the standard deviation go into the first convolution's
    weights. The mean cannot, since that convolution pads with zeros.

    Returns:
        What is to be subtracted from the pixels ahead of it, `[1, 3, 1, 1]`.

    Raises:
        ValueError: the network does not take three channels.
    """
    stem = stem_of(form)
    if stem.in_channels != 3:
        raise ValueError(
            f"the network takes {stem.in_channels} channels, a photo has 3: export it with raw"
        )
    order = [2, 1, 0] if rule.channel_order == "bgr" else [0, 1, 2]
    std = torch.tensor(rule.std)[:, None, None]
    stem.weight = nn.Parameter((stem.weight / (255 * std))[:, order], requires_grad=False)
    return 255 * torch.tensor(rule.mean)[order].view(1, 3, 1, 1)


class Whole(nn.Module):
    """A photo in, an answer out; subclasses say which."""

    offset: Tensor

    def __init__(self, form: ExportForm, rule: Preprocessing, *, planar: bool = False) -> None:
        """Take a network in the form for export, for itself alone, and its preprocessing.

        `planar`: pixels come as float32 `[B, 3, H, W]` in 0..255, as Core ML gives an image.
        """
        super().__init__()
        self.planar = planar
        self.shifted = any(rule.mean)
        self.register_buffer("offset", take_pixels(form, rule), persistent=False)
        self.form = form

    def halve(self) -> None:
        """Compute in float16; scores, boxes and what is summed over many values stay float32."""
        halve(self.form)

    def pixels(self, image: Tensor) -> Tensor:
        """`[B, H, W, 3]` uint8 -> what the first convolution takes, `[B, 3, H, W]`."""
        # Bytes are moved, not floats: it is a quarter of the work.
        x = (image if self.planar else image.permute(0, 3, 1, 2)).to(self.offset.dtype)
        return x - self.offset if self.shifted else x


class WholeClassifier(Whole):
    """Probabilities of the classes."""

    def forward(self, image: Tensor) -> Tensor:
        """`[B, H, W, 3]` uint8 -> probabilities `[B, K]`, float32."""
        return self.form(self.pixels(image)).float().softmax(dim=-1)


class WholeDetector(Whole):
    """Boxes after decoding and class-aware non-maximum suppression, likeliest first."""

    anchors: Tensor

    def __init__(
        self,
        form: ExportForm,
        preprocessing: Preprocessing,
        anchors: Tensor,
        rule: PostProcessing = PRESETS["later"],
        *,
        plain: bool = False,
        planar: bool = False,
    ) -> None:
        """Take the parts.

        Args:
            form: the network.
            preprocessing: its own.
            anchors: `[A, 4]`, those of the one size of image that the file takes.
            rule: what is kept.
            plain: suppression in plain operations.
            planar: see `Whole`.
        """
        super().__init__(form, preprocessing, planar=planar)
        self.register_buffer("anchors", anchors.clone(), persistent=False)
        self.rule, self.plain = rule, plain

    def candidates(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Corners `[B, A, 4]` as shares of width and height, scores `[B, K, A]`; all float32."""
        raw = self.form(self.pixels(image))
        # Suppression and the exponential of sizes stay float32 in a float16 file too.
        corners = decode(raw.offsets.float(), self.anchors)
        return corners, raw.logits.float().softmax(dim=-1)[..., 1:].transpose(1, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, H, W, 3]` uint8 -> the likeliest N boxes of each image.

        Returns:
            Corners x1, y1, x2, y2 `[B, N, 4]` as shares of the image's width and height in [0, 1],
            scores `[B, N]`, and classes from 0 on `[B, N]`, int32. Places without a box have score
            0 and class -1.
        """
        corners, scores = self.candidates(image)
        return self.answer(corners, scores)

    def answer(self, corners: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From candidates to what `forward` gives."""
        anchors, classes = scores.shape[2], scores.shape[1]
        if self.rule.before is not None and self.rule.before < anchors:
            # The least score among a class's likeliest ones; ties may let a few more pass.
            # By its place: where values alone are asked for, LiteRT's converter makes of `topk` a
            # sort that its runtime does not have.
            last = scores.topk(self.rule.before, dim=2).indices[..., -1:]
            scores = torch.where(scores < scores.gather(2, last), 0.0, scores)
        most = min(self.rule.most or MOST, classes * anchors)
        if not self.plain:
            scores = self.suppressed(corners, scores)
            found, place = scores.flatten(1).topk(most, dim=1)  # [B, N]
        else:
            count = min(CANDIDATES, classes * anchors)
            likely, place = scores.flatten(1).topk(count, dim=1)
            boxes = corners.gather(1, (place % anchors)[..., None].expand(-1, -1, 4))
            likely = self.suppressed_plainly(boxes, likely, place // anchors)
            found, order = likely.topk(min(most, count), dim=1)
            place = place.gather(1, order)
        boxes = corners.gather(1, (place % anchors)[..., None].expand(-1, -1, 4))
        exists = found > 0
        labels = torch.where(exists, place // anchors, -1)
        return boxes.clamp(0, 1) * exists[..., None], found, labels.to(torch.int32)

    def suppressed(self, corners: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, K, A]` of the boxes that are kept, 0 of the others."""
        rule = self.rule
        kept = suppress(corners, scores, rule.each or scores.shape[2], rule.overlap, rule.score)
        ones = torch.ones_like(kept[:, 0], dtype=scores.dtype)
        places = (kept[:, 0], kept[:, 1], kept[:, 2])
        return scores * torch.zeros_like(scores).index_put(places, ones)

    def suppressed_plainly(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """The same of N candidates of all classes, likeliest first; matrices in place of a loop.

        A box is out if a likelier one of its class overlaps it and is itself in. Who is in is found
        in rounds: after n of them it is right for all boxes that chains of fewer than n lead to.

        Args:
            boxes: corners `[B, N, 4]`.
            scores: `[B, N]`.
            labels: `[B, N]`.

        Returns:
            Scores `[B, N]`, 0 of boxes that are out.
        """
        left, top, right, bottom = boxes.split(1, dim=2)  # [B, N, 1]
        width = torch.minimum(right, right.mT) - torch.maximum(left, left.mT)
        height = torch.minimum(bottom, bottom.mT) - torch.maximum(top, top.mT)
        shared = F.relu(width) * F.relu(height)  # [B, N, N]
        area = (right - left) * (bottom - top)
        overlapping = shared > self.rule.overlap * (area + area.mT - shared)
        same = labels[:, :, None] == labels[:, None, :]
        # Of a matrix that is computed: a constant one of this size would be most of a small file.
        rivals = (overlapping & same).to(scores.dtype).tril(-1)  # likelier ones alone
        alive = (scores > self.rule.score).to(scores.dtype)[..., None]  # [B, N, 1]
        kept = alive
        for _ in range(ROUNDS):
            kept = alive * F.relu(1 - rivals @ kept)  # a count of rivals: 0, or at least 1
        return scores * kept[..., 0]


class WholeSegmenter(Whole):
    """The likeliest class of every pixel."""

    def forward(self, image: Tensor) -> Tensor:
        """`[B, H, W, 3]` uint8 -> classes `[B, H, W]`, uint8 (int32 of more than 256)."""
        logits = self.form(self.pixels(image))
        dtype = torch.uint8 if logits.shape[1] <= 256 else torch.int32
        return logits.argmax(dim=1).to(dtype)


class Raw(nn.Module):
    """The network alone: a tensor in, logits out, both float32 whatever it computes in."""

    def __init__(self, form: ExportForm) -> None:
        """Take a network in the form for export."""
        super().__init__()
        self.form = form

    def halve(self) -> None:
        """Compute in float16; see `mobilevit.exports.rewrite.halve`."""
        halve(self.form)

    def forward(self, tensor: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`[B, 3, H, W]` float32 -> `RAW_OUTPUTS`."""
        said = self.form(tensor.to(stem_of(self.form).weight.dtype))
        return said.float() if isinstance(said, Tensor) else tuple(part.float() for part in said)


def whole(
    form: ExportForm,
    preprocessing: Preprocessing,
    anchors: Tensor | None = None,
    *,
    plain: bool = False,
    planar: bool = False,
) -> WholeClassifier | WholeDetector | WholeSegmenter:
    """A network in the form for export with all that belongs around it; it takes the network over.

    Args:
        form: the network.
        preprocessing: its own.
        anchors: of a detector.
        plain: non-maximum suppression in plain operations, for runtimes that have none.
        planar: pixels come as float32 `[B, 3, H, W]` in 0..255.

    Raises:
        ValueError: a detector without `anchors`, or a network that takes no photo.
    """
    if isinstance(form, ExportClassifier):
        return WholeClassifier(form, preprocessing, planar=planar)
    if isinstance(form, ExportSegmenter):
        return WholeSegmenter(form, preprocessing, planar=planar)
    assert isinstance(form, ExportDetector)
    if anchors is None:
        raise ValueError("a detector needs the anchors of the size that the file takes")
    return WholeDetector(form, preprocessing, anchors, plain=plain, planar=planar)
