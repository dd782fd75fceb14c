"""Boxes end up where the objects are in the upright image, or are left out and counted."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mobilevit.data.errors import DataError
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import match_files
from mobilevit.data.formats.objects import coco
from mobilevit.data.images import ImageError, image_facts, open_image, upright_boxes
from mobilevit.tasks.detection.dataset import BoxSamples, clip
from tests.data.factories import image

NAN, INF = float("nan"), float("inf")
Boxes = list[tuple[tuple[float, float, float, float], str]]


def made(
    root: Path,
    images: dict[str, Boxes],
    *,
    classes: tuple[str, ...] = ("cat", "dog"),
    size: tuple[int, int] | None = (40, 60),
    relative: bool = False,
) -> BoxSamples:
    """Images that are not there, each with its recorded size and its boxes."""
    builder = DatasetBuilder(root, coco.FORMAT, "boxes", unit="shares" if relative else "pixels")
    for name, boxes in images.items():
        index = builder.add_image(root / name, size=size)
        for corners, label in boxes:
            builder.add_box(index, corners, classes.index(label))
    dataset = builder.build(classes, category_ids=range(1, len(classes) + 1))
    return BoxSamples.from_dataset(dataset)


# annotation


def test_boxes_are_cut_to_the_image_and_those_without_area_are_left_out(tmp_path: Path) -> None:
    image(tmp_path / "a.png", (60, 40))
    boxes: Boxes = [
        ((10, 5, 20, 15), "dog"),
        ((-5, -5, 8, 8), "cat"),
        ((50, 30, 99, 99), "cat"),
        ((60, 10, 70, 20), "cat"),  # beside the image
        ((10, 10, 10, 20), "cat"),
        ((20, 20, 10, 30), "cat"),
        ((NAN, 0, 10, 10), "cat"),
        ((0, 0, INF, 10), "cat"),
    ]
    samples = made(tmp_path, {"a.png": boxes})
    found = samples.annotation(0)
    assert found.boxes.tolist() == [[10, 5, 20, 15], [0, 0, 8, 8], [50, 30, 60, 40]]
    assert found.labels.tolist() == [1, 0, 0]
    assert found.area.tolist() == [100, 64, 100]
    assert found.crowd.tolist() == [False] * 3
    assert found.boxes.dtype == found.area.dtype == torch.float32
    assert found.labels.dtype == torch.int64 and found.crowd.dtype == torch.bool
    assert samples.usable.tolist() == [True] * 3 + [False] * 5
    assert samples.classes_in(0) == {0, 1}
    assert samples.recorded_size(0) == (40, 60)
    assert samples.name(0) == str(samples.source(0)) == str(tmp_path / "a.png")


def test_a_stated_area_goes_before_that_of_the_box(tmp_path: Path) -> None:
    image(tmp_path / "a.png", (60, 40))
    builder = DatasetBuilder(tmp_path, coco.FORMAT, "boxes")
    index = builder.add_image(tmp_path / "a.png")
    for area in (12.5, 0.0, NAN):
        builder.add_box(index, (0, 0, 10, 10), 0, area=area)
    found = BoxSamples.from_dataset(builder.build(("cat",), category_ids=(7,))).annotation(0)
    assert found.area.tolist() == [12.5, 100, 100]


def test_images_are_opened_only_for_their_boxes(tmp_path: Path) -> None:
    samples = made(tmp_path, {"none.png": [], "a.png": [((1, 1, 5, 5), "cat")]})
    assert samples.annotation(0).boxes.shape == (0, 4)
    with pytest.raises(ImageError, match=r"a\.png: no such file"):
        samples.annotation(1)
    image(tmp_path / "a.png", (60, 40))
    assert samples.annotation(1).boxes.equal(samples.annotation(-1).boxes)
    with pytest.raises(IndexError):
        samples.annotation(2)


def test_shares_become_pixels_of_the_upright_image(tmp_path: Path) -> None:
    image(tmp_path / "turned.jpg", (60, 40), orientation=6)
    boxes: Boxes = [((0.25, 0.5, 0.5, 1.25), "cat")]
    samples = made(tmp_path, {"turned.jpg": boxes}, size=None, relative=True)
    assert samples.annotation(0).boxes.tolist() == [[10, 30, 20, 60]]
    assert samples.recorded_size(0) is None
    assert samples.usable.all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("recorded", ["stored", "upright", None])
def test_boxes_follow_an_image_that_is_turned_by_exif(
    tmp_path: Path, orientation: int, recorded: str | None
) -> None:
    marker = (8, 4, 24, 12)  # in the image as it is stored: 64 wide, 32 high
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[marker[1] : marker[3], marker[0] : marker[2]] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(stored).save(path, exif=exif)
    upright = open_image(path)
    truth = Image.fromarray(np.asarray(upright)[:, :, 0]).getbbox()
    assert truth is not None

    turned = upright_boxes(np.array([marker], float), orientation, height=32, width=64)
    assert turned.tolist() == [list(truth)]

    sizes = {"stored": (32, 64), "upright": (upright.height, upright.width), None: None}
    drawn = marker if recorded == "stored" and orientation >= 5 else truth
    samples = made(tmp_path, {path.name: [(drawn, "cat")]}, size=sizes[recorded])
    assert samples.annotation(0).boxes.tolist() == [list(truth)]


@pytest.mark.parametrize("size", [(100, 100), (60, 40)])  # the second is the wrong way round
def test_boxes_are_taken_as_they_are_where_the_stated_size_is_wrong(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    image(tmp_path / "a.png", (60, 40))
    samples = made(tmp_path, {"a.png": [((10, 10, 50, 90), "cat")]}, size=size)
    assert samples.annotation(0).boxes.tolist() == [[10, 10, 50, 40]]
    (issue, _) = samples.examine(0, image_facts(tmp_path / "a.png"), decode=False).issues
    assert issue.category == "images of another size than stated"
    assert f"is 60 x 40 pixels, but by  {size[1]} x {size[0]}" in issue.message


def test_boxes_beyond_a_wrong_stated_size_are_used(tmp_path: Path) -> None:
    image(tmp_path / "a.png", (60, 40))
    rows: Boxes = [
        ((30, 5, 50, 15), "cat"),  # beyond the size as it is stated, but there
        ((61, 5, 70, 15), "cat"),
        ((5, 5, 5, 9), "cat"),
        ((INF, 5, INF, 9), "cat"),
        ((5, 5, 9, 9), "cat"),
    ]
    samples = made(tmp_path, {"a.png": rows}, size=(30, 20))
    assert samples.annotation(0).boxes.tolist() == [[30, 5, 50, 15], [5, 5, 9, 9]]
    assert samples.usable.tolist() == [False, False, False, False, True]


def test_samples_can_be_sent_to_another_process(tmp_path: Path) -> None:
    image(tmp_path / "a.png", (60, 40))
    samples = pickle.loads(pickle.dumps(made(tmp_path, {"a.png": [((1, 2, 3, 4), "dog")]})))
    assert samples.annotation(0).boxes.tolist() == [[1, 2, 3, 4]]


# files that belong together


def test_files_of_one_name_in_places_that_say_nothing_are_not_paired() -> None:
    labels = ["x/1.txt", "x/2.txt", "y/2.txt", "x/3.txt"]
    assert match_files(["a/1.jpg", "a/2.jpg", "a/3.jpg", "b/3.jpg"], labels) == [
        ["x/1.txt"], [], [], []
    ]  # fmt: skip
    assert match_files(["a/1.jpg", "x/2.jpg"], labels) == [[], ["x/2.txt"]]


# geometry

SIDES = st.integers(1, 500)
NUMBERS = st.floats(-1e4, 1e4, width=32)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=6)


@given(ROWS, st.integers(1, 8), SIDES, SIDES)
def test_a_turn_and_its_opposite_change_nothing(
    rows: list[tuple[float, ...]], orientation: int, height: int, width: int
) -> None:
    boxes = np.array(rows, float).reshape(-1, 4)
    turned = upright_boxes(boxes, orientation, height=height, width=width)
    size = (width, height) if orientation >= 5 else (height, width)
    opposite = {6: 8, 8: 6}.get(orientation, orientation)
    back = upright_boxes(turned, opposite, height=size[0], width=size[1])
    np.testing.assert_allclose(back, boxes, atol=1e-6)
    sides = np.sort(turned[:, 2:] - turned[:, :2], axis=1)
    np.testing.assert_allclose(sides, np.sort(boxes[:, 2:] - boxes[:, :2], axis=1), atol=1e-6)


@given(ROWS, SIDES, SIDES)
def test_what_is_kept_has_an_area_in_the_image(
    rows: list[tuple[float, ...]], height: int, width: int
) -> None:
    boxes = np.array(rows, float).reshape(-1, 4)
    inside, kept = clip(boxes, height, width)
    x1, y1, x2, y2 = inside[kept].T
    assert ((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)).all()
    assert ((x2 > x1) & (y2 > y1)).all()
    left, top, right, bottom = boxes.T
    meets = (right > left) & (bottom > top) & (right > 0) & (bottom > 0)
    meets &= (left < width) & (top < height)
    assert not (kept & ~meets).any()
    within = kept & (left >= 0) & (top >= 0) & (right <= width) & (bottom <= height)
    np.testing.assert_array_equal(inside[within], boxes[within].astype(np.float32))


def test_what_is_thinner_than_float32_can_tell_has_no_width() -> None:
    _, kept = clip(np.array([[5000.0, 1.0, 5000.00001, 9.0]]), 10_000, 10_000)
    assert not kept.any()


# subset, relabel, hold_out


@given(st.data())
def test_some_images_keep_their_boxes(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=8))
    images: dict[str, Boxes] = {
        f"{place}.png": [((place, box, 30, 30), "dog" if box % 2 else "cat") for box in range(n)]
        for place, n in enumerate(counts)
    }
    samples = made(Path("root"), images)
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=8))
    subset = samples.subset(chosen)
    assert len(subset) == len(chosen)
    for place, index in enumerate(chosen):
        assert subset.name(place) == samples.name(index)
        own, theirs = subset.rows(place), samples.rows(index)
        assert samples.boxes.corners[own].tolist() == samples.boxes.corners[theirs].tolist()


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    samples = made(tmp_path, {"a.png": [((1, 1, 5, 5), "dog"), ((1, 1, 9, 9), "cat")]})
    turned = samples.relabel(["dog", "emu", "cat"])
    image(tmp_path / "a.png", (60, 40))
    assert turned.annotation(0).labels.tolist() == [0, 2]
    assert turned.classes == ("dog", "emu", "cat")
    assert turned.category_ids == (2, 3, 1)  # a new number for what the data lacks
    assert samples.annotation(0).labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r'unknown class "dog"; known are: cat, emu'):
        samples.relabel(["cat", "emu"])
    with pytest.raises(DataError, match="unique"):
        samples.relabel(["cat", "dog", "cat"])


def test_a_class_without_boxes_need_not_be_known(tmp_path: Path) -> None:
    samples = made(tmp_path, {"a.png": [((1, 1, 5, 5), "dog")]})
    assert samples.relabel(["dog"]).classes_in(0) == {0}


def names(samples: BoxSamples) -> list[str]:
    return [samples.name(index) for index in range(len(samples))]


def named(*numbers: int) -> dict[str, Boxes]:
    return {f"{number}.png": [((1, 1, 9, 9), "cat")] for number in numbers}


def test_a_share_is_held_out_and_stays_when_images_are_added(tmp_path: Path) -> None:
    train, val = made(tmp_path, named(*range(50))).hold_out(0.3, 0)
    assert (len(train), len(val)) == (35, 15)
    assert not {*names(train)} & {*names(val)}
    more = made(tmp_path, named(*range(51))).hold_out(0.3, 0)[1]
    assert len({*names(val)} & {*names(more)}) >= 14
    moved = made(tmp_path / "moved", named(*range(50))).hold_out(0.3, 0)[1]
    assert [Path(file).name for file in names(moved)] == [Path(file).name for file in names(val)]
    other = made(tmp_path, named(*range(50))).hold_out(0.3, 1)[1]
    assert names(other) != names(val)


def test_the_only_boxes_of_a_class_are_trained_on(tmp_path: Path) -> None:
    images = named(*range(10)) | {"rare.png": [((1, 1, 9, 9), "dog")], "empty.png": []}
    for seed in range(20):
        train, val = made(tmp_path, images).hold_out(0.9, seed)
        assert {0, 1} == {label for index in range(len(train)) for label in train.classes_in(index)}
        assert len(val) == 10


def test_images_that_are_too_few_can_not_be_divided(tmp_path: Path) -> None:
    one_each: dict[str, Boxes] = {
        "a.png": [((1, 1, 9, 9), "cat")], "b.png": [((1, 1, 9, 9), "dog")]
    }  # fmt: skip
    for images in (one_each, named(1)):
        with pytest.raises(DataError, match="too few to hold one out"):
            made(tmp_path, images).hold_out(0.5, 0)


def test_usable_without_a_recorded_size_asks_for_no_more_than_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes: Boxes = [((0, 0, 9000, 9000), "cat"), ((5, 5, 5, 6), "cat"), ((-9, 0, 0, 5), "cat")]
    with caplog.at_level(logging.WARNING):
        usable = made(tmp_path, {"a": boxes}, size=None).usable
    assert usable.tolist() == [True, False, False]
