"""Answers drawn on pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MIN_SIDE, MAX_SIDE = 320, 1600
"""Long side of a drawn picture, in pixels; smaller ones are enlarged, larger ones reduced."""


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font of many alphabets that comes with matplotlib."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def draw_classes(image: Image.Image, answers: Sequence[tuple[str, float]]) -> Image.Image:
    """Write classes under a picture, one a line, each with a bar as long as it is probable.

    Args:
        image: an upright RGB picture.
        answers: (name, probability in [0, 1]), likeliest first.

    Returns:
        A new RGB picture.
    """
    long_side = max(image.size)
    factor = min(max(long_side, MIN_SIDE), MAX_SIDE) / long_side
    width, height = (max(1, round(side * factor)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    size = max(12, max(width, height) // 24)
    line, margin = round(1.5 * size), size // 2
    board = max(width, 12 * size)
    canvas = Image.new("RGB", (board, height + line * len(answers) + margin), (24, 24, 27))
    canvas.paste(image, ((board - width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for row, (name, probability) in enumerate(answers):
        top = height + row * line + margin // 2
        bar = (0, top, round(board * probability), top + line - margin // 2)
        draw.rectangle(bar, fill=(37, 99, 235) if row == 0 else (63, 63, 70))
        text = f"{probability:.1%}  {name}"
        draw.text((margin, top + line / 2 - margin / 4), text, (255, 255, 255), _font(size), "lm")
    return canvas
