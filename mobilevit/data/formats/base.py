"""What readers return, and the builder that collects it.

A reader does not stop at the first problem: it records an `Issue` and goes on. Training then
refuses the data set or leaves images out, and `mobilevit check` lists all issues.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from mobilevit.data.errors import FileError
from mobilevit.data.formats.files import FileTree, Paths
from mobilevit.data.images import image_facts

if TYPE_CHECKING:
    from PIL import Image

    from mobilevit.data.formats.masks import MaskSource

Content: TypeAlias = Literal["labels", "boxes", "masks"]
Severity: TypeAlias = Literal["blocking", "error", "warning"]

EVERYTHING = ""
"""Name of the only part of a data set without splits."""
IGNORE = 255
"""Value of mask pixels that have no class, unless a data set states another one."""

MISSING_IMAGES = "missing images"
UNUSABLE_ANNOTATIONS = "annotations that cannot be used"
UNUSED_FILES = "files that are not part of the data set"


@dataclass(frozen=True)
class Issue:
    """Something wrong with a data set, or unusual."""

    category: str
    """A few words, the same for all issues of a kind."""
    where: str
    """File, file and line, or file and annotation."""
    message: str
    severity: Severity = "blocking"
    """`blocking`: training refuses the data set, or leaves the image out with `on_bad="skip"`.
    `error`: training leaves something out, or learns something wrong. `warning`: unusual."""
    image: int | None = None
    """Index in the parsed data set of the image that it makes unusable."""
    split: str | None = None
    """The split concerned; None: all, or those with the image."""
    skippable: bool = True
    """Whether leaving images out helps."""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class ImageList(Protocol):
    """Images of a data set by index."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> Path | bytes | Image.Image:
        """An image, as `open_image` takes it."""

    def name(self, index: int) -> str:
        """The image's path, or another name for messages."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Boxes:
    """The boxes of all images as annotated, usable or not."""

    first: np.ndarray
    """int64 [images + 1]: the boxes of image i are rows first[i] to first[i + 1] below."""
    corners: np.ndarray
    """float64 [rows, 4]: x1, y1, x2, y2 in pixels, or as shares of the image; see `relative`."""
    labels: np.ndarray
    """int64 [rows]: indices of classes."""
    crowd: np.ndarray
    """bool [rows]: COCO's `iscrowd`, VOC's `difficult`."""
    areas: np.ndarray
    """float64 [rows]: stated areas in square pixels; NaN where none is stated."""
    ids: np.ndarray | None
    """int64 [rows]: stated ids; None where the format has none."""
    lines: np.ndarray
    """int64 [rows]: line in the annotation file; 0 in formats without lines."""
    annotation_files: tuple[str, ...]
    """The file with each image's boxes; "" where there is none."""
    relative: bool = False
    """Whether corners are shares of the upright image's width and height."""

    def rows(self, image: int) -> slice:
        return slice(int(self.first[image]), int(self.first[image + 1]))


class ImageHeaders:
    """(height, width, orientation) of image files, read on first use and remembered."""

    def __init__(self, images: ImageList) -> None:
        self._images = images
        self._known = np.zeros((len(images), 3), np.int32)

    def __getitem__(self, image: int) -> tuple[int, int, int]:
        if self._known[image, 0] == 0:
            facts = image_facts(self._images.name(image))
            self._known[image] = facts.height, facts.width, facts.orientation
        height, width, orientation = self._known[image].tolist()
        return height, width, orientation


@dataclass(frozen=True, eq=False, kw_only=True)
class ParsedDataset:
    """What a reader found: all annotated images, whether their files exist or not."""

    root: Path
    format: str
    display_name: str
    """Name of the format in messages."""
    images: ImageList
    classes: tuple[str, ...]
    classes_by_use: bool = False
    """Whether classes are the names that occur, so that training has only those of its images."""
    classes_from_options: bool = False
    """Whether classes come from `ReadOptions`, because no file names them."""
    category_ids: tuple[int, ...] | None = None
    """The annotations' number of each class; None where they have none."""
    image_ids: np.ndarray | None = None
    """int64 [images]: stated ids; None where the format has none."""
    sizes: np.ndarray | None = None
    """int32 [images, 2]: stated (height, width); 0 where none is stated."""
    labels: np.ndarray | None = None
    """int64 [images]: the class of each image, where images have one."""
    boxes: Boxes | None = None
    masks: MaskSource | None = None
    splits: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Split -> its images; empty where the data set states no splits."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Split -> where it was found, if its name does not say that."""
    issues: tuple[Issue, ...] = ()
    notes: tuple[str, ...] = ()
    """What the reader decided, for messages."""

    @cached_property
    def headers(self) -> ImageHeaders:
        return ImageHeaders(self.images)

    @property
    def parts(self) -> Mapping[str, Sequence[int]]:
        """Split -> its images; `EVERYTHING` -> all images where no splits are stated."""
        return self.splits or {EVERYTHING: range(len(self.images))}


@dataclass(frozen=True)
class ReadOptions:
    """What to read from a data set, and answers to what its files leave open."""

    content: Content
    classes: tuple[str, ...] | None = None
    """Masks: names of the classes, where no file has them."""
    ignore: int = IGNORE
    """Masks: the stored value that has no class, where the format leaves that open."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """An annotation format: how it is recognised and read."""

    name: str
    """As in `--data.format`."""
    display_name: str
    contents: frozenset[Content]
    looks_for: str
    """What `matches` looks for, for messages."""
    matches: Callable[[FileTree, Content], bool]
    """Whether a folder or file is of this format, by names and the beginnings of files."""
    read: Callable[[FileTree, ReadOptions], list[ParsedDataset]]
    """Parse it into one data set per annotation file with class numbers of its own."""
    states_ignored: bool = True
    """Whether the format itself says which mask values have no class."""
    automatic: bool = True
    """Whether `--data.format auto` considers it."""


class DatasetBuilder:
    """Collects images, boxes and issues, in any order, while a data set is read."""

    def __init__(
        self, root: Path, format: str, display_name: str, *, relative: bool = False
    ) -> None:
        self.root, self.format, self.display_name = root, format, display_name
        self.relative = relative
        self.files: list[str] = []
        self.issues: list[Issue] = []
        self.notes: list[str] = []
        self.splits: dict[str, list[int]] = {}
        self._annotation_files: list[str] = []
        self._sizes, self._image_ids = array("q"), array("q")
        self._owners, self._labels, self._ids, self._lines = (array("q") for _ in range(4))
        self._corners, self._areas, self._crowd = array("d"), array("d"), array("b")

    def add_image(
        self,
        file: str | Path,
        *,
        annotation_file: str | Path = "",
        size: tuple[int, int] | None = None,
        image_id: int | None = None,
        split: str | None = None,
    ) -> int:
        """Add an image with its stated (height, width) and return its index."""
        index = len(self.files)
        self.files.append(os.fspath(file))
        self._annotation_files.append(os.fspath(annotation_file))
        self._sizes.extend(size if size is not None and max(size) < 2**31 else (0, 0))
        if image_id is not None:
            self._image_ids.append(image_id)
        if split is not None:
            self.splits.setdefault(split, []).append(index)
        return index

    def add_box(
        self,
        image: int,
        corners: Sequence[float],
        label: int,
        *,
        crowd: bool = False,
        area: float = float("nan"),
        box_id: int | None = None,
        line: int = 0,
    ) -> None:
        """Add a box with corners x1, y1, x2, y2, which may be any numbers."""
        self._owners.append(image)
        self._corners.extend(corners)
        self._labels.append(label)
        self._crowd.append(crowd)
        self._areas.append(area)
        self._lines.append(line)
        if box_id is not None:
            self._ids.append(box_id)

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

    def add_error(self, error: FileError, **scope: int | str | None) -> None:
        """Record an unreadable file, for an `image` or a `split`, else for the entire data set."""
        self.add_issue(error.where, error.message, skippable=bool(scope), **scope)  # type: ignore[arg-type]

    def add_unused(self, file: str | Path, why: str) -> None:
        self.add_issue(file, why, category=UNUSED_FILES, severity="warning")

    def sizes(self) -> np.ndarray:
        """int32 [N, 2]: stated (height, width) of the images so far; 0 where none is stated."""
        return np.array(self._sizes, np.int32).reshape(-1, 2)

    def corners(self) -> np.ndarray:
        """float64 [N, 4]: writable view of the boxes so far; none can be added while it exists."""
        return np.frombuffer(self._corners, np.float64).reshape(-1, 4)

    def build(
        self,
        classes: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
        label_map: Sequence[int] | None = None,
        masks: MaskSource | None = None,
        classes_by_use: bool = False,
        classes_from_options: bool = False,
        origins: Mapping[str, str] | None = None,
    ) -> ParsedDataset:
        """Build the data set; `label_map` is the index in `classes` of each label used so far."""
        return ParsedDataset(
            root=self.root,
            format=self.format,
            display_name=self.display_name,
            images=Paths(self.files, root=self.root),
            classes=tuple(classes),
            classes_by_use=classes_by_use,
            classes_from_options=classes_from_options,
            category_ids=None if category_ids is None else tuple(category_ids),
            image_ids=np.array(self._image_ids, np.int64) if self._image_ids else None,
            sizes=self.sizes(),
            boxes=self._sorted_boxes(label_map) if masks is None else None,
            masks=masks,
            splits=self.splits,
            origins=origins or {},
            issues=tuple(self.issues),
            notes=tuple(self.notes),
        )

    def _sorted_boxes(self, label_map: Sequence[int] | None) -> Boxes:
        owners = np.array(self._owners, np.int64)
        order = np.argsort(owners, kind="stable")
        counts = np.bincount(owners, minlength=len(self.files))
        labels = np.array(self._labels, np.int64)
        if label_map is not None:
            labels = np.array(label_map, np.int64)[labels]
        return Boxes(
            first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            corners=self.corners()[order],
            labels=labels[order],
            crowd=np.array(self._crowd, bool)[order],
            areas=np.array(self._areas, np.float64)[order],
            ids=np.array(self._ids, np.int64)[order] if self._ids else None,
            lines=np.array(self._lines, np.int64)[order],
            annotation_files=tuple(self._annotation_files),
            relative=self.relative,
        )
