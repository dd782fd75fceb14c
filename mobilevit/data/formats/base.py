"""What the readers of box formats share: which files belong together, and a draft with its faults.

A reader goes on where it meets a fault and remembers it. What becomes of it is decided later:
training stops, or leaves the image out; a check lists all.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from mobilevit.data.formats.folders import DataError, walk_images
from mobilevit.tasks.detection.dataset import BoxSamples, Format, some

log = logging.getLogger(__name__)

FEW = 5
"""So many faults are written out in an error or a warning."""

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "trainval",
    "val": "val",
    "valid": "valid",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
IMAGE_FOLDERS = frozenset(["images", "image", "imgs", "img", "jpegimages", "photos"])
"""Folders that say what kind of file they hold, not which part of the data; lower case."""
_KIND_FOLDERS = IMAGE_FOLDERS | frozenset(
    ["labels", "label", "annotations", "annotation", "anns", "ann", "xml", "xmls", "txt", "bboxes"]
)


class FileError(DataError):
    """A file of annotations that cannot be read: where, with the line if it has one, and why."""

    def __init__(self, where: str | Path, what: str) -> None:
        """Both go to `args`, which is what crosses process boundaries."""
        super().__init__(os.fspath(where), what)
        self.where, self.what = os.fspath(where), what

    def __str__(self) -> str:
        """Say where, then what."""
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Fault:
    """Something in a data set that training cannot go on with."""

    where: str
    """File, file and line, or file and annotation."""
    what: str
    image: int | None = None
    """The image that it makes useless, by its place in the reading."""
    split: str | None = None
    """The split that it concerns; None: all, or those that have the image."""
    missing: bool = False
    """Whether it is that the image is not there."""
    skippable: bool = True
    """Whether it is dealt with by leaving something out."""

    def __str__(self) -> str:
        """Say where, then what."""
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Reading:
    """What a reader found: every image that is spoken of, there or not, and all that is wrong."""

    samples: BoxSamples
    faults: tuple[Fault, ...]
    splits: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Name of a split -> its images; empty where the source names none."""
    remarks: tuple[str, ...] = ()
    """What the reader decided, for people to read."""
    unused: tuple[str, ...] = ()
    """Files that could belong to the data set but are no part of it, and why."""


class Draft:
    """Images and boxes while they are read, in any order."""

    def __init__(self, root: Path, kind: Format, *, relative: bool = False) -> None:
        """Start with nothing; `relative` as in `BoxSamples`."""
        self.root, self.kind, self.relative = root, kind, relative
        self.files: list[str] = []
        self.faults: list[Fault] = []
        self._annotated_by: list[str] = []
        self._sizes, self._image_ids = array("q"), array("q")
        self._owners, self._labels, self._ids, self._lines = (array("q") for _ in range(4))
        self._corners, self._areas, self._crowd = array("d"), array("d"), array("b")

    def add_image(
        self,
        file: str | Path,
        *,
        annotated_by: str | Path = "",
        size: tuple[int, int] | None = None,
        image_id: int | None = None,
    ) -> int:
        """Add an image with its recorded (height, width); return its place."""
        place = len(self.files)
        self.files.append(os.fspath(file))
        self._annotated_by.append(os.fspath(annotated_by))
        self._sizes.extend(size if size is not None and max(size) < 2**31 else (0, 0))
        self._image_ids.append(place + 1 if image_id is None else image_id)
        return place

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
        """Add a box to an image: x1, y1, x2, y2, which may be any numbers."""
        self._owners.append(image)
        self._corners.extend(corners)
        self._labels.append(label)
        self._crowd.append(crowd)
        self._areas.append(area)
        self._ids.append(len(self._owners) if box_id is None else box_id)
        self._lines.append(line)

    def fault(
        self,
        where: str | Path,
        what: str,
        *,
        image: int | None = None,
        split: str | None = None,
        missing: bool = False,
        skippable: bool = True,
    ) -> None:
        """Remember what is wrong; see `Fault`."""
        self.faults.append(Fault(os.fspath(where), what, image, split, missing, skippable))

    def corners(self) -> np.ndarray:
        """The boxes so far [N, 4], to be changed in place; none can be added while this is held."""
        return np.frombuffer(self._corners, np.float64).reshape(-1, 4)

    def finish(
        self,
        classes: Sequence[str],
        category_ids: Sequence[int],
        *,
        moved: Sequence[int] | None = None,
        splits: Mapping[str, Sequence[int]] | None = None,
        remarks: Iterable[str] = (),
        unused: Iterable[str] = (),
    ) -> Reading:
        """Sort all boxes by image; `moved` gives each label's place in `classes`."""
        owners = np.array(self._owners, np.int64)
        order = np.argsort(owners, kind="stable")
        counts = np.bincount(owners, minlength=len(self.files))
        labels = np.array(self._labels, np.int64)
        if moved is not None:
            labels = np.array(moved, np.int64)[labels]
        samples = BoxSamples(
            root=self.root,
            format=self.kind,
            classes=tuple(classes),
            category_ids=tuple(category_ids),
            files=tuple(self.files),
            annotated_by=tuple(self._annotated_by),
            image_ids=np.array(self._image_ids, np.int64),
            sizes=np.array(self._sizes, np.int32).reshape(-1, 2),
            first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            corners=self.corners()[order],
            labels=labels[order],
            crowd=np.array(self._crowd, bool)[order],
            areas=np.array(self._areas, np.float64)[order],
            ids=np.array(self._ids, np.int64)[order],
            lines=np.array(self._lines, np.int64)[order],
            relative=self.relative,
        )
        return Reading(samples, tuple(self.faults), splits or {}, tuple(remarks), tuple(unused))


def select(
    reading: Reading,
    images: Sequence[int],
    *,
    split: str | None = None,
    on_bad: Literal["error", "skip"] = "error",
) -> BoxSamples:
    """Take images of a reading to train on or to evaluate by.

    Boxes that cannot be used are counted in a warning that names the first.

    Raises:
        DataError: something is wrong with them, and `on_bad` is `error` or it is of a kind that
            leaving images out does not mend; or none is left.
        ValueError: `on_bad` is another word.
    """
    if on_bad not in ("error", "skip"):
        raise ValueError(f"on_bad must be error or skip, not {on_bad!r}")
    root, chosen = reading.samples.root, set(images)
    faults = [f for f in reading.faults if _concerns(f, chosen, split)]
    if stopping := [f for f in faults if on_bad == "error" or not f.skippable]:
        # Those of the set first: what is wrong with images may come of them.
        stopping.sort(key=lambda fault: fault.skippable)
        missing = sum(fault.missing for fault in stopping)
        if missing == len(stopping):
            head = f"{root}: {missing} of {len(chosen)} images are missing"
        else:
            head = f"{root}: annotations cannot be used as they are"
        if all(fault.skippable for fault in stopping):
            head += "; mend them, or leave such images out by --data.on_bad skip"
        raise DataError(f"{head}:\n{_first_few(stopping)}")
    if faults:
        spoilt = {fault.image for fault in faults if fault.image is not None}
        images = [image for image in images if image not in spoilt]
        log.warning(
            "%s: %d faults passed over, %d images left out:\n%s",
            root, len(faults), len(spoilt), _first_few(faults),
        )  # fmt: skip
    if not images:
        raise DataError(f"{root}: no images" + (f" in {split}" if split else ""))
    samples = some(reading.samples, images)
    if samples.format != "coco":  # which has numbers of its own
        numbers = np.arange(1, len(samples) + 1), np.arange(1, len(samples.ids) + 1)
        samples = replace(samples, image_ids=numbers[0], ids=numbers[1])
    if unusable := samples.left_out():
        log.warning(
            "%s: %d of %d boxes are left out, having no area within their images: %s%s",
            root, len(unusable), len(samples.ids),
            ", ".join(samples.box_name(row) for row in unusable[:FEW]),
            ", ..." if len(unusable) > FEW else "",
        )  # fmt: skip
    return samples


def _concerns(fault: Fault, images: set[int], split: str | None) -> bool:
    if fault.image is not None:
        return fault.image in images
    return fault.split is None or fault.split == split


def _first_few(faults: Sequence[Fault]) -> str:
    lines = [f"  {fault}" for fault in faults[:FEW]]
    if len(faults) > FEW:
        lines.append(f"  ... and {len(faults) - FEW} more; `mobilevit check` lists them all")
    return "\n".join(lines)


def files_below(folder: Path) -> tuple[list[str], list[str]]:
    """Images, by their extensions, and other files: in a folder and all folders in it.

    Raises:
        DataError: a folder cannot be listed.
    """
    others: list[str] = []
    found = list(walk_images(os.fspath(folder), None, others))
    # As pathlib writes them, without a leading ./, so that they equal paths made of parts.
    return [path.removeprefix("./") for path in found], [path.removeprefix("./") for path in others]


def split_of(name: str) -> str | None:
    """The split that the name of a folder or list stands for: `train`, `Train2017`, `valid`."""
    word = re.sub(r"\d+$", "", name.casefold())
    if match := re.fullmatch(r"obj_(\w+)_data", word):  # as darknet's tools call them
        word = match[1]
    return _SPLIT_WORDS.get(word)


def split_of_path(path: str, root: Path) -> str | None:
    """The split that the first of a file's folders below `root` stands for."""
    return _split_of_folder(os.path.dirname(path), root)


@lru_cache
def _split_of_folder(folder: str, root: Path) -> str | None:
    below = os.path.relpath(folder, root).split(os.sep)
    return next((split for split in map(split_of, below) if split is not None), None)


def pair(files: Sequence[str], candidates: Iterable[str]) -> list[list[str]]:
    """For each file the candidates that belong to it: same name, but for the extension.

    Their folders must be the same but for such as are called `images`, `labels`, `Annotations`:
    `images/train/1.jpg` goes with `labels/train/1.txt`, `train/images/1.jpg` with
    `train/labels/1.txt`, and `1.jpg` with what is beside it. If not one file is matched so, the
    folders have other names, and those of a name that occurs once on either side are paired.
    Capitals do not matter, nor how accents are encoded.
    """
    candidates = list(candidates)
    found = _matches(files, candidates, _place_key)
    if any(found):
        return found
    times = Counter(map(_name_key, files))
    found = _matches(files, candidates, _name_key)
    return [
        match if len(match) == 1 and times[_name_key(file)] == 1 else []
        for file, match in zip(files, found, strict=True)
    ]


def same_name(text: str) -> str:
    """A form in which names are compared: capitals and the encoding of accents do not matter."""
    return unicodedata.normalize("NFC", text).casefold()


def _matches(
    files: Sequence[str], candidates: list[str], key: Callable[[str], str]
) -> list[list[str]]:
    index: dict[str, list[str]] = {}
    for candidate in candidates:
        index.setdefault(key(candidate), []).append(candidate)
    return [index.get(key(file), []) for file in files]


def _place_key(path: str) -> str:
    folder, name = os.path.split(os.path.splitext(path)[0])
    folders = same_name(folder).replace(os.sep, "/").split("/")
    return "/".join([part for part in folders if part not in _KIND_FOLDERS] + [same_name(name)])


def _name_key(path: str) -> str:
    return same_name(os.path.splitext(os.path.basename(path))[0])


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with its mark, as editors write it.

    Raises:
        FileError: it cannot be read, or is in another encoding.
    """
    content = read_bytes(path)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise FileError(path, f"not a text in UTF-8 (byte {error.start})") from error


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        FileError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
