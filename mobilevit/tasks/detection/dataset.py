"""Images with boxes, in any annotation format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mobilevit.data.formats.base import Boxes, Issue
from mobilevit.data.images import ImageFacts, upright_boxes
from mobilevit.data.splits import SPLITS, Examination, Samples

SMALL, MEDIUM = 32**2, 96**2
"""COCO's limits in square pixels: smaller boxes are small, or else medium."""
WRONG_SIZES = "images of another size than stated"
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
    ids: tuple[int, ...]
    """The source's own ids, or running numbers."""


class ImageBoxes:
    """All boxes of one image in pixels of the upright image, and which of them can be used."""

    def __init__(
        self,
        boxes: Boxes,
        rows: slice,
        header: tuple[int, int, int],
        recorded: tuple[int, int] | None,
    ) -> None:
        """Place the boxes of `rows` in an image.

        `header`: upright height, width and EXIF orientation; `recorded`: annotated height, width.
        """
        self.height, self.width, orientation = header
        # Where the stated size is that of the file before its EXIF orientation is applied, and only
        # that, boxes were drawn in the image as it is stored, and are turned with it.
        self.as_stored = (
            orientation >= 5 and recorded == (self.width, self.height) and self.width != self.height
        )
        self.corners = boxes.corners[rows]
        """float64 [N, 4], where they are stated."""
        if boxes.relative:
            self.corners = self.corners * np.array([self.width, self.height] * 2, float)
        elif self.as_stored:
            self.corners = upright_boxes(
                self.corners, orientation, height=self.width, width=self.height
            )
        self.clipped, self.usable = clip(self.corners, self.height, self.width)


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
        following = iter(
            range(max(own, default=0) + 1, max(own, default=0) + 1 + len(self.classes))
        )
        return tuple(numbers[n] if n in numbers else next(following) for n in self.classes)

    def image_id(self, index: int) -> int:
        """COCO's own id; otherwise a running number from 1."""
        ids = self.dataset.image_ids
        return index + 1 if ids is None else int(ids[self.indices[index]])

    def recorded_size(self, index: int) -> tuple[int, int] | None:
        """(height, width) as the annotations state it, correct or not; None where they do not."""
        assert self.dataset.sizes is not None
        height, width = self.dataset.sizes[self.indices[index]].tolist()
        return (height, width) if height > 0 and width > 0 else None

    def rows(self, index: int) -> slice:
        return self.boxes.rows(int(self.indices[range(len(self))[index]]))

    @cached_property
    def _all_rows(self) -> np.ndarray:
        slices = [np.arange(r.start, r.stop) for r in map(self.rows, range(len(self)))]
        return np.concatenate([np.zeros(0, np.int64), *slices])

    @cached_property
    def _first_id(self) -> np.ndarray:
        """int64 [samples]: where the format has no ids, that of a sample's first box."""
        return 1 + np.cumsum([0, *np.diff(self.boxes.first)[self.indices]])[:-1]

    def annotation(self, index: int) -> Annotation:
        """Boxes in the upright image, clipped to it; those without area there are left out."""
        index = range(len(self))[index]
        rows = self.rows(index)
        if rows.start == rows.stop:
            boxes, usable = np.zeros((0, 4), np.float32), np.zeros(0, bool)
        else:
            header = self.dataset.headers[int(self.indices[index])]
            placed = ImageBoxes(self.boxes, rows, header, self.recorded_size(index))
            boxes, usable = placed.clipped, placed.usable
        boxes = boxes[usable]
        if self.boxes.ids is not None:
            ids = self.boxes.ids[rows]
        else:
            ids = np.arange(rows.stop - rows.start) + self._first_id[index]
        area = _areas(boxes, self.boxes.areas[rows][usable])
        return Annotation(
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(self.class_map[self.boxes.labels[rows]][usable]),
            crowd=torch.from_numpy(self.boxes.crowd[rows][usable]),
            area=torch.from_numpy(area.astype(np.float32)),
            ids=tuple(ids[usable].tolist()),
        )

    def usable_boxes(self, index: int) -> np.ndarray:
        """Which boxes of a sample have an area within the stated size of the image: bool [N].

        The image is not opened: if its size is not stated, or is wrong, `annotation` may differ.
        """
        unlimited = float(np.finfo(np.float32).max)
        size = (1, 1) if self.boxes.relative else self.recorded_size(index)
        height, width = size or (unlimited, unlimited)
        return clip(self.boxes.corners[self.rows(index)], height, width)[1]

    def counts(self) -> dict[str, int]:
        """Usable boxes of each class, in the order of `classes`; see `usable_boxes`."""
        usable = np.concatenate([np.zeros(0, bool), *map(self.usable_boxes, range(len(self)))])
        labels = self.class_map[self.boxes.labels[self._all_rows]][usable]
        totals = np.bincount(labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, totals, strict=True))

    def used_classes(self) -> list[str]:
        labels = self.class_map[self.boxes.labels[self._all_rows]]
        return [self.classes[label] for label in np.unique(labels).tolist()]

    def classes_in(self, index: int) -> set[int]:
        """The classes of a sample's usable boxes, without crowds."""
        rows = self.rows(index)
        counted = self.usable_boxes(index) & ~self.boxes.crowd[rows]
        return set(self.class_map[self.boxes.labels[rows]][counted].tolist())

    def check_split(self, split: str) -> list[Issue]:
        if issues := super().check_split(split):
            return issues
        if any(self.usable_boxes(index).any() for index in range(len(self))):
            return []
        message = f"no boxes in {split}, {len(self)} images"
        return [Issue(SPLITS, str(self.root), message, skippable=False)]

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
        rows = self.rows(index)
        recorded = self.recorded_size(index)
        issues: list[Issue] = []
        if facts is not None:
            header = facts.height, facts.width, facts.orientation
            placed = ImageBoxes(self.boxes, rows, header, recorded)
            issues += self._size_issues(index, facts, placed)
            usable, areas = placed.usable, _areas(placed.clipped, self.boxes.areas[rows])
        else:  # what can be checked without the image's size
            unlimited = 1 if self.boxes.relative else 2**31 - 1
            placed = ImageBoxes(self.boxes, rows, (unlimited, unlimited, 1), None)
            usable, areas = self.usable_boxes(index), self.boxes.areas[rows]
            if recorded is not None:
                boxes = ImageBoxes(self.boxes, rows, (*recorded, 1), recorded).clipped
                areas = _areas(boxes, areas)
        if not count and placed.usable.all():
            return Examination(issues)
        issues += self._box_issues(index, placed)
        issues += self._repeated_boxes(index, rows)
        labels = self.class_map[self.boxes.labels[rows]]
        counts: dict[int | str, int] = {}
        for label in labels[usable].tolist():
            counts[label] = counts.get(label, 0) + 1
        areas = areas[usable]
        numbers = (
            not usable.any(), (~usable).sum(), self.boxes.crowd[rows][usable].sum(),
            (areas < SMALL).sum(), ((areas >= SMALL) & (areas < MEDIUM)).sum(),
            (areas >= MEDIUM).sum(),
        )  # fmt: skip
        counts |= {n: int(count) for n, count in zip(self.extra_counts, numbers, strict=True)}
        return Examination(issues, counts)

    def _size_issues(self, index: int, facts: ImageFacts, placed: ImageBoxes) -> Iterator[Issue]:
        recorded = self.recorded_size(index)
        if recorded in (None, (facts.height, facts.width)) or placed.as_stored:
            return
        file = self.boxes.annotation_files[int(self.indices[index])]
        message = (
            f"is {facts.width} x {facts.height} pixels, but by {file} "
            f"{recorded[1]} x {recorded[0]}; boxes are taken as pixels of the image as it is"
        )
        yield Issue(WRONG_SIZES, self.name(index), message, "error")

    def _box_issues(self, index: int, placed: ImageBoxes) -> Iterator[Issue]:
        corners, start = placed.corners, self.rows(index).start
        size = f"{placed.width} x {placed.height}"
        limits = np.array([placed.width, placed.height] * 2, float)
        beyond = np.maximum(-corners, corners - limits).max(axis=1, initial=0.0)
        for row in np.flatnonzero(~placed.usable | (beyond > TOLERANCE)).tolist():
            text = ", ".join(f"{side:g}" for side in corners[row])
            name = self.box_name(index, start + row)
            x1, y1, x2, y2 = corners[row]
            if placed.usable[row]:
                message = f"({text}) reaches {beyond[row]:.0f} pixels beyond {size}; is clipped"
                yield Issue("boxes partly outside their images", name, message, "warning")
            elif not np.isfinite(corners[row]).all():
                message = f"({text}) is left out"
                yield Issue("boxes that are not numbers", name, message, "error")
            elif x2 <= x1 or y2 <= y1:
                message = f"({text}) has no width or no height, and is left out"
                yield Issue("boxes without width or height", name, message, "error")
            else:
                message = f"({text}) is outside {size}, and is left out"
                yield Issue("boxes outside their images", name, message, "error")

    def _repeated_boxes(self, index: int, rows: slice) -> Iterator[Issue]:
        first: dict[tuple[float, ...], int] = {}
        for row in range(rows.start, rows.stop):
            key = (float(self.boxes.labels[row]), *self.boxes.corners[row].tolist())
            if (other := first.setdefault(key, row)) != row:
                message = f"the same box and class as {self.box_name(index, other)}"
                yield Issue("boxes stated twice", self.box_name(index, row), message, "warning")


def clip(boxes: np.ndarray, height: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] clipped to an image, float32; and which are finite and not empty, bool [N]."""
    # Compared in the type that is used: what is thinner than float32 can represent has no width.
    inside = np.clip(boxes, 0.0, np.array([width, height] * 2, float)).astype(np.float32)
    sides = inside[:, 2:] - inside[:, :2]
    return inside, np.isfinite(boxes).all(1) & (sides > 0).all(1)


def _areas(boxes: np.ndarray, stated: np.ndarray) -> np.ndarray:
    own = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.where(stated > 0, stated, own)
