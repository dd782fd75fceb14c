"""The builder that readers fill with images, annotations and issues."""

import os
import struct
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit.data.errors import FileError
from mobilevit.data.formats.base import (
    MISSING_IMAGES,
    UNUSABLE_ANNOTATIONS,
    UNUSED_FILES,
    Boxes,
    Content,
    Issue,
    ParsedDataset,
    Severity,
)
from mobilevit.data.formats.files import Paths, find_splits
from mobilevit.data.formats.masks.drawn import DrawnMasks, Outline, Shape, bounds
from mobilevit.data.formats.masks.values import MaskSource

_NAN = float("nan")
# Boxes are packed: as Python objects, the million of a large data set would take a gigabyte.
_BOX = struct.Struct("=q4dq?dqq")
_BOX_TYPE = np.dtype(
    [
        ("image", np.int64),
        ("corners", np.float64, 4),
        ("label", np.int64),
        ("crowd", np.bool_),
        ("area", np.float64),
        ("id", np.int64),
        ("line", np.int64),
    ]
)


class DatasetBuilder:
    """Collects images, annotations and issues, in any order, while a data set is read.

    Args:
        content: what is wanted of annotated objects: their boxes, or masks on which their outlines
            are drawn.
        relative: whether corners are shares of the upright image's width and height.
    """

    def __init__(
        self,
        root: Path,
        format: str,
        display_name: str,
        *,
        content: Content = "boxes",
        relative: bool = False,
    ) -> None:
        self.root, self.format, self.display_name = root, format, display_name
        self.content, self.relative = content, relative
        self.files: list[str] = []
        self.issues: list[Issue] = []
        self.notes: list[str] = []
        self.splits: dict[str, list[int]] = {}
        self.origins: dict[str, str] = {}
        self._annotation_files: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._image_labels: list[int] = []
        self._names: dict[str, int] = {}
        self._boxes, self._has_ids = bytearray(), False
        self._extent = 0.0
        self._shapes: dict[int, list[Shape]] = {}

    def add_image(
        self,
        file: str | Path,
        *,
        annotation_file: str | Path = "",
        size: tuple[int, int] | None = None,
        split: str | None = None,
        label: str | None = None,
    ) -> int:
        """Add an image with its stated (height, width) or its class, and return its index."""
        index = len(self.files)
        self.files.append(os.fspath(file))
        self._annotation_files.append(os.fspath(annotation_file))
        self._sizes.append(size if size is not None and max(size) < 2**31 else (0, 0))
        if split is not None:
            self.splits.setdefault(split, []).append(index)
        if label is not None:
            self._image_labels.append(self.label(label))
        return index

    def label(self, name: str) -> int:
        """The label of a class in a format that does not list its classes."""
        return self._names.setdefault(name, len(self._names))

    def add_box(
        self,
        image: int,
        corners: Sequence[float] | None,
        label: int,
        *,
        outline: Outline = (),
        crowd: bool = False,
        area: float = _NAN,
        box_id: int | None = None,
        line: int = 0,
    ) -> None:
        """Add an object with corners x1, y1, x2, y2, which may be any numbers, or an outline.

        Without corners, they are those of the outline. On masks, an object without an outline is
        somewhere in its box, which is ignored.
        """
        corners = bounds(outline) if corners is None else corners
        self._extent = max(self._extent, *map(abs, filter(isfinite, corners)), 0.0)
        if self.content == "masks":
            self._shapes.setdefault(image, []).append(Shape.of(label, corners, outline, crowd))
        else:
            self._has_ids |= box_id is not None
            self._boxes += _BOX.pack(image, *corners, label, crowd, area, box_id or 0, line)

    def add_issue(
        self,
        where: str | Path,
        message: str,
        *,
        category: str = UNUSABLE_ANNOTATIONS,
        severity: Severity = "blocking",
        image: int | None = None,
        split: str | None = None,
        skippable: bool = True,
    ) -> None:
        self.issues.append(
            Issue(category, os.fspath(where), message, severity, image, split, skippable)
        )

    def add_missing(self, where: str | Path, message: str, **scope: Any) -> None:
        """Report an image that annotations name and that does not exist."""
        self.add_issue(where, f"image missing: {message}", category=MISSING_IMAGES, **scope)

    def add_error(self, error: FileError, **scope: Any) -> None:
        """Record an unreadable file, for an `image` or a `split`, else for the entire data set."""
        self.add_issue(error.where, error.message, skippable=bool(scope), **scope)

    def add_unused(self, file: str | Path, why: str) -> None:
        self.add_issue(file, why, category=UNUSED_FILES, severity="warning")

    def split_by_folders(self) -> None:
        """Where nothing states splits, those that folders are named after; report other images."""
        if not self.splits:
            both = zip(self._annotation_files, self.files, strict=True)
            splits = find_splits([annotation or file for annotation, file in both], self.root)
            splits = splits if any(splits) else find_splits(self.files, self.root)
            for index, split in enumerate(splits):
                if split is not None:
                    self.splits.setdefault(split, []).append(index)
        listed = {index for indices in self.splits.values() for index in indices}
        for index, file in enumerate(self.files if self.splits else ()):
            if index not in listed:
                self.add_unused(file, "in no split")

    def corners(self) -> np.ndarray:
        """float64 [N, 4]: writable view of the boxes so far; none can be added while it exists."""
        return np.frombuffer(self._boxes, _BOX_TYPE)["corners"]

    def build(
        self,
        classes: Sequence[str] | None = None,
        *,
        category_ids: Sequence[int] | None = None,
        masks: MaskSource | None = None,
        classes_from_options: bool = False,
    ) -> ParsedDataset:
        """Build the data set; by default its classes are the sorted names of `label`."""
        if 0 < self._extent <= 1 and not self.relative:
            message = (
                f"all boxes lie within one pixel, none beyond {self._extent:g}: they look relative "
                f"to the image's size, but {self.display_name} states pixels; multiply x by the "
                "width and y by the height"
            )
            self.add_issue(self._annotation_files[0] or self.root, message, skippable=False)
        names = tuple(sorted(self._names) if classes is None else classes)
        # Labels were numbered as their names appeared.
        order = np.array([names.index(name) for name in self._names], np.int64)
        sizes = np.array(self._sizes, np.int32).reshape(-1, 2)
        images = Paths(self.files)
        if masks is None and self.content == "masks" and self.files:
            masks = DrawnMasks.of(
                names,
                order,
                shapes=[self._shapes.get(index, []) for index in range(len(self.files))],
                images=images,
                annotation_files=self._annotation_files,
                sizes=sizes,
            )
            names = masks.classes
        return ParsedDataset(
            root=self.root,
            format=self.format,
            display_name=self.display_name,
            images=images,
            classes=names,
            classes_by_use=classes is None,
            classes_from_options=classes_from_options,
            category_ids=None if category_ids is None else tuple(category_ids),
            sizes=sizes,
            labels=order[self._image_labels] if self._image_labels else None,
            boxes=self._sorted_boxes(order) if self.content == "boxes" else None,
            masks=masks,
            splits=self.splits,
            origins=self.origins,
            issues=tuple(self.issues),
            notes=tuple(self.notes),
        )

    def _sorted_boxes(self, order: np.ndarray) -> Boxes:
        rows = np.frombuffer(self._boxes, _BOX_TYPE)
        rows = rows[np.argsort(rows["image"], kind="stable")]
        counts = np.bincount(rows["image"], minlength=len(self.files))
        return Boxes(
            first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            corners=rows["corners"].copy(),
            labels=order[rows["label"]] if len(order) else rows["label"].copy(),
            crowd=rows["crowd"].copy(),
            areas=rows["area"].copy(),
            ids=rows["id"].copy() if self._has_ids else None,
            lines=rows["line"].copy(),
            annotation_files=tuple(self._annotation_files),
            relative=self.relative,
        )
