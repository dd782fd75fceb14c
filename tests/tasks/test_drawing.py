"""Answers drawn on images."""

import numpy as np
import pytest
from PIL import Image

from mobilevit.tasks.visualize import (
    MAX_SIDE,
    MIN_SIDE,
    DrawnBox,
    class_colour,
    draw_boxes,
    draw_classes,
)

ANSWERS = [("bée", 0.75), ("ant", 0.25)]


@pytest.mark.parametrize("size", [(8, 8), (640, 480), (3000, 2000), (3, 900), (900, 3)])
def test_the_image_stays_whole_and_bars_are_as_long_as_probable(size):
    drawn = draw_classes(Image.new("RGB", size, (0, 200, 0)), ANSWERS)
    pixels = np.asarray(drawn).astype(int)
    green = (pixels == (0, 200, 0)).all(-1)
    long_side = max(green.any(1).sum(), green.any(0).sum())
    assert long_side == min(max(max(size), MIN_SIDE), MAX_SIDE)
    blue = (pixels == (37, 99, 235)).all(-1)
    assert blue.any(0).sum() == pytest.approx(0.75 * drawn.width, abs=2)
    assert (pixels == (255, 255, 255)).all(-1).any()  # something is written


def test_the_callers_image_is_not_changed():
    image = Image.new("RGB", (50, 50))
    draw_classes(image, ANSWERS)
    assert image.size == (50, 50) and not np.asarray(image).any()


def test_boxes_are_drawn_where_they_are():
    image = Image.new("RGB", (400, 300), (128, 128, 128))
    boxes = [
        DrawnBox((50.0, 100.0, 150.0, 200.0), "cell 93%", (255, 0, 0)),
        DrawnBox((250.0, 50.0, 350.0, 250.0), "", (0, 255, 0), dashed=True),
        DrawnBox((390.0, 0.0, 400.0, 4.0), "a name that would stand out", (0, 0, 255)),
    ]
    drawn = np.asarray(draw_boxes(image, boxes))
    assert drawn.shape == (300, 400, 3)
    assert drawn[150, 50].tolist() == drawn[200, 100].tolist() == [255, 0, 0]
    assert drawn[150, 100].tolist() == [128, 128, 128]
    assert (drawn[85:100, 50:100] == [255, 0, 0]).all(-1).any()  # the name's ground
    side = (drawn[50:250, 250] == [0, 255, 0]).all(-1)
    assert 0.3 < side.mean() < 0.8
    assert (drawn == [0, 0, 255]).all(-1).any()


def test_small_images_with_boxes_are_enlarged_and_large_ones_reduced():
    box = [DrawnBox((2.0, 2.0, 8.0, 8.0), "x", (255, 0, 0))]
    assert max(draw_boxes(Image.new("RGB", (16, 10)), box).size) == MIN_SIDE
    assert draw_boxes(Image.new("RGB", (4000, 1000)), box).size == (MAX_SIDE, MAX_SIDE // 4)
    assert draw_boxes(Image.new("RGB", (800, 400)), box, longest=200).size == (200, 100)


def test_classes_have_colours_that_differ():
    colours = {class_colour(label) for label in range(80)}
    assert len(colours) > 70
