"""COCO's JSON, as it should be and as it is met."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mobilevit.data.formats.base import select
from mobilevit.data.formats.coco import box_corners, looks_like_coco, read_coco
from mobilevit.data.formats.folders import DataError
from mobilevit.tasks.detection.dataset import BoxSamples


def image(path: Path, size: tuple[int, int] = (100, 80)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, "PNG")
    return path


def box(number: Any, image: Any = 5, category: Any = 1, **more: Any) -> dict[str, Any]:
    bbox = more.pop("bbox", [10, 20, 30, 40])
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


def content(**parts: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 5, "file_name": "a.png", "width": 100, "height": 80}],
        "annotations": [box(7)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        **parts,
    }


def put(file: Path, *, files: tuple[str, ...] = ("a.png",), **parts: Any) -> Path:
    """A JSON, and its images in `images` beside it."""
    for name in files:
        image(file.parent / "images" / name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content(**parts)))
    return file


def opened(file: Path, *, on_bad: Any = "error") -> BoxSamples:
    reading = read_coco(file)
    return select(reading, range(len(reading.samples)), on_bad=on_bad)


def test_a_box_of_corner_and_sides_becomes_corners(tmp_path: Path) -> None:  # case A34
    samples = opened(put(tmp_path / "x.json"))
    found = samples.annotation(0)
    assert found.boxes.tolist() == [[10, 20, 40, 60]]
    assert found.area.tolist() == [1200]
    assert found.ids == (7,)
    assert (samples.image_id(0), samples.recorded_size(0)) == (5, (80, 100))
    assert samples.format == "coco"
    assert samples.root == tmp_path


@given(st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 2, *[st.floats(0.125, 1e4, width=32)] * 2))
def test_corners_give_the_box_back(bbox: tuple[float, float, float, float]) -> None:
    x1, y1, x2, y2 = box_corners(list(bbox))
    assert (x1, y1, x2 - x1, y2 - y1) == pytest.approx(bbox, abs=1e-6)


def test_category_ids_may_be_any_and_in_any_order(tmp_path: Path) -> None:  # case A35
    categories = [{"id": n, "name": name} for n, name in ((90, "z"), (1, "m"), (13, "a"))]
    annotations = [box(1, category=13), box(2, category=90), box(3, category=1)]
    samples = opened(put(tmp_path / "x.json", categories=categories, annotations=annotations))
    assert samples.classes == ("m", "a", "z")
    assert samples.category_ids == (1, 13, 90)
    assert samples.annotation(0).labels.tolist() == [1, 2, 0]


def test_crowds_areas_and_images_without_boxes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # case A36
    images = [{"id": n, "file_name": f"{n}.png"} for n in (5, 9, 3)]
    annotations = [
        box(11, image=3, area=77.5, iscrowd=1),
        box(12, image=5),
        box(13, image=3, bbox=[10, 20, 0, 40]),
        box(14, image=3, bbox=[10, 20, 30, -1]),
        box(15, image=3, bbox=[]),
        box(16, image=3, bbox=[1, 2, "x", 4]),
        box(17, image=3, bbox=["1", "2", "3", "4"], segmentation=[[1, 2, 3, 4, 5, 6]]),
    ]
    file = put(
        tmp_path / "x.json",
        images=images,
        annotations=annotations,
        files=("3.png", "5.png", "9.png"),
    )
    samples = opened(file)
    assert [samples.image_id(index) for index in range(3)] == [5, 9, 3]
    assert [len(samples.annotation(index).ids) for index in range(3)] == [1, 0, 2]
    last = samples.annotation(2)
    assert last.ids == (11, 17)
    assert last.crowd.tolist() == [True, False]
    assert last.area.tolist() == [77.5, 12]
    assert samples.recorded_size(0) is None
    assert "4 of 7 boxes are left out" in caplog.text
    for number in (13, 14, 15, 16):
        assert f"annotation {number} (3.png)" in caplog.text


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"images": None}, r'lacks the list "images"'),
        ({"annotations": {}, "categories": 3}, r'lacks the lists "annotations", "categories"'),
        ({"annotations": [box(7, image=6)]}, r"annotation 7: no image has its image_id 6"),
        ({"annotations": [box(7, category=4)]}, r"annotation 7: no category .* category_id 4"),
        ({"annotations": [box(7, category=None)]}, r"no category has its category_id None"),
        ({"annotations": [3]}, r"annotation number 1 is 3"),
        ({"images": [{"id": 5}]}, r"image without id or file_name: \{'id': 5\}"),
        ({"images": content()["images"] * 2}, r"two images have the id 5"),
        ({"categories": [{"id": 1, "name": "a"}] * 2}, r"two categories have the id 1"),
        ({"categories": [{"name": "a"}]}, r"category without id or name: \{'name': 'a'\}"),
        (
            {"categories": [{"id": n, "name": name} for n, name in ((1, "a"), (4, "a"), (2, "b"))]},
            r'class "a" stated more than once, by the ids \[1, 4\]',
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    tmp_path: Path, parts: dict[str, Any], reason: str
) -> None:
    file = put(tmp_path / "x.json", **parts)
    with pytest.raises(DataError, match=reason) as caught:
        opened(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "a list instead of an object"),
        ("\xff", "not JSON"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=reason):
        opened(file)
    assert not looks_like_coco(file)


def test_only_files_with_all_keys_look_like_coco(tmp_path: Path) -> None:
    assert looks_like_coco(put(tmp_path / "x.json"))
    (tmp_path / "list.json").write_text('["images", "annotations", "categories"]')
    (tmp_path / "captions.json").write_text('{"images": [], "annotations": []}')
    (tmp_path / "empty.json").touch()
    for name in ("list", "captions", "empty", "absent"):
        assert not looks_like_coco(tmp_path / f"{name}.json")


def test_ids_may_be_texts(tmp_path: Path) -> None:
    annotations = [box("9", image="5", category="1", iscrowd="0")]
    samples = opened(put(tmp_path / "x.json", annotations=annotations))
    assert samples.annotation(0).ids == (9,)
    assert not samples.annotation(0).crowd.any()
    images = [{"id": f"img-{n}", "file_name": "a.png"} for n in "ba"]
    samples = opened(
        put(tmp_path / "x.json", images=images, annotations=[box("u1", image="img-a")])
    )
    assert [samples.image_id(index) for index in range(2)] == [1, 2]  # counted instead
    assert [len(samples.annotation(index).ids) for index in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("json_path", "image_path", "file_name"),
    [
        ("x.json", "a.png", "a.png"),
        ("x.json", "images/a.png", "a.png"),
        ("x.json", "sub dir/a.png", "sub dir/a.png"),
        ("x.json", "images/sub/a.png", "images\\sub\\a.png"),
        ("x.json", "JPEGImages/a.png", "a.png"),
        ("annotations/instances_val2017.json", "val2017/a.png", "a.png"),
        ("annotations/instances_val2017.json", "images/val2017/a.png", "a.png"),
        ("annotations/val.json", "val/images/a.png", "a.png"),
        ("annotations/instances_val.json", "images/a.png", "a.png"),
        ("train/_annotations.coco.json", "train/a.png", "a.png"),
        ("x.json", "images/A.PNG", "a.png"),  # found by what it is called without capitals
        ("x.json", "odd/place/a.png", "elsewhere/a.png"),  # by its name alone
        ("x.json", "images/" + unicodedata.normalize("NFD", "é.png"), "\u00e9.png"),
    ],
)
def test_images_are_found_where_they_usually_are(
    tmp_path: Path, json_path: str, image_path: str, file_name: str
) -> None:
    there = image(tmp_path / image_path)
    file = put(tmp_path / json_path, images=[{"id": 5, "file_name": file_name}], files=())
    assert opened(file).source(0).samefile(there)


def test_a_image_of_the_same_name_in_another_split_is_no_substitute(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.png"} for n in (5, 6)]
    image(tmp_path / "train" / "6.png")
    image(tmp_path / "val" / "5.png")
    file = put(tmp_path / "train.json", images=images, files=())
    with pytest.raises(DataError, match=r"1 of 2 images are missing(.|\n)*5\.png \(image id 5\)"):
        opened(file)


def test_of_two_images_of_one_name_in_odd_places_none_is_taken(tmp_path: Path) -> None:
    for place in ("one", "other"):
        image(tmp_path / place / "a.png")
    with pytest.raises(DataError, match="1 of 1 images are missing"):
        opened(put(tmp_path / "x.json", files=()))


def test_what_is_wrong_with_the_whole_set_is_said_first(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(9)]
    file = put(tmp_path / "x.json", images=images, annotations=[5], files=())
    with pytest.raises(DataError, match=r"as they are:\n.*annotation number 1 is 5"):
        opened(file)


def test_missing_images_are_counted_and_can_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(9)]
    file = put(tmp_path / "x.json", images=images, annotations=[box(1, image=8)], files=("8.png",))
    with pytest.raises(DataError, match="8 of 9 images are missing") as caught:
        opened(file)
    text = str(caught.value)
    assert "0.png (image id 0)" in text and "4.png" in text and "5.png" not in text
    assert "... and 3 more" in text and "--data.on_bad skip" in text
    samples = opened(file, on_bad="skip")
    assert [samples.image_id(index) for index in range(len(samples))] == [8]
    assert len(samples.annotation(0).ids) == 1
    assert "8 images left out" in caplog.text
    with pytest.raises(ValueError, match="on_bad"):
        opened(file, on_bad="ignore")


def test_skipping_leaves_out_images_of_unknown_classes_but_not_a_broken_set(
    tmp_path: Path,
) -> None:
    images = [{"id": n, "file_name": "a.png"} for n in (5, 6)]
    annotations = [box(1, image=5), box(2, image=6, category=99), box(3, image=44)]
    samples = opened(
        put(tmp_path / "x.json", images=images, annotations=annotations), on_bad="skip"
    )
    assert [samples.image_id(index) for index in range(len(samples))] == [5]
    with pytest.raises(DataError, match="two images have the id 5") as caught:
        opened(put(tmp_path / "x.json", images=content()["images"] * 2), on_bad="skip")
    assert "on_bad" not in str(caught.value)  # it would not help


def test_coco_photos(shared: Path) -> None:
    for split, boxes, empty in (("train", 929, [250, 508]), ("val", 898, [])):
        samples = opened(shared / "data" / "coco128" / f"instances_{split}2017.json")
        assert len(samples) == 128
        assert len(samples.classes) == len(samples.category_ids) == 80
        assert samples.classes[-1] == "toothbrush" and samples.category_ids[-1] == 80
        found = [samples.annotation(index) for index in range(128)]
        assert sum(len(one.ids) for one in found) == boxes
        without = [samples.image_id(i) for i, one in enumerate(found) if not one.ids]
        assert without == empty
