"""The builder that readers fill with images, annotations and issues."""

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mobilevit.data.errors import DataError, FileError
from mobilevit.data.formats.base import (
    MISSING_IMAGES,
    UNUSABLE_ANNOTATIONS,
    UNUSED_FILES,
    Boxes,
    Content,
    Format,
    Issue,
    ParsedDataset,
    Severity,
)
from mobilevit.data.formats.files import Paths, find_images, find_splits, join_names
from mobilevit.data.formats.masks.drawn import DrawnMasks, Outline, Shape, bounds, rectangle
from mobilevit.data.formats.masks.values import IGNORED, MaskSource

MALFORMED = (AttributeError, LookupError, MemoryError, TypeError)
"""What parsing raises where JSON has another structure or other sizes than expected."""

_NAN = float("nan")


class DatasetBuilder:
    """Collects images, annotations and issues, in any order, while a data set is read.

    Args:
        content: what is wanted, where the format has several; of annotated objects their boxes, or
            masks on which their outlines are drawn.
        unit: of the coordinates that the format states; shares are those of the upright image's
            width and height. Boxes are added in pixels, or as shares.
    """

    def __init__(
        self,
        root: Path,
        format: Format,
        content: Content | None = None,
        *,
        unit: Literal["pixels", "per cent", "shares"] = "pixels",
    ) -> None:
        self.root, self.format, self.unit = root, format, unit
        self.content = content or min(format.contents)
        self.files: list[str] = []
        self.issues: list[Issue] = []
        self.notes: list[str] = []
        self.splits: dict[str, list[int]] = {}
        self.origins: dict[str, str] = {}
        self._annotation_files: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._image_labels: list[int] = []
        self._names: dict[str, int] = {}
        # Packed: as Python objects, the million boxes of a large data set would take a gigabyte.
        self._measures, self._numbers = array("d"), array("q")
        self._has_ids, self._extent = False, 0.0
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

    def add_annotated(
        self,
        annotation_files: Sequence[str],
        names: Sequence[str],
        sizes: Sequence[tuple[int, int] | None],
        images: Sequence[str],
    ) -> None:
        """Add the image of each annotation file: of the same name, else the one that it names."""
        found = find_images(annotation_files, names, images)
        for file, name, size, image in zip(annotation_files, names, sizes, found, strict=True):
            expected = image or os.path.splitext(file)[0] + ".jpg"
            index = self.add_image(expected, annotation_file=file, size=size)
            if image is None:
                message = f"none has its name, or is {name or 'a filename'}"
                self.add_missing(file, message, image=index)

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
        x1, y1, x2, y2 = corners = bounds(outline) if corners is None else corners
        if self.unit == "pixels":
            self.measure(corners)
        if self.content == "masks":
            drawn = IGNORED if crowd or not outline else label
            shape = Shape(drawn, outline or rectangle(corners))
            self._shapes.setdefault(image, []).append(shape)
        else:
            self._has_ids |= box_id is not None
            self._measures.extend((x1, y1, x2, y2, area))
            self._numbers.extend((image, label, crowd, box_id or 0, line))

    def measure(self, coordinates: Iterable[float]) -> None:
        """Note coordinates in the format's unit; if all are below 2, `build` refuses them."""
        self._extent = max(self._extent, *map(abs, filter(isfinite, coordinates)), 0.0)

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

    @contextmanager
    def record_errors(
        self,
        where: str | Path = "",
        what: str = "",
        *,
        also: tuple[type[Exception], ...] = (),
        **scope: Any,
    ) -> Iterator[None]:
        """Record an error about a file or an annotation, instead of raising it.

        Args:
            where: file, or file and annotation; `FileError` has its own.
            what: precedes the error's message.
            also: errors besides `ValueError` that parsing may raise, such as `MALFORMED`. Then
                nothing but parsing should be done inside, as they hide mistakes of the code.
            scope: the `image` or `split` concerned; else it is the entire data set.
        """
        scope = {"skippable": bool(scope), **scope}
        expected: tuple[type[Exception], ...] = (OverflowError, ValueError, *also)
        try:
            yield
        except FileError as error:
            self.add_issue(error.where, error.message, **scope)
        except DataError:
            raise
        except expected as error:
            why = f"lacks the field {error}" if isinstance(error, KeyError) else repr(error)
            self.add_issue(where, f"{what}: {why}" if what else str(error), **scope)

    def check_names(self, names: Mapping[int, str], where: str | Path) -> None:
        """Report names that several of the annotations' numbers of classes have."""
        if repeated := [name for name, times in Counter(names.values()).items() if times > 1]:
            ids = [number for number, name in names.items() if name in repeated]
            message = f"{join_names('class', repeated)} stated more than once, by the ids {ids}"
            if self.content == "masks":  # whose values cannot be numbered
                raise FileError(where, message)
            self.add_issue(where, message, skippable=False)

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
        return np.asarray(self._measures).reshape(-1, 5)[:, :4]

    def build(
        self,
        classes: Sequence[str] | None = None,
        *,
        category_ids: Sequence[int] | None = None,
        masks: MaskSource | None = None,
        classes_from_options: bool = False,
        where: str | Path | None = None,
    ) -> ParsedDataset:
        """Build the data set.

        Args:
            classes: by default the sorted names of `label`.
            where: the file that states classes and boxes, for messages.
        """
        where = where or next(filter(None, self._annotation_files), self.root)
        if 0 < self._extent < 2:
            how = "by 100" if self.unit == "per cent" else "x by the width and y by the height"
            message = (
                f"no box reaches beyond {self._extent:g}: they look relative to the image's size, "
                f"but {self.format.display_name} states {self.unit}; multiply {how}"
            )
            self.add_issue(where, message, skippable=False)
        names = tuple(sorted(self._names) if classes is None else classes)
        if not all(names):
            self.add_issue(where, "a class without a name", skippable=False)
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
            format=self.format.name,
            display_name=self.format.display_name,
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
        numbers = np.array(self._numbers).reshape(-1, 5)
        rows = np.argsort(numbers[:, 0], kind="stable")
        image, label, crowd, ids, lines = numbers[rows].T.copy()
        measures = np.array(self._measures).reshape(-1, 5)[rows]
        counts = np.bincount(image, minlength=len(self.files))
        return Boxes(
            first=np.concatenate([[0], np.cumsum(counts)]),
            corners=measures[:, :4].copy(),
            labels=order[label] if len(order) else label,
            crowd=crowd.astype(bool),
            areas=measures[:, 4].copy(),
            ids=ids if self._has_ids else None,
            lines=lines,
            annotation_files=tuple(self._annotation_files),
            relative=self.unit == "shares",
        )
