"""Masks of COCO: drawn from the outlines of objects, or read from panoptic PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mobilevit.data.class_names import VOC_CLASSES
from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import IGNORE, DatasetBuilder
from mobilevit.data.formats.masks import MAX_VALUE, MaskSource, class_values
from mobilevit.data.images import ImageError, pillow

COCO_IDS_OF_VOC = (
    0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72,
)  # fmt: skip
"""COCO's category id of each VOC class; background has none."""


class MaskClasses(NamedTuple):
    """The classes of masks, and how categories are stored in masks."""

    classes: tuple[str, ...]
    values: dict[int, int]
    """Stored value -> index of its class, or `IGNORED`."""
    stored: dict[int, int | None]
    """Category -> stored value; None where it has no class."""
    ignore: int


def mask_classes(names: Mapping[int, str], *, background: bool, voc: bool) -> MaskClasses:
    """Map categories to classes: their own, perhaps with `background`, or those of VOC.

    With VOC's classes, categories that VOC lacks are background.
    """
    stored: dict[int, int | None]
    if voc:
        places = {number: place for place, number in enumerate(COCO_IDS_OF_VOC) if place}
        stored = {number: places.get(number) for number in names}
        classes = dict(enumerate(VOC_CLASSES))
    else:
        stored = {number: value for value, number in enumerate(sorted(names), int(background))}
        classes = {value: names[number] for number, value in stored.items() if value is not None}
        classes |= {0: VOC_CLASSES[0]} if background else {}
    ignore = IGNORE if len(classes) <= IGNORE else MAX_VALUE
    found = class_values(classes, {ignore, MAX_VALUE})
    return MaskClasses(found.classes, found.values, stored, ignore)


class DrawnObject(NamedTuple):
    """An object to draw."""

    value: int
    """Stored value of its class, or `MAX_VALUE` where its pixels are ignored."""
    outline: Any
    """Polygons, each a float64 array of x, y, x, y, ...; or COCO's run-length encoding."""

    @classmethod
    def parse(cls, annotation: Mapping[str, Any], value: int | None) -> DrawnObject | None:
        """The object of an annotation; None where its category has no class."""
        if value is None:
            return None
        outline = annotation.get("segmentation")
        if isinstance(outline, list):
            outline = [np.array(xy, np.float64) for xy in outline if len(xy) >= 6]
        if not outline:  # the object is somewhere in its box, so all of the box is ignored
            x, y, width, height = annotation["bbox"]
            right, low = x + width, y + height
            box = np.array([x, y, right, y, right, low, x, low], np.float64)
            outline, value = [box], MAX_VALUE
        return cls(MAX_VALUE if annotation.get("iscrowd") else value, outline)


@dataclass(frozen=True, eq=False, kw_only=True)
class InstanceMasks(MaskSource):
    """Objects drawn into one mask: smaller ones last, so that larger ones do not hide them.

    Uncovered pixels are background. A crowd is ignored where no object lies on it.
    """

    json: Path
    names: Sequence[str]
    objects: Sequence[tuple[DrawnObject, ...]]
    sizes: np.ndarray
    """int64 [images, 2]: (height, width) as the JSON states them."""

    def file(self, index: int) -> None:
        """None: masks are drawn."""

    def name(self, index: int) -> str:
        return f"{self.json}: {self.names[index]}"

    def size(self, index: int) -> tuple[int, int, bool]:
        height, width = self.sizes[index].tolist()
        return height, width, False

    def read(self, index: int) -> np.ndarray:
        height, width = self.sizes[index].tolist()
        shapes = []
        for value, outline in self.objects[index]:
            try:
                runs = run_lengths(outline, height, width)
                complete = min(runs, default=0) >= 0 and sum(runs) == height * width
            except (TypeError, LookupError) as error:
                raise ImageError(self.name(index), f"an object's mask: {error!r}") from error
            if not complete:
                raise ImageError(self.name(index), "an object's mask is of another size")
            shapes.append((value, runs, sum(runs[1::2])))
        columns = np.zeros(height * width, np.uint16)  # runs go down one column after another
        # Crowds first, then by size. Sorting is stable: of equal ones the last is on top.
        for value, runs, _ in sorted(shapes, key=lambda s: (s[0] != MAX_VALUE, -s[2])):
            columns[np.repeat(np.arange(len(runs)) % 2 == 1, runs)] = value
        return columns.reshape(width, height).T.copy()


@dataclass(frozen=True, eq=False, kw_only=True)
class PanopticMasks(MaskSource):
    """Panoptic PNGs, whose pixels are ids of segments; unlabelled pixels and crowds are ignored."""

    json: Path
    files: Sequence[Path]
    segments: Sequence[Mapping[int, int]]
    """For each image: id of a segment -> stored value."""

    def file(self, index: int) -> Path:
        return self.files[index]

    def read(self, index: int) -> np.ndarray:
        file, segments = self.files[index], self.segments[index]
        with pillow(str(file)), Image.open(file, formats=("PNG",)) as image:
            if image.mode != "RGB":
                raise ImageError(str(file), f"a panoptic PNG is RGB, but this is {image.mode}")
            rgb = np.array(image, np.uint32)
        ids = rgb @ np.array([1, 1 << 8, 1 << 16], np.uint32)  # red is the lowest byte
        known, places = np.unique(ids, return_inverse=True)
        if unknown := [number for number in known.tolist() if number not in segments]:
            raise ImageError(str(file), f"{self.json} does not list its segments {unknown[:3]}")
        return np.array([segments[i] for i in known.tolist()], np.uint16)[places].reshape(ids.shape)


def instance_masks(
    builder: DatasetBuilder,
    json: Path,
    annotations: Mapping[int, list[dict[str, Any]]],
    classes: MaskClasses,
) -> InstanceMasks:
    """Masks of the builder's images; objects that cannot be drawn become issues."""
    if not any("segmentation" in one for several in annotations.values() for one in several):
        raise DataError(f"{json}: its objects have only boxes, without outlines for masks")
    names = tuple(Path(file).name for file in builder.files)
    sizes = builder.sizes().astype(np.int64)
    objects: list[tuple[DrawnObject, ...]] = []
    for image, name in enumerate(names):
        drawn: list[DrawnObject | None] = []
        try:
            for one in annotations.get(image, []):
                drawn.append(DrawnObject.parse(one, classes.stored[int(one["category_id"])]))
        except (LookupError, TypeError, ValueError) as error:
            message = f"an object cannot be drawn: {error!r}"
            builder.add_issue(f"{json}: {name}", message, image=image)
        if not sizes[image].all():
            builder.add_issue(f"{json}: {name}", "has no height and width", image=image)
        objects.append(tuple(one for one in drawn if one is not None))
    return InstanceMasks(
        values=classes.values,
        ignore=classes.ignore,
        json=json,
        names=names,
        objects=tuple(objects),
        sizes=sizes,
    )


def panoptic_masks(
    builder: DatasetBuilder,
    json: Path,
    annotations: Mapping[int, list[dict[str, Any]]],
    classes: MaskClasses,
) -> PanopticMasks:
    """Masks of the builder's images, from the folder with the JSON's name."""
    files: list[Path] = []
    segments: list[dict[int, int]] = []
    for image, name in enumerate(builder.files):
        annotation = next(iter(annotations.get(image, [])), {})
        files.append(json.with_suffix("") / str(annotation.get("file_name", Path(name).name)))
        stored = {0: MAX_VALUE}
        for segment in annotation.get("segments_info", ()):
            value = classes.stored[int(segment["category_id"])]
            crowd = segment.get("iscrowd") and value is not None
            stored[segment.get("id")] = MAX_VALUE if crowd else value or 0
        segments.append(stored)
        if not files[-1].is_file():
            builder.add_issue(name, f"its mask {files[-1]} is missing", image=image)
    return PanopticMasks(
        values=classes.values, ignore=classes.ignore, json=json, files=files, segments=segments
    )


def run_lengths(outline: Any, height: int, width: int) -> list[int]:
    """Lengths of runs outside and inside an object, alternating, down one column after another."""
    if isinstance(outline, list):
        from pycocotools import mask as coco

        outline = coco.merge(coco.frPyObjects(outline, height, width))
    packed = outline["counts"]
    if isinstance(packed, list):
        return packed
    # Unpacked here: pycocotools' own reader does not check sizes, nor agree with NumPy 2.
    runs: list[int] = []
    run = shift = 0
    for byte in packed.encode() if isinstance(packed, str) else packed:
        # Five bits of the number, lowest first, and one that says whether more follow.
        bits = byte - 48
        run |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            run -= (bits & 16) << shift - 4  # the sign
            runs.append(run + runs[-2] if len(runs) > 2 else run)
            run = shift = 0
    return runs
