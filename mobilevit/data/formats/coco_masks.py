"""Masks of COCO: drawn from the outlines of objects, or read from panoptic PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mobilevit.data.formats.base import IGNORE
from mobilevit.data.formats.masks import MAX_VALUE, MaskSource
from mobilevit.data.images import ImageError, pillow


def mask_ignore(num_classes: int) -> int:
    """The stored value of pixels without a class."""
    return IGNORE if num_classes <= IGNORE else MAX_VALUE


class DrawnObject(NamedTuple):
    """An object of an image."""

    value: int
    """Stored value of its class, or `MAX_VALUE` where its pixels are ignored."""
    outline: Any
    """Polygons, each a float64 array of x, y, x, y, ...; or COCO's run-length encoding."""

    @classmethod
    def parse(cls, annotation: Mapping[str, Any], value: int | None) -> DrawnObject | None:
        """The object of an annotation; None where its category has no class.

        Raises:
            LookupError: the annotation has neither outline nor box.
            TypeError: one of them is of another type.
            ValueError: the box is not four numbers, or the outline not numbers.
        """
        if value is None:
            return None
        outline = annotation.get("segmentation")
        if isinstance(outline, list):
            outline = [np.array(xy, np.float64) for xy in outline if len(xy) >= 6]
        if not outline:  # something is in the box, but it is not known where: the box is ignored
            x, y, width, height = annotation["bbox"]
            right, low = x + width, y + height
            box = np.array([x, y, right, y, right, low, x, low], np.float64)
            outline, value = [box], MAX_VALUE
        return cls(MAX_VALUE if annotation.get("iscrowd") else value, outline)


@dataclass(frozen=True, eq=False, kw_only=True)
class InstanceMasks(MaskSource):
    """Objects drawn into one mask: smaller ones last, so that larger ones do not hide them.

    What no object covers is background. A crowd is ignored where no object lies on it.
    """

    json: Path
    names: Sequence[str]
    objects: Sequence[tuple[DrawnObject, ...]]
    sizes: np.ndarray
    """int64 [images, 2]: (height, width) as the JSON states them."""

    def file(self, index: int) -> None:
        """None: masks are drawn."""

    def name(self, index: int) -> str:
        """The JSON, and the image in it."""
        return f"{self.json}: {self.names[index]}"

    def size(self, index: int) -> tuple[int, int, bool]:
        """The size that the JSON states."""
        height, width = self.sizes[index].tolist()
        return height, width, False

    def read(self, index: int) -> np.ndarray:
        """Draw the objects: uint16 [H, W]."""
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
        """The PNG."""
        return self.files[index]

    def read(self, index: int) -> np.ndarray:
        """The values of the PNG's segments: uint16 [H, W]."""
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
        bits = (
            byte - 48
        )  # five bits of the number, the lowest first, and one that says: more follow
        run |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            run -= (bits & 16) << shift - 4  # the sign
            runs.append(run + runs[-2] if len(runs) > 2 else run)
            run = shift = 0
    return runs
