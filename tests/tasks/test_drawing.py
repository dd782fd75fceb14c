"""Answers drawn on pictures."""

import numpy as np
import pytest
from PIL import Image

from mobilevit.tasks.drawing import MAX_SIDE, MIN_SIDE, draw_classes

ANSWERS = [("bée", 0.75), ("ant", 0.25)]


@pytest.mark.parametrize("size", [(8, 8), (640, 480), (3000, 2000), (3, 900), (900, 3)])
def test_the_picture_stays_whole_and_bars_are_as_long_as_probable(size):
    drawn = draw_classes(Image.new("RGB", size, (0, 200, 0)), ANSWERS)
    pixels = np.asarray(drawn).astype(int)
    green = (pixels == (0, 200, 0)).all(-1)
    long_side = max(green.any(1).sum(), green.any(0).sum())
    assert long_side == min(max(max(size), MIN_SIDE), MAX_SIDE)
    blue = (pixels == (37, 99, 235)).all(-1)
    assert blue.any(0).sum() == pytest.approx(0.75 * drawn.width, abs=2)
    assert (pixels == (255, 255, 255)).all(-1).any()  # something is written


def test_the_callers_picture_is_not_changed():
    picture = Image.new("RGB", (50, 50))
    draw_classes(picture, ANSWERS)
    assert picture.size == (50, 50) and not np.asarray(picture).any()
