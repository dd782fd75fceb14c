"""COCO's JSON: boxes, masks drawn from outlines, and panoptic PNGs."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import (
    EVERYTHING,
    MISSING_IMAGES,
    Content,
    DatasetBuilder,
    Format,
    ParsedDataset,
    ReadOptions,
)
from mobilevit.data.formats.coco_masks import (
    InstanceMasks,
    PanopticMasks,
    instance_masks,
    mask_classes,
    panoptic_masks,
)
from mobilevit.data.formats.files import (
    FileTree,
    find_split,
    join_names,
    list_files,
    normalize_name,
)

JSON_DEPTH = 3
"""How many levels below the data set's folder JSON files are searched for."""

_REQUIRED = ("images", "annotations", "categories")
_IMAGE_FOLDERS = ("images", "imgs", "img", "JPEGImages", "data")
# Beginnings of the names of other JSON files, which may lie next to those of instances.
_OTHER_PREFIXES = ("captions", "person", "panoptic", "stuff", "image")
_NAN = float("nan")


def read_boxes(file: Path, root: Path | None = None, *, split: str | None = None) -> ParsedDataset:
    """Read the boxes of a COCO JSON file.

    Classes are its categories in order of id. Images without annotations and boxes that are not
    four numbers are kept; the latter are left out and counted later. Images are searched for by
    `file_name` in `root`, next to the JSON, and in the usual folders there: `images`, the split in
    the JSON's name, and both. Only if none is found are they searched for by name alone, anywhere
    in `root`.

    Args:
        root: the data set's folder; by default that of the JSON, or the one above `annotations`.
        split: the split that the JSON holds.
    """
    return _Reader(file, root, split).read("boxes")


class _Reader:
    def __init__(
        self, file: Path, root: Path | None, split: str | None, format: str = "coco"
    ) -> None:
        if root is None:
            root = file.parent
            if normalize_name(root.name) in ("annotations", "annotation"):
                root = root.parent
        self.file, self.split, self.format = file, split, format
        self.builder = DatasetBuilder(root, format, _DISPLAY_NAMES[format])
        self.images: dict[int | str, int] = {}
        """Id -> index."""

    def read(self, content: Content) -> ParsedDataset:
        origins = {} if self.split is None else {self.split: self.file.name}
        data = self._load(keep_outlines=content == "masks")
        if data is None:
            self._split(())
            return self.builder.build((), origins=origins)
        names = self._categories(data["categories"])
        self._images(data["images"])
        if content == "boxes":
            self._boxes(data["annotations"], {number: i for i, number in enumerate(names)})
            self._split(range(len(self.builder.files)))
            return self.builder.build(
                tuple(names.values()), category_ids=tuple(names), origins=origins
            )
        annotations = self._annotations_by_image(data["annotations"], names)
        panoptic = self.file.stem.startswith("panoptic")
        classes = mask_classes(names, background=not panoptic, voc=self.format == "coco_voc")
        masks: InstanceMasks | PanopticMasks
        images: Sequence[int] = range(len(self.builder.files))
        if panoptic:
            masks = panoptic_masks(self.builder, self.file, annotations, classes)
        else:
            masks = instance_masks(self.builder, self.file, annotations, classes)
            if self.split == "train":
                images = [image for image in images if masks.objects[image]]
                if empty := len(masks.objects) - len(images):
                    note = f"{empty} images without objects are not trained on"
                    self.builder.notes.append(note)
        self._split(images)
        return self.builder.build(classes.classes, masks=masks, origins=origins)

    def _split(self, images: Sequence[int]) -> None:
        if self.split is not None:
            self.builder.splits[self.split] = list(images)

    def _fatal(self, message: str) -> None:
        self.builder.add_issue(self.file, message, skippable=False)

    def _load(self, *, keep_outlines: bool) -> dict[str, Any] | None:
        try:
            # Outlines are most of the file; without masks they need not stay in memory.
            hook = None if keep_outlines else _without_outline
            data = json.loads(self.file.read_bytes(), object_hook=hook)
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested too deep
            reason = f"not JSON: {error}"
        else:
            if not isinstance(data, dict):
                reason = f"not COCO's format: a {type(data).__name__} instead of an object"
            elif missing := [key for key in _REQUIRED if not isinstance(data.get(key), list)]:
                reason = f"not COCO's format: lacks the {join_names('list', missing)}"
            else:
                return data
        self._fatal(reason)
        return None

    def _categories(self, entries: list[Any]) -> dict[int, str]:
        """Id -> name, in order of id."""
        names: dict[int, str] = {}
        for entry in entries:
            number, name = _integer(_get(entry, "id")), _get(entry, "name")
            if number is None or name is None or not str(name).strip():
                self._fatal(f"category without id or name: {entry!r:.100}")
            elif number in names:
                self._fatal(f"two categories have the id {number}")
            else:
                names[number] = str(name).strip()
        repeated = [name for name, times in Counter(names.values()).items() if times > 1]
        if repeated:
            numbers = [number for number, name in names.items() if name in repeated]
            self._fatal(
                f"{join_names('class', repeated)} stated more than once, by the ids {numbers}"
            )
        return dict(sorted(names.items()))

    def _images(self, entries: list[Any]) -> None:
        valid: list[dict[str, Any]] = []
        for entry in entries:
            number, name = _image_key(_get(entry, "id")), _get(entry, "file_name")
            if number is None or not isinstance(name, str) or not name:
                self._fatal(f"image without id or file_name: {entry!r:.100}")
            elif number in self.images:
                self._fatal(f"two images have the id {number}")
            else:
                self.images[number] = len(valid)
                valid.append(entry)
        numeric = all(isinstance(number, int) for number in self.images)
        root = self.builder.root
        paths = _find_images(self.file, root, [entry["file_name"] for entry in valid])
        for entry, number, path in zip(valid, self.images, paths, strict=True):
            size = _integer(_get(entry, "height")), _integer(_get(entry, "width"))
            image = self.builder.add_image(
                root / _portable(entry["file_name"]) if path is None else path,
                annotation_file=self.file,
                size=(size[0] or 0, size[1] or 0),
                image_id=int(number) if numeric else None,
            )
            if path is None:
                message = f"image missing: {entry['file_name']} (image id {entry['id']})"
                self.builder.add_issue(self.file, message, category=MISSING_IMAGES, image=image)

    def _image_of(self, entry: Any, running: int) -> tuple[int | None, str]:
        """The image that an annotation belongs to, and what to call the annotation."""
        if not isinstance(entry, dict):
            self._fatal(f"annotation number {running} is {entry!r:.100}")
            return None, ""
        where = f"{self.file}: annotation {entry.get('id', f'number {running}')}"
        owner = _image_key(entry.get("image_id"))
        image = None if owner is None else self.images.get(owner)
        if image is None:
            message = f"no image has its image_id {entry.get('image_id')!r}"
            self.builder.add_issue(where, message)
        return image, where

    def _unknown_category(self, where: str, number: Any, image: int) -> None:
        message = f"no category has its category_id {number!r}"
        self.builder.add_issue(where, message, image=image)

    def _boxes(self, entries: list[Any], labels: dict[int, int]) -> None:
        for running, entry in enumerate(entries, start=1):
            image, where = self._image_of(entry, running)
            if image is None:
                continue
            category = _integer(entry.get("category_id"))
            label = None if category is None else labels.get(category)
            if label is None:
                self._unknown_category(where, entry.get("category_id"), image)
                continue
            number = _integer(entry.get("id"))
            self.builder.add_box(
                image,
                to_corners(entry.get("bbox")),
                label,
                crowd=_integer(entry.get("iscrowd")) not in (None, 0),
                area=_number(entry.get("area")),
                box_id=running if number is None else number,
            )

    def _annotations_by_image(
        self, entries: list[Any], names: Mapping[int, str]
    ) -> dict[int, list[dict[str, Any]]]:
        by_image: dict[int, list[dict[str, Any]]] = {}
        for running, entry in enumerate(entries, start=1):
            image, where = self._image_of(entry, running)
            if image is None:
                continue
            # A panoptic annotation has the segments of an image, each with a category.
            segments = entry.get("segments_info")
            parts = segments if isinstance(segments, list) else [entry]
            stated = [_get(part, "category_id") for part in parts]
            numbers = [_integer(number) for number in stated]
            if unknown := [a for a, b in zip(stated, numbers, strict=True) if b not in names]:
                self._unknown_category(where, unknown[0], image)
            else:
                by_image.setdefault(image, []).append(entry)
        return by_image


def looks_like_coco(file: Path) -> bool:
    """Whether a file contains COCO's keys; it is not parsed."""
    try:
        with file.open("rb") as opened:
            if not os.fstat(opened.fileno()).st_size:
                return False
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
                keys = (b'"%s"' % key.encode() for key in _REQUIRED)
                starts = text[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
                return starts and all(text.find(key) >= 0 for key in keys)
    except OSError:
        return False


def to_corners(bbox: Any) -> tuple[float, float, float, float]:
    """x, y, width, height -> x1, y1, x2, y2; NaN where they are not four numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return _NAN, _NAN, _NAN, _NAN
    x, y, width, height = map(_number, bbox)
    return x, y, x + width, y + height


def _find_images(file: Path, root: Path, names: list[str]) -> list[str | None]:
    folders = list(_usual_folders(file, root))
    names = [_portable(name) for name in names]
    found: list[str | None] = []
    for name in names:
        match = None
        for place, folder in enumerate(folders):
            candidate = os.path.join(folder, name)
            if os.path.isfile(candidate):
                match = candidate
                folders.insert(0, folders.pop(place))  # the next image is likely there, too
                break
        found.append(match)
    if None not in found:
        return found
    # First, names that differ in case or in the encoding of accents. Then names in any folder, but
    # only if nothing was found so far: else an image of the test set could replace a missing one.
    by_name: dict[str, list[str]] = {}
    by_path: dict[str, str] = {}
    for path in list_files(root)[0]:
        by_name.setdefault(normalize_name(os.path.basename(path)), []).append(path)
        by_path[normalize_name(path)] = path
    for index, name in enumerate(names):
        if found[index] is None:
            spellings = (normalize_name(os.path.join(folder, name)) for folder in folders)
            found[index] = next((by_path[path] for path in spellings if path in by_path), None)
    if not any(found):
        keys = [normalize_name(os.path.basename(name)) for name in names]
        counts = Counter(keys)
        for index, key in enumerate(keys):
            if len(by_name.get(key, [])) == 1 and counts[key] == 1:
                found[index] = by_name[key][0]
    return found


def _usual_folders(file: Path, root: Path) -> Iterator[str]:
    """Folders that may hold a JSON's images, likeliest first."""
    words = [file.stem]
    for word in _words(file):
        if (split := find_split(word)) is not None:
            words += [word, split]
    if "_" in file.stem:  # of instances_night.json also `night`
        words.append(file.stem.split("_", 1)[1])
    tops = dict.fromkeys((file.parent, root))
    for top in tops:
        for word in words:
            for folder in _IMAGE_FOLDERS:
                yield os.path.join(top, folder, word)
                yield os.path.join(top, word, folder)
            yield os.path.join(top, word)
    for top in tops:
        yield os.path.join(top)
        for folder in _IMAGE_FOLDERS:
            yield os.path.join(top, folder)


def _words(file: Path) -> list[str]:
    return file.stem.replace("-", "_").replace(".", "_").split("_")


def _portable(name: str) -> str:
    r"""A path written on Windows (`images\1.jpg`) with forward slashes."""
    return name.replace("\\", "/")


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _number(value: Any) -> float:
    """A number, perhaps written as text; NaN for anything else."""
    if isinstance(value, float):
        return value
    try:
        return float(value) if isinstance(value, int | float | str) else _NAN
    except (ValueError, OverflowError):
        return _NAN


def _image_key(value: Any) -> int | str | None:
    """An image's id: an integer where it can be read as one, else a text; else None."""
    number = _integer(value)
    return value if number is None and isinstance(value, str) else number


def _integer(value: Any) -> int | None:
    """An integer of at most 64 bits, perhaps written as text; None for anything else."""
    if not isinstance(value, int):
        number = _number(value)
        if not math.isfinite(number) or number != int(number):
            return None
        value = int(number)
    return int(value) if -(2**63) <= value < 2**63 else None


# Recognition


def _box_files(tree: FileTree) -> list[Path]:
    return [p for p in tree.with_extension(".json", depth=JSON_DEPTH) if looks_like_coco(p)]


def _mask_files(tree: FileTree, prefix: str) -> dict[str, Path]:
    """Split -> `PREFIX_SPLIT*.json` in `annotations` or the root; of several years, the last."""
    found: dict[str, Path] = {}
    for split in ("train", "val"):
        for folder in (tree.root / "annotations", tree.root):
            if files := sorted(folder.glob(f"{prefix}_{split}*.json")):
                found.setdefault(split, files[-1])
    return found


def _matches(tree: FileTree, content: Content, prefix: str = "instances") -> bool:
    if content == "masks":
        return bool(_mask_files(tree, prefix))
    if tree.root.is_file():
        return tree.root.suffix.lower() == ".json"
    return bool(_box_files(tree))


def _read(tree: FileTree, options: ReadOptions, format: str) -> list[ParsedDataset]:
    if options.content == "masks":
        prefix = "panoptic" if format == "coco_panoptic" else "instances"
        files = _mask_files(tree, prefix) or _mask_files(tree, "panoptic")
        return [
            _Reader(file, tree.root, split, format).read("masks") for split, file in files.items()
        ]
    if tree.root.is_file():
        return [read_boxes(tree.root)]
    # Where the format is stated, what is wrong with the files is reported when they are read.
    jsons = _box_files(tree) or tree.with_extension(".json", depth=JSON_DEPTH)
    if not jsons:
        return []
    by_split: dict[str, list[Path]] = {}
    for path in jsons:
        folders = path.relative_to(tree.root).parent.parts
        splits = (find_split(word) for word in [*_words(path), *reversed(folders)])
        split = next((split for split in splits if split is not None), EVERYTHING)
        by_split.setdefault(split, []).append(path)
    if len(by_split) > 1:  # next to files of splits, others are something else
        by_split.pop(EVERYTHING, None)
    parsed = []
    for split, paths in by_split.items():
        instances = [path for path in paths if not path.stem.startswith(_OTHER_PREFIXES)] or paths
        if len(instances) > 1:
            names = ", ".join(str(path.relative_to(tree.root)) for path in instances[:5])
            raise DataError(f"{tree.root}: has several JSON files, {names}; give the one to read")
        parsed.append(read_boxes(instances[0], tree.root, split=split or None))
    return parsed


_DISPLAY_NAMES = {
    "coco": "COCO",
    "coco_panoptic": "COCO panoptic",
    "coco_voc": "COCO with the classes of Pascal VOC",
}
FORMAT = Format(
    name="coco",
    display_name=_DISPLAY_NAMES["coco"],
    contents=frozenset(["boxes", "masks"]),
    looks_for="COCO (a .json with images, annotations and categories; for masks "
    "annotations/instances_*.json)",
    matches=_matches,
    read=partial(_read, format="coco"),
)
PANOPTIC = Format(
    name="coco_panoptic",
    display_name=_DISPLAY_NAMES["coco_panoptic"],
    contents=frozenset(["masks"]),
    looks_for="COCO panoptic (annotations/panoptic_*.json)",
    matches=partial(_matches, prefix="panoptic"),
    read=partial(_read, format="coco_panoptic"),
)
WITH_VOC_CLASSES = Format(
    name="coco_voc",
    display_name=_DISPLAY_NAMES["coco_voc"],
    contents=frozenset(["masks"]),
    looks_for="COCO (annotations/instances_*.json or panoptic_*.json)",
    matches=lambda tree, content: bool(
        _mask_files(tree, "instances") or _mask_files(tree, "panoptic")
    ),
    read=partial(_read, format="coco_voc"),
    automatic=False,
)
