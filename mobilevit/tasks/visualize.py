"""Predictions drawn on images."""

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_SIDE, MAX_SIDE = 320, 1600
"""Long side of a drawn image, in pixels; smaller ones are enlarged, larger ones reduced."""
OPACITY = 0.55
"""Opacity of mask colours."""


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Comes with matplotlib, and has many alphabets.
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _resized(image: Image.Image, smallest: int, largest: int) -> Image.Image:
    """A copy whose long side is within these limits."""
    long_side = max(image.size)
    factor = min(max(long_side, smallest), largest) / long_side
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def draw_classes(image: Image.Image, classes: Sequence[tuple[str, float]]) -> Image.Image:
    """Write classes under an upright RGB image, one per line, with bars as long as probabilities.

    `classes`: (name, probability in [0, 1]), most probable first.
    """
    image = _resized(image, MIN_SIDE, MAX_SIDE)
    width, height = image.size
    size = max(12, max(width, height) // 24)
    line, margin = round(1.5 * size), size // 2
    board = max(width, 12 * size)
    canvas = Image.new("RGB", (board, height + line * len(classes) + margin), (24, 24, 27))
    canvas.paste(image, ((board - width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (name, probability) in enumerate(classes):
        top = height + row * line + margin // 2
        bar = (0, top, round(board * probability), top + line - margin // 2)
        draw.rectangle(bar, fill=(37, 99, 235) if row == 0 else (63, 63, 70))
        text = f"{probability:.1%}  {name}"
        draw.text((margin, top + line / 2 - margin / 4), text, (255, 255, 255), _font(size), "lm")
    return canvas


class DrawnBox(NamedTuple):
    """A box to draw."""

    corners: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the image."""
    text: str
    colour: tuple[int, int, int]
    dashed: bool = False


def class_colour(label: int) -> tuple[int, int, int]:
    """A strong colour for a class; neighbours differ by the golden angle."""
    red, green, blue = colorsys.hsv_to_rgb(0.58 + 0.381966 * label % 1, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: Image.Image, boxes: Sequence[DrawnBox], *, longest: int = MAX_SIDE
) -> Image.Image:
    """Draw boxes on a copy of an upright RGB image, the first of them on top.

    `longest`: long side of the result at most, in pixels; small images are enlarged.
    """
    canvas = _resized(image, min(MIN_SIDE, longest), longest)
    width, height = canvas.size
    factor = max(canvas.size) / max(image.size)
    draw = ImageDraw.Draw(canvas)
    line = max(2, max(width, height) // 300)
    size = max(11, max(width, height) // 45)
    font = _font(size)
    for box in reversed(boxes):
        x1, y1, x2, y2 = (round(value * factor) for value in box.corners)
        if box.dashed:
            outline = Image.new("1", canvas.size)
            ImageDraw.Draw(outline).rectangle((x1, y1, x2, y2), outline=1, width=line)
            dashes = np.indices((height, width)).sum(axis=0) // (5 * line) % 2 == 0
            canvas.paste(box.colour, mask=Image.fromarray(np.asarray(outline) & dashes))
        else:
            draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=box.colour, width=line)
        if not box.text:
            continue
        written = round(draw.textlength(box.text, font))
        x = min(max(0, x1), max(0, width - written - 6))
        y = y1 - size - 4 if y1 >= size + 4 else y1 + line
        draw.rectangle((x, y, x + written + 6, y + size + 4), fill=box.colour)
        dark = sum(box.colour) > 450
        draw.text((x + 3, y + 1), box.text, (0, 0, 0) if dark else (255, 255, 255), font)
    return canvas


def colour_mask(mask: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The colours of a mask `[H, W]` as uint8 `[H, W, 3]`; black where the palette has none."""
    colours = np.zeros((max(len(palette), int(mask.max()) + 1), 3), np.uint8)
    colours[: len(palette)] = palette
    return colours[mask]


def draw_mask(
    image: Image.Image,
    mask: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    *,
    longest: int | None = None,
    opacity: float = OPACITY,
) -> Image.Image:
    """Lay the colours of classes over a copy of an upright RGB image, with their names below it.

    Args:
        image: upright RGB image.
        mask: classes `[H, W]`, at the image's size.
        classes: names by the mask's values; higher values are not coloured.
        palette: colours by the mask's values.
        longest: long side of the image at most, in pixels; None: unchanged.
        opacity: of the colours.
    """
    if longest is not None and longest < max(image.size):  # ahead of all else: photos are large
        image = _resized(image, 1, longest)
        mask = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
    width, height = image.size
    known = mask < len(classes)
    coloured = Image.fromarray(colour_mask(mask, palette[: len(classes)]))
    shown = Image.composite(Image.blend(image, coloured, opacity), image, Image.fromarray(known))
    values, counts = np.unique(mask[known], return_counts=True)
    size = max(11, max(width, height) // 40)
    font = _font(size)
    line, x, y = size + 8, 4, 4
    places = []
    for value in values[np.argsort(-counts)].tolist():
        text = f"{classes[value]}  {counts[values == value].sum() / mask.size:.0%}"
        wide = size + 10 + round(font.getlength(text))
        if x > 4 and x + wide > width:
            x, y = 4, y + line
        places.append((x, y, value, text))
        x += wide + 8
    canvas = Image.new("RGB", (width, height + y + line), (24, 24, 27))
    canvas.paste(shown, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for x, y, value, text in places:
        top = height + y
        draw.rectangle((x, top, x + size, top + size), fill=tuple(palette[value]), outline="white")
        draw.text((x + size + 6, top - 1), text, (255, 255, 255), font)
    return canvas
