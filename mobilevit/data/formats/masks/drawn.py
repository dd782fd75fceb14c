"""Masks that are drawn from the outlines of annotated objects."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np

from mobilevit.data.formats.base import IGNORE
from mobilevit.data.formats.files import Paths
from mobilevit.data.formats.masks.values import IGNORED, MAX_VALUE, MaskSource, class_values
from mobilevit.data.images import ImageError, image_facts

BACKGROUND = "background"

Outline: TypeAlias = Sequence[np.ndarray] | Mapping[str, Any]
"""Polygons, each a float64 array of x, y, x, y, ...; or COCO's run-length encoding."""


class Shape(NamedTuple):
    """An object to draw."""

    label: int
    """Its class, or `IGNORED` where its pixels are ignored."""
    outline: Outline


def rectangle(corners: Sequence[float]) -> list[np.ndarray]:
    """The outline of a box with corners x1, y1, x2, y2."""
    x1, y1, x2, y2 = corners
    return [np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float64)]


def polygon_corners(points: np.ndarray) -> tuple[float, float, float, float]:
    """The box x1, y1, x2, y2 around points `[N, 2]`."""
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    return x1, y1, x2, y2


def unit_circle() -> np.ndarray:
    """Points on a circle of radius 1 around 0: float64 [32, 2]."""
    angles = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def rotated(points: np.ndarray, degrees: float, middle: np.ndarray) -> np.ndarray:
    """Points `[N, 2]`, turned clockwise on the screen."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (points - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle


def encode_mask(
    inside: np.ndarray, left: int, top: int, size: tuple[int, int]
) -> tuple[tuple[float, float, float, float], Outline]:
    """Corners and code of bool `[h, w]`, at `left` and `top` in an image of (height, width)."""
    height, width = size
    full = np.zeros((height, width), bool)
    y, x = max(top, 0), max(left, 0)
    part = full[y : top + inside.shape[0], x : left + inside.shape[1]]
    part[:] = inside[y - top :, x - left :][: part.shape[0], : part.shape[1]]
    columns = np.concatenate([[False], full.T.reshape(-1)])
    ends = np.flatnonzero(np.diff(columns))
    corners = float(left), float(top), float(left + inside.shape[1]), float(top + inside.shape[0])
    return corners, {"counts": np.diff(ends, prepend=0, append=full.size).tolist()}


@dataclass(frozen=True, eq=False, kw_only=True)
class DrawnMasks(MaskSource):
    """Objects drawn into one mask: smaller ones last, so that larger ones do not hide them.

    Uncovered pixels are background. A crowd is ignored where no object lies on it.
    """

    classes: tuple[str, ...]
    """Background is the first; stored values are indices of these."""
    places: np.ndarray
    """int64 [labels]: label of a shape -> index of its class."""
    shapes: Sequence[Sequence[Shape]]
    images: Paths
    annotation_files: Sequence[str]
    sizes: np.ndarray
    """int32 [images, 2]: (height, width) as annotated; 0 where it is not."""

    @classmethod
    def of(cls, names: Sequence[str], order: np.ndarray, **fields: Any) -> Self:
        """Masks of classes `names`; `order` is the index there of each label, if they differ."""
        classes = (BACKGROUND, *(name for name in names if name != BACKGROUND))
        ignore = IGNORE if len(classes) <= IGNORE else MAX_VALUE
        values = class_values(dict(enumerate(classes)), {ignore, MAX_VALUE}).values
        places = np.array([classes.index(name) for name in names], np.int64)
        places = places[order] if len(order) else places
        return cls(values=values, ignore=ignore, classes=classes, places=places, **fields)

    def file(self, index: int) -> None:
        """None: masks are drawn."""

    def name(self, index: int) -> str:
        return f"{self.annotation_files[index]}: {self.images[index].name}"

    def size(self, index: int) -> tuple[int, int, bool]:
        height, width = self.sizes[index].tolist()
        if height > 0 and width > 0:
            return height, width, False
        facts = image_facts(self.images[index])
        return facts.height, facts.width, True

    def digest(self, index: int, annotation: object = None) -> str:
        outlines = [
            (label, outline if isinstance(outline, Mapping) else [one.tobytes() for one in outline])
            for label, outline in self.shapes[index]
        ]
        return super().digest(index, (outlines, self.places.tolist()))

    def read(self, index: int) -> np.ndarray:
        height, width, _ = self.size(index)
        drawn = []
        for label, outline in self.shapes[index]:
            try:
                runs = run_lengths(outline, height, width)
                complete = min(runs, default=0) >= 0 and sum(runs) == height * width
            except (TypeError, LookupError) as error:
                raise ImageError(self.name(index), f"an object's mask: {error!r}") from error
            if not complete:
                raise ImageError(self.name(index), "an object's mask is of another size")
            value = MAX_VALUE if label == IGNORED else int(self.places[label])
            drawn.append((value, runs, sum(runs[1::2])))
        columns = np.zeros(height * width, np.uint16)  # runs go down one column after another
        # Crowds first, then by size. Sorting is stable: of equal ones the last is on top.
        for value, runs, _ in sorted(drawn, key=lambda s: (s[0] != MAX_VALUE, -s[2])):
            columns[np.repeat(np.arange(len(runs)) % 2 == 1, runs)] = value
        return columns.reshape(width, height).T.copy()


def bounds(outline: Outline) -> tuple[float, float, float, float]:
    """The corners x1, y1, x2, y2 of an outline; NaN where it has none."""
    if isinstance(outline, Mapping):
        height, width = outline["size"]
        runs = run_lengths(outline, height, width)
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height)
        corners = np.argwhere(inside)
        points = np.concatenate([corners, corners + 1])
    else:
        points = np.concatenate([*outline, np.zeros(0)]).reshape(-1, 2)
    return polygon_corners(points) if len(points) else (float("nan"),) * 4


def run_lengths(outline: Outline, height: int, width: int) -> list[int]:
    """Lengths of runs outside and inside an object, alternating, down one column after another."""
    encoded = outline
    if not isinstance(encoded, Mapping):
        from pycocotools import mask as coco

        encoded = coco.merge(coco.frPyObjects(list(encoded), height, width))
    packed = encoded["counts"]
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
