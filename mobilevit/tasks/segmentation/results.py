"""Predictions of segmentation networks."""

import io
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mobilevit.data.formats.masks.values import voc_palette
from mobilevit.tasks.base import Colour
from mobilevit.tasks.results import Prediction, Predictions
from mobilevit.tasks.visualize import OPACITY, colour_mask, draw_mask

BACKGROUND = re.compile(r".*(background|void|unlabel+ed|unknown).*|other|none", re.IGNORECASE)
"""Names of a first class that is drawn in black."""


@cache
def palette_of(classes: tuple[str, ...]) -> list[Colour]:
    """Colours for the values of a mask, at least 256: VOC's, without black for a real class 0."""
    first = 0 if not classes or BACKGROUND.fullmatch(classes[0]) else 1
    return voc_palette(max(256, len(classes)) + first)[first:]


def encode_mask(mask: np.ndarray, classes: tuple[str, ...] = ()) -> bytes:
    """A mask `[H, W]` as a PNG of class indices: with a palette, or of 16 bits unless uint8."""
    if mask.dtype == np.uint8:
        image = Image.fromarray(mask).convert("P")
        image.putpalette([value for colour in palette_of(classes)[:256] for value in colour])
    else:
        image = Image.fromarray(mask.astype(np.uint16))
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=1)
    return png.getvalue()


class ClassShare(NamedTuple):
    """A class and its share of the image, in [0, 1]."""

    name: str
    share: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationPrediction(Prediction):
    """The class of each pixel of one image."""

    png: bytes | None = None
    """The mask as `encode_mask` makes it: a hundredth of its size, since thousands must fit into
    memory; None where the image could not be read."""

    @property
    def mask(self) -> np.ndarray:
        """Indices of `classes`, `[H, W]`, uint8 or int16, at the image's own size.

        Decoded at each access; ImageError if the image could not be read.
        """
        mask = np.array(self.index_image())
        return mask if mask.dtype == np.uint8 else mask.astype(np.int16)

    @property
    def shares(self) -> list[ClassShare]:
        """The classes in the image, largest first; ImageError if it could not be read."""
        mask = self.mask
        values, counts = np.unique(mask, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [
            ClassShare(self.classes[values[row]], float(counts[row] / mask.size)) for row in order
        ]

    def index_image(self) -> Image.Image:
        """The mask as a palette image (16 bits if there are more than 256 classes)."""
        self.check()
        assert self.png is not None
        return Image.open(io.BytesIO(self.png))

    def to_json(self) -> dict[str, Any]:
        return {
            "classes": [{"class": name, "share": round(share, 6)} for name, share in self.shares]
        }

    def csv_rows(self) -> list[dict[str, str]]:
        return [{"class": name, "share": f"{share:.6f}"} for name, share in self.shares]

    def table_row(self) -> tuple[str, ...]:
        return (", ".join(f"{name} {share:.0%}" for name, share in self.shares),)

    def parquet_row(self) -> dict[str, Any]:
        image = self.index_image()
        names, shares = zip(*self.shares, strict=True)
        return {
            "width": image.width,
            "height": image.height,
            "classes": list(names),
            "shares": list(shares),
            "mask": self.png,
        }

    def scores(self) -> list[ClassShare]:
        return self.shares

    def draw(self, image: Image.Image) -> Image.Image:
        return draw_mask(image, self.mask, self.classes, palette_of(self.classes))

    def draw_thumbnail(self, image: Image.Image) -> Image.Image:
        small = Image.fromarray(self.mask).resize(image.size, Image.Resampling.NEAREST)
        colours = colour_mask(np.asarray(small), palette_of(self.classes))
        return Image.blend(image, Image.fromarray(colours), OPACITY)

    def images(self) -> dict[str, Image.Image]:
        """The mask as class numbers, and in colours."""
        colours = colour_mask(self.mask, palette_of(self.classes))
        return {".png": self.index_image(), "-mask.png": Image.fromarray(colours)}


@dataclass(frozen=True, kw_only=True)
class SegmentationPredictions(Predictions[SegmentationPrediction]):
    """The class of each pixel of several images."""

    task = "segmentation"
    table_columns = ("image", "classes")
    csv_columns = ("class", "share")
