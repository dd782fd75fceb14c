"""Images with boxes, in any annotation format."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mobilevit.data.formats.base import Boxes, Issue
from mobilevit.data.images import ImageFacts, image_facts, upright_boxes
from mobilevit.data.splits import SPLITS, Examination, Samples

SMALL, MEDIUM = 32**2, 96**2
"""COCO's limits in square pixels: smaller boxes are small, or else medium."""
WRONG_SIZES = "images of another size than stated"
UNLIMITED = 2**31 - 1
"""Side of an image of unknown size."""
TOLERANCE = 1.0
"""Pixels that a box may reach beyond its image without a warning, for rounding."""


@dataclass(frozen=True)
class Annotation:
    """The usable boxes of one image."""

    boxes: Tensor
    """float32 [N, 4]: corners x1, y1, x2, y2 in pixels of the upright image, all within it."""
    labels: Tensor
    """int64 [N]: indices of classes."""
    crowd: Tensor
    """bool [N]: COCO's `iscrowd` and VOC's `difficult`: not trained on, and in evaluation neither
    right nor wrong."""
    area: Tensor
    """float32 [N]: square pixels; the object's area as COCO states it, else that of the box."""


class Targets(NamedTuple):
    """Boxes of a batch of images, padded to the largest number M, at least 1."""

    boxes: Tensor
    """`[B, M, 4]`: corners x1, y1, x2, y2 as shares of the image's width and height."""
    labels: Tensor
    """`[B, M]`: classes from 0 on; -1 for padding."""

    @classmethod
    def stack(cls, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Self:
        """Pad images' boxes `[N, 4]` and labels `[N]` to one length.

        >>> labels = [torch.tensor([7]), torch.tensor([8, 9])]
        >>> Targets.stack([torch.ones(1, 4), torch.ones(2, 4)], labels).labels
        tensor([[ 7, -1],
                [ 8,  9]])
        """
        # A row for each image, and one that makes the length at least 1.
        padded = pad_sequence([*boxes, torch.zeros(1, 4)], batch_first=True)
        marks = pad_sequence([*labels, torch.zeros(1)], batch_first=True, padding_value=-1)
        return cls(padded[:-1], marks[:-1])


class PlacedBoxes(NamedTuple):
    """All boxes of one image in pixels of the upright image."""

    height: int
    width: int
    as_stored: bool
    """Whether they were drawn in the image as it is before its EXIF orientation is applied."""
    corners: np.ndarray
    """float64 [N, 4], where they are stated."""
    clipped: np.ndarray
    """float32 [N, 4], clipped to the image."""
    usable: np.ndarray
    """bool [N]: which have an area in it."""


@dataclass(frozen=True, eq=False)
class BoxSamples(Samples):
    """Images and their boxes. An image's header is read only when its boxes are used."""

    content = "boxes"
    unit = "boxes"
    extra_counts = (
        "images without boxes", "boxes left out", "crowd or difficult", "small", "medium", "large",
    )  # fmt: skip

    @property
    def boxes(self) -> Boxes:
        assert self.dataset.boxes is not None
        return self.dataset.boxes

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The annotations' number of each class, or 1 to K where they have none.

        Classes that the data set lacks have numbers after its largest.
        """
        own = self.dataset.category_ids
        if own is None:
            return tuple(range(1, len(self.classes) + 1))
        numbers = dict(zip(self.dataset.classes, own, strict=True))
        following = count(max(own, default=0) + 1)
        return tuple(numbers[n] if n in numbers else next(following) for n in self.classes)

    def recorded_size(self, index: int) -> tuple[int, int] | None:
        """(height, width) as the annotations state it, correct or not; None where they do not."""
        assert self.dataset.sizes is not None
        height, width = self.dataset.sizes[self.indices[index]].tolist()
        return (height, width) if height > 0 and width > 0 else None

    def rows(self, index: int) -> slice:
        return self.boxes.rows(int(self.indices[range(len(self))[index]]))

    @cached_property
    def _rows(self) -> np.ndarray:
        """int64: rows of all samples."""
        slices = [np.arange(r.start, r.stop) for r in map(self.rows, range(len(self)))]
        return np.concatenate([np.zeros(0, np.int64), *slices])

    @cached_property
    def usable(self) -> np.ndarray:
        """bool [rows of the data set]: which boxes have an area within the stated image size.

        No image is opened: if its size is not stated, or is wrong, `annotation` may differ.
        """
        sizes, boxes = self.dataset.sizes, self.boxes
        assert sizes is not None
        limits = np.where((sizes > 0).all(1, keepdims=True), sizes, UNLIMITED)
        if boxes.relative:
            limits = np.ones_like(limits)
        height, width = np.repeat(limits, np.diff(boxes.first), axis=0).T
        return clip(boxes.corners, height, width)[1]

    def annotation(self, index: int) -> Annotation:
        """Boxes in the upright image, clipped to it; those without area there are left out."""
        index = range(len(self))[index]
        rows = self.rows(index)
        if rows.start == rows.stop:
            boxes, usable = np.zeros((0, 4), np.float32), np.zeros(0, bool)
        else:
            facts = image_facts(self.name(index))
            placed = self._place(index, (facts.height, facts.width, facts.orientation))
            boxes, usable = placed.clipped[placed.usable], placed.usable
        area = _areas(boxes, self.boxes.areas[rows][usable])
        return Annotation(
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(self.class_map[self.boxes.labels[rows]][usable]),
            crowd=torch.from_numpy(self.boxes.crowd[rows][usable]),
            area=torch.from_numpy(area.astype(np.float32)),
        )

    def targets(self, indices: Sequence[int], sizes: Sequence[tuple[int, int]]) -> Targets:
        """Without crowds, which no loss counts."""
        boxes, labels = [], []
        for index, (height, width) in zip(indices, sizes, strict=True):
            annotation = self.annotation(index)
            boxes.append(annotation.boxes[~annotation.crowd] / torch.tensor([width, height] * 2))
            labels.append(annotation.labels[~annotation.crowd])
        return Targets.stack(boxes, labels)

    def _place(self, index: int, header: tuple[int, int, int]) -> PlacedBoxes:
        """Place boxes in an image of upright height, width and EXIF orientation."""
        height, width, orientation = header
        corners = self.boxes.corners[self.rows(index)]
        # Where the stated size is that of the file before its EXIF orientation is applied, and only
        # that, boxes were drawn in the image as it is stored, and are turned with it.
        swapped = height != width and self.recorded_size(index) == (width, height)
        as_stored = orientation >= 5 and swapped
        if self.boxes.relative:
            corners = corners * np.array([width, height] * 2, float)
        elif as_stored:
            corners = upright_boxes(corners, orientation, height=width, width=height)
        return PlacedBoxes(height, width, as_stored, corners, *clip(corners, height, width))

    def used_classes(self) -> list[str]:
        labels = self.class_map[self.boxes.labels[self._rows]]
        return [self.classes[label] for label in np.unique(labels).tolist()]

    def classes_in(self, index: int) -> set[int]:
        """The classes of a sample's usable boxes, without crowds."""
        rows = self.rows(index)
        counted = self.usable[rows] & ~self.boxes.crowd[rows]
        return set(self.class_map[self.boxes.labels[rows]][counted].tolist())

    def check_split(self, split: str) -> list[Issue]:
        if issues := super().check_split(split):
            return issues
        if self.usable[self._rows].any():
            return []
        message = f"no boxes in {split}, {len(self)} images"
        return [Issue(SPLITS, self.location, message, skippable=False)]

    def box_name(self, index: int, row: int) -> str:
        """Name of a box in messages: file and line, or file, annotation id and image."""
        image = int(self.indices[index])
        file = self.boxes.annotation_files[image]
        if self.boxes.lines[row]:
            return f"{file}:{self.boxes.lines[row]}"
        number = row + 1 if self.boxes.ids is None else self.boxes.ids[row]
        return f"{file}: annotation {number} ({Path(self.name(index)).name})"

    def examine(
        self, index: int, facts: ImageFacts | None, *, decode: bool = False, count: bool = True
    ) -> Examination:
        rows, size = self.rows(index), self.recorded_size(index)
        issues: list[Issue] = []
        if facts is not None:
            placed = self._place(index, (facts.height, facts.width, facts.orientation))
            issues += self._size_issues(index, placed)
        else:  # what can be checked without the image
            height, width = (1, 1) if self.boxes.relative else size or (UNLIMITED, UNLIMITED)
            placed = self._place(index, (height, width, 1))
        usable = placed.usable
        if not count and usable.all():
            return Examination(issues)
        issues += self._box_issues(index, placed)
        issues += self._repeated_boxes(index, rows)
        areas = self.boxes.areas[rows]
        if facts is not None or size is not None:
            areas = _areas(placed.clipped, areas)
        areas = areas[usable]
        numbers = (
            not usable.any(), (~usable).sum(), self.boxes.crowd[rows][usable].sum(),
            (areas < SMALL).sum(), ((areas >= SMALL) & (areas < MEDIUM)).sum(),
            (areas >= MEDIUM).sum(),
        )  # fmt: skip
        return Examination(
            issues,
            {
                **Counter(self.class_map[self.boxes.labels[rows]][usable].tolist()),
                **{name: int(n) for name, n in zip(self.extra_counts, numbers, strict=True)},
            },
        )

    def _size_issues(self, index: int, placed: PlacedBoxes) -> Iterator[Issue]:
        recorded = self.recorded_size(index)
        if recorded in (None, (placed.height, placed.width)) or placed.as_stored:
            return
        file = self.boxes.annotation_files[int(self.indices[index])]
        message = (
            f"is {placed.width} x {placed.height} pixels, but by {file} "
            f"{recorded[1]} x {recorded[0]}; boxes are taken as pixels of the image as it is"
        )
        yield Issue(WRONG_SIZES, self.name(index), message, "error")

    def _box_issues(self, index: int, placed: PlacedBoxes) -> Iterator[Issue]:
        corners, start = placed.corners, self.rows(index).start
        size = f"{placed.width} x {placed.height}"
        limits = np.array([placed.width, placed.height] * 2, float)
        beyond = np.maximum(-corners, corners - limits).max(axis=1, initial=0.0)
        for row in np.flatnonzero(~placed.usable | (beyond > TOLERANCE)).tolist():
            x1, y1, x2, y2 = corners[row]
            if placed.usable[row]:
                category, what = "boxes partly outside their images", "clipped"
                why = f"reaches {beyond[row]:.0f} pixels beyond {size}; is"
            elif not np.isfinite(corners[row]).all():
                category, why, what = "boxes that are not numbers", "is", "left out"
            elif x2 <= x1 or y2 <= y1:
                category = "boxes without width or height"
                why, what = "has no width or no height, and is", "left out"
            else:
                category = "boxes outside their images"
                why, what = f"is outside {size}, and is", "left out"
            text = ", ".join(f"{side:g}" for side in corners[row])
            yield Issue(
                category,
                self.box_name(index, start + row),
                f"({text}) {why} {what}",
                "warning" if placed.usable[row] else "error",
            )

    def _repeated_boxes(self, index: int, rows: slice) -> Iterator[Issue]:
        first: dict[tuple[float, ...], int] = {}
        for row in range(rows.start, rows.stop):
            key = (float(self.boxes.labels[row]), *self.boxes.corners[row].tolist())
            if (other := first.setdefault(key, row)) != row:
                message = f"the same box and class as {self.box_name(index, other)}"
                yield Issue("boxes stated twice", self.box_name(index, row), message, "warning")


def clip(boxes: np.ndarray, height: Any, width: Any) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] clipped to an image, float32; and which are finite and not empty, bool [N].

    `height` and `width` are those of all boxes, or [N].
    """
    # Compared in the type that is used: what is thinner than float32 can represent has no width.
    limits = np.stack([width, height] * 2, axis=-1)
    inside = np.clip(boxes, 0.0, limits).astype(np.float32)
    sides = inside[:, 2:] - inside[:, :2]
    return inside, np.isfinite(boxes).all(1) & (sides > 0).all(1)


def _areas(boxes: np.ndarray, stated: np.ndarray) -> np.ndarray:
    own = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.where(stated > 0, stated, own)
