"""COCO's JSON: boxes, and masks drawn from outlines."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilevit.data.class_names import VOC_CLASSES
from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import (
    EVERYTHING,
    Content,
    Format,
    ParsedDataset,
    ReadOptions,
)
from mobilevit.data.formats.builder import MALFORMED, DatasetBuilder
from mobilevit.data.formats.files import (
    FileTree,
    find_files,
    find_split_of,
    join_names,
    list_files,
    normalize_name,
)
from mobilevit.data.formats.masks.drawn import bounds
from mobilevit.data.formats.text import json_has, read_json

JSON_DEPTH = 3
"""How many levels below the data set's folder JSON files are searched for."""
COCO_IDS_OF_VOC = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
"""COCO's category id of each VOC class but background."""
VOC_PLACES = {number: place for place, number in enumerate(COCO_IDS_OF_VOC, start=1)}
"""COCO's category id -> index of its class in VOC."""

_REQUIRED = ("images", "annotations", "categories")
# Beginnings of the names of other JSON files, which may lie next to those of instances.
_OTHER_PREFIXES = ("captions", "person", "panoptic", "stuff", "image")
_NAN = float("nan")


def read_objects(
    file: Path,
    root: Path | None = None,
    *,
    content: Content = "boxes",
    split: str | None = None,
    format: Format | None = None,
    voc_classes: bool = False,
) -> ParsedDataset:
    """Read the objects of a COCO JSON file.

    Classes are its categories in order of id. Images without annotations and boxes that are not
    four numbers are kept; the latter are left out and counted later.

    Args:
        root: the data set's folder; by default that of the JSON, or the one above `annotations`.
        split: the split that the JSON holds.
        voc_classes: map categories to the classes of Pascal VOC; others are background.
    """
    source = CocoFile(file, root, split, format or FORMAT, content)
    builder = source.builder
    labels: dict[int, int | None] = {n: label for label, n in enumerate(source.categories)}
    classes = tuple(source.categories.values())
    if voc_classes:
        labels, classes = {number: VOC_PLACES.get(number) for number in labels}, VOC_CLASSES
    with_objects = set()
    for running, image, where, entry in source.annotations():
        if (category := source.category_of(entry, where, image)) is None:
            continue
        if (label := labels[category]) is None:  # background
            continue
        with_objects.add(image)
        parsed = None
        with builder.record_errors(where, "an object cannot be drawn", also=MALFORMED, image=image):
            outline = to_outline(entry.get("segmentation"))
            corners = to_corners(entry["bbox"]) if entry.get("bbox") else bounds(outline)
            if content == "masks" and not outline and not all(map(math.isfinite, corners)):
                raise ValueError("neither segmentation nor bbox")
            parsed = corners, outline
        if parsed is not None:
            corners, outline = parsed
            builder.add_box(
                image,
                corners,
                label,
                outline=outline,
                crowd=to_integer(entry.get("iscrowd")) not in (None, 0),
                area=_number(entry.get("area")),
                box_id=to_integer(entry.get("id"), default=running),
            )
    images = list(range(len(builder.files)))
    if content == "masks" and split == "train" and (empty := len(images) - len(with_objects)):
        images = sorted(with_objects)
        builder.notes.append(f"{empty} images without objects are not trained on")
    if split is not None:
        builder.splits[split] = images
    return builder.build(
        classes, category_ids=tuple(source.categories) if content == "boxes" else None
    )


class CocoFile:
    """A COCO JSON whose images and categories are read; what is wrong becomes an issue.

    Images are searched for by `file_name` next to the JSON and in `root`, then anywhere in `root`.
    """

    def __init__(
        self, file: Path, root: Path | None, split: str | None, format: Format, content: Content
    ) -> None:
        if root is None:
            root = file.parent
            if normalize_name(root.name) in ("annotations", "annotation"):
                root = root.parent
        self.file = file
        self.builder = DatasetBuilder(root, format, content)
        if split is not None:
            self.builder.splits[split], self.builder.origins[split] = [], file.name
        self.categories: dict[int, str] = {}
        """Id -> name, in order of id."""
        self.images: dict[int | str, int] = {}
        """Id -> index."""
        data = self._load(keep_outlines=content == "masks")
        self._annotations: list[Any] = data["annotations"]
        self._read_categories(data["categories"])
        self._read_images(data["images"])

    def annotations(self) -> Iterator[tuple[int, int, str, dict[str, Any]]]:
        """Running number, image, name for messages and content of each annotation of an image."""
        for running, entry in enumerate(self._annotations, start=1):
            if not isinstance(entry, dict):
                self._fatal(f"annotation number {running} is {entry!r:.100}")
                continue
            where = f"{self.file}: annotation {entry.get('id', f'number {running}')}"
            owner = _image_key(entry.get("image_id"))
            image = None if owner is None else self.images.get(owner)
            if image is None:
                message = f"no image has its image_id {entry.get('image_id')!r}"
                self.builder.add_issue(where, message)
            else:
                yield running, image, where, entry

    def category_of(self, entry: Any, where: str, image: int) -> int | None:
        """The category of an annotation or segment; unknown ones become issues."""
        number = to_integer(_get(entry, "category_id"))
        if number in self.categories:
            return number
        message = f"no category has its category_id {_get(entry, 'category_id')!r}"
        self.builder.add_issue(where, message, image=image)
        return None

    def _fatal(self, message: str) -> None:
        self.builder.add_issue(self.file, message, skippable=False)

    def _load(self, *, keep_outlines: bool) -> dict[str, list[Any]]:
        """The lists of the file; empty ones where it has them not."""
        # Outlines are most of the file; next to boxes they need not stay in memory.
        hook = None if keep_outlines else _without_outline
        with self.builder.record_errors(self.file):
            data = read_json(self.file, "COCO", hook)
            if not isinstance(data, dict):
                raise ValueError(f"not JSON of COCO: a {type(data).__name__} instead of an object")
            if missing := [key for key in _REQUIRED if not isinstance(data.get(key), list)]:
                raise ValueError(f"not COCO's format: lacks the {join_names('list', missing)}")
            if keep_outlines and not any(map(_has_outline, data["annotations"])):
                raise ValueError("its objects have only boxes, without outlines for masks")
            return data
        return {key: [] for key in _REQUIRED}

    def _read_categories(self, entries: list[Any]) -> None:
        names: dict[int, str] = {}
        for entry in entries:
            number, name = to_integer(_get(entry, "id")), _get(entry, "name")
            if number is None or name is None or not str(name).strip():
                self._fatal(f"category without id or name: {entry!r:.100}")
            elif number in names:
                self._fatal(f"two categories have the id {number}")
            else:
                names[number] = str(name).strip()
        for number in self._unused_categories(entries, names):
            message = f'category {number} "{names.pop(number)}" is not used, and left out'
            self.builder.notes.append(message)
        self.categories = dict(sorted(names.items()))
        self.builder.check_names(self.categories, self.file)

    def _unused_categories(self, entries: list[Any], names: Mapping[int, str]) -> set[int]:
        """Categories that only head others, or repeat a name, as exports of some tools have them.

        These are the category 0, if it is the supercategory of others, and all but the last of
        several with one name, unless they are used.
        """
        parts = [p for one in self._annotations for p in _get(one, "segments_info") or [one]]
        used = {to_integer(_get(part, "category_id")) for part in parts}
        heads = {str(_get(entry, "supercategory")).strip() for entry in entries}
        last = {name: number for number, name in sorted(names.items())}
        last |= {name: number for number, name in sorted(names.items()) if number in used}
        return {
            number
            for number, name in names.items()
            if number not in used and (last[name] != number or (number == 0 and name in heads))
        }

    def _read_images(self, entries: list[Any]) -> None:
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
        root = self.builder.root
        names = [entry["file_name"] for entry in valid]
        bases, split = [self.file.parent, root], find_split_of(self.file, root)
        paths = find_files(names, list_files(root)[0], bases, root=root, split=split)
        for entry, path in zip(valid, paths, strict=True):
            image = self.builder.add_image(
                root / entry["file_name"] if path is None else path,
                annotation_file=self.file,
                size=(to_integer(entry.get("height")) or 0, to_integer(entry.get("width")) or 0),
            )
            if path is None:
                message = f"{entry['file_name']} (image id {entry['id']})"
                self.builder.add_missing(self.file, message, image=image)


def looks_like_coco(file: Path, *, panoptic: bool = False) -> bool:
    """Whether a file contains COCO's keys, and `segments_info` or not; it is not parsed."""
    return json_has(file, b"{", *_REQUIRED) and json_has(file, b"{", "segments_info") == panoptic


def to_corners(bbox: Any) -> tuple[float, float, float, float]:
    """x, y, width, height -> x1, y1, x2, y2; NaN where they are not four numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return _NAN, _NAN, _NAN, _NAN
    x, y, width, height = map(_number, bbox)
    return x, y, x + width, y + height


def to_outline(segmentation: Any) -> list[np.ndarray] | dict[str, Any]:
    """Polygons of at least three points, or COCO's run-length encoding; empty for other values."""
    if isinstance(segmentation, list):
        return [np.array(xy, np.float64) for xy in segmentation if len(xy) >= 6]
    return segmentation if isinstance(segmentation, dict) else []


def _has_outline(entry: Any) -> bool:
    return _get(entry, "segmentation") is not None or _get(entry, "segments_info") is not None


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    if entry.get("bbox"):
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
    number = to_integer(value)
    return value if number is None and isinstance(value, str) else number


def to_integer(value: Any, default: int | None = None) -> int | None:
    """An integer of at most 64 bits, perhaps written as text; `default` for anything else."""
    if not isinstance(value, int):
        number = _number(value)
        value = int(number) if math.isfinite(number) and number == int(number) else 2**63
    return int(value) if -(2**63) <= value < 2**63 else default


# Recognition


def find_jsons(tree: FileTree, *, panoptic: bool = False) -> dict[str, Path]:
    """Split -> its JSON of objects, or of panoptic segments; `EVERYTHING` -> the only one.

    Raises:
        DataError: a split has several.
    """
    jsons = tree.with_extension(".json", depth=JSON_DEPTH)
    by_split: dict[str, list[Path]] = {}
    for path in jsons:
        if looks_like_coco(path, panoptic=panoptic):
            by_split.setdefault(find_split_of(path, tree.folder) or EVERYTHING, []).append(path)
    if len(by_split) > 1:  # next to files of splits, others are something else
        by_split.pop(EVERYTHING, None)
    found = {}
    for split, paths in by_split.items():
        instances = [path for path in paths if not path.stem.startswith(_OTHER_PREFIXES)] or paths
        if len(instances) > 1:
            names = ", ".join(str(path.relative_to(tree.root)) for path in instances[:5])
            raise DataError(f"{tree.root}: has several JSON files, {names}; give the one to read")
        found[split] = instances[0]
    return found


def _matches(tree: FileTree, content: Content) -> bool:
    if tree.root.is_file():
        # A list is one of Label Studio's tasks; anything else may be a damaged file of COCO.
        return tree.root.suffix.lower() == ".json" and not json_has(tree.root, b"[", "result")
    return any(map(looks_like_coco, tree.with_extension(".json", depth=JSON_DEPTH)))


def _read(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
    if tree.root.is_file():
        return [read_objects(tree.root, content=options.content)]
    return [
        read_objects(file, tree.root, content=options.content, split=split or None)
        for split, file in find_jsons(tree).items()
    ]


FORMAT = Format(
    name="coco",
    display_name="COCO",
    contents=frozenset(["boxes", "masks"]),
    looks_for="COCO (a .json with images, annotations and categories)",
    matches=_matches,
    read=_read,
)
