"""Images with boxes in them, whatever format they are annotated in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mobilevit.data.formats.folders import DataError, hash_order, join_names
from mobilevit.data.images import ImageError, image_facts, upright_boxes

log = logging.getLogger(__name__)

Format: TypeAlias = Literal["coco", "voc", "yolo"]


@dataclass(frozen=True)
class Annotation:
    """The boxes of one image, as far as they can be used."""

    boxes: Tensor
    """float32 [N, 4]: corners x1, y1, x2, y2 in pixels of the upright image, all within it."""
    labels: Tensor
    """int64 [N]: positions in the data set's `classes`."""
    crowd: Tensor
    """bool [N]: not trained on, and neither right nor wrong in evaluation. It is a box of
    COCO's `iscrowd` and VOC's `difficult`."""
    area: Tensor
    """float32 [N]: square pixels; what COCO states of the object, else those of the box."""
    ids: tuple[int, ...]
    """The source's own ids, or running numbers."""


@dataclass(frozen=True, eq=False)
class BoxSamples:
    """Images, and the boxes in each of them as the source states them.

    All that the annotations say is in a few arrays. An image's header is read when `annotation`
    is asked for its boxes, never before; then its size and orientation are remembered.
    """

    root: Path
    format: Format
    classes: tuple[str, ...]
    """Names, without background."""
    category_ids: tuple[int, ...]
    """The source's own number of each class; in VOC, which has none, 1 to K."""
    files: tuple[str, ...]
    annotated_by: tuple[str, ...]
    """For each image the file that holds its boxes; "" where there is none."""
    image_ids: np.ndarray
    """int64 [images]."""
    sizes: np.ndarray
    """int32 [images, 2]: height, width as the annotations state them; 0 where they do not."""
    first: np.ndarray
    """int64 [images + 1]: the boxes of image i are the rows first[i] to first[i + 1] below."""
    corners: np.ndarray
    """float64 [rows, 4]: x1, y1, x2, y2 as stated, usable or not; see `relative`."""
    labels: np.ndarray
    """int64 [rows]: positions in `classes`."""
    crowd: np.ndarray
    """bool [rows]."""
    areas: np.ndarray
    """float64 [rows]: square pixels as stated; NaN where not."""
    ids: np.ndarray
    """int64 [rows]."""
    lines: np.ndarray
    """int64 [rows]: the line of the file where a box stands; 0 where that means nothing."""
    relative: bool = False
    """Whether corners are shares of the upright width and height rather than pixels."""
    _seen: np.ndarray = field(init=False, repr=False)
    _told: list[str] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        """Make room for what headers say: height, width, orientation."""
        object.__setattr__(self, "_seen", np.zeros((len(self.files), 3), np.int32))

    def __len__(self) -> int:
        """Count the images."""
        return len(self.files)

    def source(self, index: int) -> Path:
        """The image's file."""
        return Path(self.files[index])

    def name(self, index: int) -> str:
        """What to call an image: its path."""
        return self.files[index]

    def image_id(self, index: int) -> int:
        """COCO's own id; otherwise a running number from 1."""
        return int(self.image_ids[index])

    def recorded_size(self, index: int) -> tuple[int, int] | None:
        """(height, width) as the annotations state it, true or not; None where they do not."""
        height, width = self.sizes[index].tolist()
        return (height, width) if height > 0 and width > 0 else None

    def rows(self, index: int) -> slice:
        """Where the boxes of an image are in `corners`, `labels` and so on."""
        index = range(len(self))[index]
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def box_name(self, row: int) -> str:
        """What to call a box in messages: file and line, or file, annotation id and image."""
        image = int(np.searchsorted(self.first, row, side="right")) - 1
        if self.lines[row]:
            return f"{self.annotated_by[image]}:{self.lines[row]}"
        where = self.annotated_by[image]
        return f"{where}: annotation {self.ids[row]} ({Path(self.files[image]).name})"

    def annotation(self, index: int) -> Annotation:
        """Boxes in the upright image, clipped to it; those that have no area there are left out.

        Where the recorded size is that of a file whose EXIF orientation has not been applied, and
        not that of the upright image, the boxes were drawn in it as it is stored, and are turned
        with it. Otherwise they are taken as they are.

        Raises:
            ImageError: the image has boxes, but is missing or no image.
        """
        rows = self.rows(index)
        if rows.start == rows.stop:
            boxes, kept = np.zeros((0, 4), np.float32), np.zeros(0, bool)
        else:
            height, width, orientation = self._header(index)
            placed = self.placed(index, height, width, orientation)
            boxes, kept = clipped(placed, height, width)
        boxes = boxes[kept]
        sides = boxes[:, 2:] - boxes[:, :2]
        stated = self.areas[rows][kept]
        area = np.where(stated > 0, stated, sides[:, 0] * sides[:, 1])
        return Annotation(
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(self.labels[rows][kept]),
            crowd=torch.from_numpy(self.crowd[rows][kept]),
            area=torch.from_numpy(area.astype(np.float32)),
            ids=tuple(self.ids[rows][kept].tolist()),
        )

    def placed(self, index: int, height: int, width: int, orientation: int) -> np.ndarray:
        """All boxes of an image as they are, in pixels of the upright image: float64 [N, 4].

        Height and width are the upright image's, orientation is what EXIF says of the file.
        """
        corners = self.corners[self.rows(index)]
        if self.relative:
            return corners * np.array([width, height, width, height], float)
        if self.stored_as_recorded(index, height, width, orientation):
            return upright_boxes(corners, orientation, height=width, width=height)
        return corners

    def stored_as_recorded(self, index: int, height: int, width: int, orientation: int) -> bool:
        """Whether the recorded size is that of the file before it is turned, and only that."""
        recorded = self.recorded_size(index)
        return orientation >= 5 and recorded == (width, height) and width != height

    def usable(self) -> np.ndarray:
        """Which boxes have an area within their images, by the recorded sizes: bool [rows].

        The images are not opened, so where no size is recorded, or a wrong one, it may differ
        from what `annotation` gives.
        """
        sizes = np.where(self.sizes > 0, self.sizes, np.finfo(np.float32).max)
        if self.relative:
            sizes = np.ones_like(sizes)
        height, width = np.repeat(sizes, np.diff(self.first), axis=0).T
        return clipped(self.corners, height, width)[1]

    def counts(self) -> dict[str, int]:
        """Usable boxes of each class, in the order of `classes`."""
        totals = np.bincount(self.labels[self.usable()], minlength=len(self.classes))
        return dict(zip(self.classes, totals.tolist(), strict=True))

    def left_out(self) -> list[int]:
        """The rows that `annotation` leaves out.

        Images are opened only where a box is beyond their recorded size, as that may be wrong.
        """
        rows = np.flatnonzero(~self.usable())
        sized = (self.corners[rows, 2:] > self.corners[rows, :2]).all(axis=1)
        kept = set()
        for row in [] if self.relative else rows[sized].tolist():
            index = int(np.searchsorted(self.first, row, side="right")) - 1
            try:
                header = self._header(index)
            except ImageError:
                continue
            kept_there = clipped(self.placed(index, *header), *header[:2])[1]
            if kept_there[row - self.first[index]]:
                kept.add(row)
        return [row for row in rows.tolist() if row not in kept]

    def _header(self, index: int) -> tuple[int, int, int]:
        """Upright height, upright width, orientation."""
        header = tuple(self._seen[index].tolist())
        if header[0] == 0:
            facts = image_facts(self.files[index])
            header = facts.height, facts.width, facts.orientation
            self._seen[index] = header
            recorded = self.recorded_size(index)
            if (
                recorded not in (None, header[:2])
                and not self.stored_as_recorded(index, *header)
                and not self._told
            ):
                self._told.append(self.files[index])  # the first of them is enough
                log.warning(
                    "%s: is %d pixels wide and %d high, but its annotations say %d and %d; boxes "
                    "are taken as pixels of the image as it is",
                    self.files[index], header[1], header[0], recorded[1], recorded[0],
                )  # fmt: skip
        return header


def clipped(
    boxes: np.ndarray, height: int | np.ndarray, width: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cut boxes [N, 4] to their images.

    Returns:
        float32 [N, 4], and bool [N]: which have an area there, and were finite.
    """
    limits = np.stack(np.broadcast_arrays(width, height, width, height), -1).astype(float)
    # Evaluated in the type that is used: what is thinner than float32 can tell has no width there.
    inside = np.clip(boxes, 0.0, limits).astype(np.float32)
    sides = inside[:, 2:] - inside[:, :2]
    return inside, np.isfinite(boxes).all(1) & (sides > 0).all(1)


def some(samples: BoxSamples, indices: Sequence[int]) -> BoxSamples:
    """The images at `indices`, in this order, with their boxes."""
    chosen = np.asarray(indices, np.int64)
    counts = np.diff(samples.first)[chosen]
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    # The rows of each chosen image: where they began, plus 0, 1, 2 ... within it.
    rows = np.repeat(samples.first[chosen] - first[:-1], counts) + np.arange(first[-1])
    return replace(
        samples,
        files=tuple(samples.files[index] for index in chosen),
        annotated_by=tuple(samples.annotated_by[index] for index in chosen),
        image_ids=samples.image_ids[chosen],
        sizes=samples.sizes[chosen],
        first=first,
        corners=samples.corners[rows],
        labels=samples.labels[rows],
        crowd=samples.crowd[rows],
        areas=samples.areas[rows],
        ids=samples.ids[rows],
        lines=samples.lines[rows],
    )


def relabelled(samples: BoxSamples, classes: Sequence[str]) -> BoxSamples:
    """Give the same images with labels that are positions in `classes`, such as a model's own.

    Classes are matched by name. Those that the data lacks get the numbers after its largest as
    `category_ids`; those of the data that have no box do not matter.

    Raises:
        DataError: there are boxes of a class that is not among `classes`, or these are not unique.
    """
    place = {name: position for position, name in enumerate(classes)}
    if len(place) != len(classes):
        raise DataError(f"class names must be unique: {', '.join(classes)}")
    used = {samples.classes[label] for label in np.unique(samples.labels)}
    if unknown := [name for name in samples.classes if name in used and name not in place]:
        raise DataError(
            f"{samples.root}: {join_names('class', unknown)} unknown; "
            f"known are: {', '.join(classes)}"
        )
    moved = np.array([place.get(name, -1) for name in samples.classes], np.int64)
    own = dict(zip(samples.classes, samples.category_ids, strict=True))
    new = max(samples.category_ids, default=0) + 1
    numbers = []
    for name in classes:
        numbers.append(own.get(name, new))
        new += name not in own
    return replace(
        samples,
        classes=tuple(classes),
        category_ids=tuple(numbers),
        labels=moved[samples.labels],
    )


def split_off(samples: BoxSamples, val_fraction: float, seed: int) -> tuple[BoxSamples, BoxSamples]:
    """Hold out a share of the images: (to train on, to evaluate by).

    `val_fraction` of them, rounded, at least one and not all. Which ones depends on `seed` and the
    path below the root, so most stay where they are when images are added. An image that has the
    only boxes of a class stays in training.

    Raises:
        DataError: no image can be held out.
        ValueError: `val_fraction` is not between 0 and 1.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is between 0 and 1, not {val_fraction}")
    wanted = min(max(round(len(samples) * val_fraction), 1), len(samples) - 1)
    counted = samples.usable() & ~samples.crowd
    classes_of = []
    for index in range(len(samples)):
        rows = samples.rows(index)
        classes_of.append(set(samples.labels[rows][counted[rows]].tolist()))
    left = [0] * len(samples.classes)  # images in training that have boxes of each class
    for labels in classes_of:
        for label in labels:
            left[label] += 1
    held: set[int] = set()
    # Ranked by a hash rather than shuffled: a shuffle moves every file when one is added.
    for index in sorted(range(len(samples)), key=lambda i: _rank_of(samples, i, seed)):
        if len(held) >= wanted:
            break
        if all(left[label] > 1 for label in classes_of[index]):
            held.add(index)
            for label in classes_of[index]:
                left[label] -= 1
    if not held:
        raise DataError(
            f"{samples.root}: {len(samples)} images are too few to hold one out: each has the "
            "only boxes of a class"
        )
    train = [index for index in range(len(samples)) if index not in held]
    return some(samples, train), some(samples, sorted(held))


def _rank_of(samples: BoxSamples, index: int, seed: int) -> bytes:
    path = samples.source(index)
    inside = path.is_relative_to(samples.root)
    return hash_order(path, samples.root if inside else Path(path.anchor), seed)
