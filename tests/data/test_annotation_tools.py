"""Exports of annotation tools: LabelMe, CVAT, Label Studio; what only they have."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import ParsedDataset, ReadOptions
from mobilevit.data.formats.masks.values import MAX_VALUE
from mobilevit.data.formats.registry import parse
from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import LabelSamples
from tests.data.factories import (
    encode,
    image,
    studio_result,
    studio_task,
    write,
    write_label_studio,
)

TRIANGLE = [[10, 10], [50, 10], [10, 50]]


def read(root: Path, content: Any = "boxes") -> ParsedDataset:
    (dataset,) = parse(root, ReadOptions(content))
    return dataset


def corners(dataset: ParsedDataset) -> list[list[float]]:
    assert dataset.boxes is not None
    return dataset.boxes.corners.round(2).tolist()


def drawn(root: Path) -> np.ndarray:
    masks = read(root, "masks").masks
    assert masks is not None
    return masks.read(0)


# LabelMe


def labelme(root: Path, *shapes: dict[str, Any], path: str = "1.png") -> Path:
    image(root / "1.png")
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": path}
    write(root, "1.json", json.dumps({**content, "imageHeight": 80, "imageWidth": 100}))
    return root


def shape(shape_type: str, points: Any, **more: Any) -> dict[str, Any]:
    return {"label": "cat", "points": points, "shape_type": shape_type, **more}


def test_labelme_shapes_have_boxes_and_masks(tmp_path: Path) -> None:
    png = base64.b64encode(encode(Image.fromarray(np.eye(3, dtype=bool)), "PNG")).decode()
    labelme(
        tmp_path,
        shape("rectangle", [[40, 60], [10, 20]]),  # from the lower right to the upper left
        shape("polygon", TRIANGLE),
        shape("circle", [[50, 40], [53, 44]]),
        shape("mask", [[90, 70], [92, 72]], mask=png),
    )
    expected = [[10, 20, 40, 60], [10, 10, 50, 50], [45, 35, 55, 45], [90, 70, 93, 73]]
    assert corners(read(tmp_path)) == expected
    mask = drawn(tmp_path)
    assert mask.shape == (80, 100)
    assert mask[70:73, 90:93].tolist() == np.eye(3, dtype=int).tolist()
    assert (mask[12, 12], mask[59, 39], mask[40, 50], mask[49, 49], mask[35, 45]) == (1, 1, 1, 0, 0)


def test_labelme_shapes_without_area_are_left_out_and_reported(tmp_path: Path) -> None:
    labelme(tmp_path, shape("line", [[1, 1], [5, 5]]), shape("rectangle", [[1, 1], [9, 9]]))
    dataset = read(tmp_path)
    assert corners(dataset) == [[1, 1, 9, 9]]
    (issue,) = dataset.issues
    assert (issue.severity, issue.message) == ("error", "a line has no area; it is left out")


def test_labelme_names_windows_paths(tmp_path: Path) -> None:
    labelme(tmp_path, shape("rectangle", [[1, 1], [9, 9]]), path="..\\photos\\cat.png")
    (tmp_path / "1.png").rename(tmp_path / "cat.png")
    dataset = read(tmp_path)
    assert dataset.images[0].name == "cat.png" and not dataset.issues


# CVAT


def cvat(root: Path, *shapes: str, image_name: str = "1.png") -> Path:
    image(root / "images" / image_name)
    text = "".join(shapes)
    entry = f'<image id="0" name="{image_name}" width="100" height="80">{text}</image>'
    write(root, "annotations.xml", f"<annotations><version>1.1</version>{entry}</annotations>")
    return root


def test_cvat_shapes_have_boxes_and_masks(tmp_path: Path) -> None:
    cvat(
        tmp_path,
        '<box label="cat" xtl="10" ytl="20" xbr="40" ybr="60" rotation="90.0"/>',
        '<polygon label="cat" points="10,10;50,10;10,50"/>',
        '<ellipse label="cat" cx="50" cy="40" rx="5" ry="3"/>',
        '<mask label="cat" rle="0, 1, 3, 1" left="90" top="70" width="2" height="2"/>'.replace(
            "0, 1, 3, 1", "0, 1, 2, 1"
        ),
        '<tag label="sunny"/>',
    )
    expected = [[5, 25, 45, 55], [10, 10, 50, 50], [45, 37, 55, 43], [90, 70, 92, 72]]
    assert corners(read(tmp_path)) == expected
    mask = drawn(tmp_path)
    assert mask[70:72, 90:92].tolist() == [[1, 0], [0, 1]]
    assert (mask[12, 12], mask[54, 6], mask[40, 54], mask[58, 12]) == (1, 1, 1, 0)


def test_cvat_names_shapes_that_are_no_objects(tmp_path: Path) -> None:
    cvat(
        tmp_path,
        '<polyline label="cat" points="1,1;5,5"/>\n',
        '<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"/>\n',
    )
    dataset = read(tmp_path)
    assert corners(dataset) == [[1, 1, 9, 9]]
    (issue,) = dataset.issues
    assert str(issue).endswith(
        "annotations.xml:1: a polyline is no box and has no outline; it is left out"
    )
    write(tmp_path, "annotations.xml", "<annotations><track id='0' label='cat'/></annotations>")
    with pytest.raises(DataError, match=r'format for video; export "CVAT for images 1.1"'):
        read(tmp_path)


# Label Studio


def studio(root: Path, *tasks: dict[str, Any], name: str = "export.json") -> Path:
    image(root / "images" / "1.png")
    write(root, name, json.dumps(tasks))
    return root


def test_label_studio_turns_and_scales_its_shapes(tmp_path: Path) -> None:
    place = {"x": 40, "y": 25, "width": 20, "height": 12.5}
    results = [
        studio_result("rectanglelabels", ["cat"], **place, rotation=90),
        studio_result("ellipselabels", ["cat"], x=50, y=50, radiusX=10, radiusY=10, rotation=0),
        studio_result("polygonlabels", ["cat"], points=[[10, 12.5], [50, 12.5], [10, 62.5]]),
    ]
    studio(tmp_path, studio_task(1, "/data/local-files/?d=pets%2F1.png", {"result": results}))
    expected = [[30, 20, 40, 40], [40, 32, 60, 48], [10, 10, 50, 50]]
    assert corners(read(tmp_path)) == expected
    mask = drawn(tmp_path)
    # A rectangle has no outline: what it covers alone is ignored.
    assert (mask[12, 12], mask[40, 50], mask[38, 38], mask[79, 0]) == (1, 1, MAX_VALUE, 0)


@pytest.mark.parametrize(
    "url",
    ["https://host/a/1.png?x=1", "s3://bucket/0a1b2c3d-1.png", "/data/upload/1/0a1b2c3d-1.png"],
)
def test_label_studio_images_are_found_by_any_url(tmp_path: Path, url: str) -> None:
    box = studio_result("rectanglelabels", ["cat"], x=1, y=1, width=9, height=9)
    dataset = read(studio(tmp_path, studio_task(1, url, {"result": [box]})))
    assert dataset.images[0] == tmp_path / "images" / "1.png" and not dataset.issues


def test_label_studio_reads_the_annotation_that_counts(tmp_path: Path) -> None:
    def annotation(width: int, **more: Any) -> dict[str, Any]:
        box = studio_result("rectanglelabels", ["cat"], x=0, y=0, width=width, height=10)
        return {"result": [box], **more}

    several = [
        annotation(10, ground_truth=True),
        annotation(20),
        annotation(30, was_cancelled=True),
    ]
    tasks = [
        studio_task(1, "1.png", *several),
        studio_task(2, "1.png", annotation(40, was_cancelled=True)),
        studio_task(3, "1.png"),
    ]
    dataset = read(studio(tmp_path, *tasks))
    assert corners(dataset) == [[0, 0, 10, 8]]
    assert dataset.notes == ("2 tasks without annotations are left out",)


def test_label_studio_brush_strokes_are_refused(tmp_path: Path) -> None:
    stroke = studio_result("brushlabels", ["cat"], format="rle", rle=[0, 1])
    box = studio_result("rectanglelabels", ["cat"], x=0, y=0, width=10, height=10)
    dataset = read(studio(tmp_path, studio_task(4, "1.png", {"result": [stroke, box]})))
    (issue,) = dataset.issues
    assert issue.image == 0 and "task 4, region Xy3: a brush stroke has no outline" in str(issue)


def test_label_studio_choices_are_classes(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        tasks = []
        for number in range(count):
            image(tmp_path / "images" / f"{split}{number}.png", seed=number)
            choice = studio_result("choices", ["cat" if number % 2 else "dog"])
            upload = f"/data/upload/1/0a1b2c3d-{split}{number}.png"
            tasks.append(studio_task(number, upload, {"result": [choice]}))
        tasks.append(
            studio_task(9, "x.png", {"result": [studio_result("choices", ["cat", "dog"])]})
        )
        write(tmp_path, f"{split}.json", json.dumps(tasks))
    found = open_splits(LabelSamples, DataOptions(root=str(tmp_path)))
    assert found.train.classes == ("cat", "dog")
    assert found.train.labels.tolist() == [1, 0, 1, 0] and found.val.labels.tolist() == [1, 0]
    issues = [str(issue) for issue in found.train.dataset.issues]
    assert any("task 9: one class for each image is needed; it has cat, dog" in i for i in issues)


def test_one_export_may_be_given_as_a_file(tmp_path: Path) -> None:
    write_label_studio(tmp_path)
    assert len(read(tmp_path / "train.json").images) == 3
