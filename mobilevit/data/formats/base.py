"""What formats are, and what their readers return.

A reader does not stop at the first problem: it records an `Issue` and goes on. Training then
refuses the data set or leaves images out, and `mobilevit check` lists all issues.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from mobilevit.data.formats.files import FileTree

if TYPE_CHECKING:
    from PIL import Image

    from mobilevit.data.formats.masks.values import MaskSource

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

    def digest(self, image: int) -> str:
        """The number of an image's boxes, and a checksum of all that is known of them."""
        rows = self.rows(image)
        columns = (self.corners, self.labels, self.crowd, self.areas)
        content = b"".join(column[rows].tobytes() for column in columns)
        return f"{rows.stop - rows.start} boxes {zlib.crc32(content):08x}"


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
    """Parse what matches into one data set per annotation file with class numbers of its own."""
    states_ignored: bool = True
    """Whether the format itself says which mask values have no class."""
    automatic: bool = True
    """Whether `--data.format auto` considers it."""
