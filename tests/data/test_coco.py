"""COCO's JSON, as it should be and as it is met: boxes, instances and panoptic segments."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mobilevit.data.class_names import VOC_CLASSES
from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import ReadOptions
from mobilevit.data.formats.objects.coco import (
    VOC_PLACES,
    looks_like_coco,
    read_objects,
    to_corners,
)
from mobilevit.data.formats.registry import parse
from mobilevit.data.images import ImageError
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.segmentation.dataset import MaskSamples, MaskSizeError
from tests.data.factories import coco_box as box
from tests.data.factories import image, stems, write
from tests.data.factories import opened as opened_dataset


def content(**parts: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 5, "file_name": "a.png", "width": 100, "height": 80}],
        "annotations": [box(7)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        **parts,
    }


def put(file: Path, *, files: tuple[str, ...] = ("a.png",), **parts: Any) -> Path:
    """A JSON, and its images in `images` next to it."""
    for name in files:
        image(file.parent / "images" / name)
    return write(file.parent, file.name, json.dumps(content(**parts)))


def opened(file: Path, *, on_bad: Any = "error") -> BoxSamples:
    return opened_dataset(read_objects(file), on_bad=on_bad)


def test_a_box_of_corner_and_sides_becomesto_corners(tmp_path: Path) -> None:  # case A34
    samples = opened(put(tmp_path / "x.json"))
    found = samples.annotation(0)
    assert found.boxes.tolist() == [[10, 20, 40, 60]]
    assert found.area.tolist() == [1200]
    assert samples.recorded_size(0) == (80, 100)
    assert samples.dataset.format == "coco"
    assert samples.root == tmp_path


@given(st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 2, *[st.floats(0.125, 1e4, width=32)] * 2))
def test_corners_give_the_box_back(bbox: tuple[float, float, float, float]) -> None:
    x1, y1, x2, y2 = to_corners(list(bbox))
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
    assert [Path(samples.name(index)).stem for index in range(3)] == ["5", "9", "3"]
    assert [len(samples.annotation(index).labels) for index in range(3)] == [1, 0, 2]
    last = samples.annotation(2)
    assert last.crowd.tolist() == [True, False]
    assert last.area.tolist() == [77.5, 12]
    assert samples.recorded_size(0) is None
    assert "4 annotations are wrong" in caplog.text
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
            {
                "categories": [{"id": n, "name": name} for n, name in ((1, "a"), (4, "a"))],
                "annotations": [box(1), box(2, category=4)],
            },
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


@pytest.mark.parametrize("format", ["coco", "coco_voc", "coco_panoptic"])
def test_a_name_of_two_categories_is_an_error_for_masks(tmp_path: Path, format: str) -> None:
    outline = [[10, 20, 40, 20, 40, 60]]
    annotations = [box(n, category=n, segmentation=outline) for n in (1, 2)]
    if format == "coco_panoptic":
        annotations = [
            {"image_id": 5, "segments_info": [{"id": n, "category_id": n} for n in (1, 2)]}
        ]
    categories = [{"id": n, "name": "cat"} for n in (1, 2)]
    file = put(tmp_path / "x.json", categories=categories, annotations=annotations)
    with pytest.raises(DataError) as caught:
        parse(tmp_path, ReadOptions("masks"), format)
    assert str(caught.value) == f'{file}: class "cat" stated more than once, by the ids [1, 2]'


@pytest.mark.parametrize(
    ("categories", "left"),
    [
        ({0: ("cat", "none"), 1: ("cat", "cat")}, ("cat",)),  # the root category of an export
        ({0: ("pets", "none"), 1: ("cat", "pets")}, ("cat",)),
        ({1: ("cat", "pets"), 7: ("cat", "pets")}, ("cat",)),
        ({1: ("cat", "dog"), 2: ("dog", "none")}, ("cat", "dog")),  # only without objects
    ],
)
def test_categories_that_only_head_or_repeat_others_are_left_out_and_named(
    tmp_path: Path, categories: dict[int, tuple[str, str]], left: tuple[str, ...]
) -> None:
    entries = [{"id": n, "name": a, "supercategory": b} for n, (a, b) in categories.items()]
    outline = [[10, 20, 40, 20, 40, 60]]
    file = put(tmp_path / "x.json", categories=entries, annotations=[box(1, segmentation=outline)])
    for content, kind in (("boxes", BoxSamples), ("masks", MaskSamples)):
        dataset = read_objects(file, content=content)  # type: ignore[arg-type]
        assert opened_dataset(dataset, samples_type=kind).classes[-len(left) :] == left
        assert len(dataset.notes) == len(categories) - len(left)
        assert all("is not used, and left out" in note for note in dataset.notes)


def test_the_box_of_an_outline_is_used_where_none_is_stated(tmp_path: Path) -> None:
    mask = np.zeros((80, 100), np.uint8)
    mask[20:60, 10:40] = 1
    columns = np.flatnonzero(np.diff(mask.ravel(order="F"))) + 1
    runs = np.diff([0, *columns, mask.size]).tolist()
    annotations = [
        box(1, bbox=None, segmentation=[[10, 20, 40, 20, 40, 60], [12, 30, 20, 40, 15, 50]]),
        box(2, bbox=[], segmentation={"size": [80, 100], "counts": runs}),
        box(3, bbox=None, segmentation=[[1, 2]]),
    ]
    del annotations[0]["bbox"]
    samples = opened(put(tmp_path / "x.json", annotations=annotations))
    assert samples.annotation(0).boxes.tolist() == [[10, 20, 40, 60]] * 2


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
    assert not samples.annotation(0).crowd.any()
    images = [{"id": f"img-{n}", "file_name": "a.png"} for n in "ba"]
    samples = opened(
        put(tmp_path / "x.json", images=images, annotations=[box("u1", image="img-a")])
    )
    assert [len(samples.annotation(index).labels) for index in range(2)] == [0, 1]


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


def test_an_image_of_the_same_name_in_another_split_is_no_substitute(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.png"} for n in (5, 6)]
    image(tmp_path / "train" / "6.png")
    image(tmp_path / "val" / "5.png")
    file = put(tmp_path / "train.json", images=images, files=())
    with pytest.raises(DataError, match=r"missing images: 1(.|\n)*5\.png \(image id 5\)"):
        opened(file)


def test_of_two_images_of_one_name_in_odd_places_none_is_taken(tmp_path: Path) -> None:
    for place in ("one", "other"):
        image(tmp_path / place / "a.png")
    with pytest.raises(DataError, match="missing images: 1"):
        opened(put(tmp_path / "x.json", files=()))


def test_what_is_wrong_with_the_whole_set_is_said_first(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(30)]
    file = put(tmp_path / "x.json", images=images, annotations=[5], files=())
    with pytest.raises(DataError, match=r"as it is.*:\n.*annotation number 1 is 5"):
        opened(file)


def test_missing_images_are_counted_and_can_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(30)]
    file = put(tmp_path / "x.json", images=images, annotations=[box(1, image=8)], files=("8.png",))
    with pytest.raises(DataError, match="missing images: 29") as caught:
        opened(file)
    text = str(caught.value)
    assert "0.png (image id 0)" in text and "19.png" in text and "25.png" not in text
    assert "... and 9 more" in text and "--data.on_bad skip" in text
    samples = opened(file, on_bad="skip")
    assert len(samples) == len(samples.annotation(0).labels) == 1
    assert "29 images left out" in caplog.text


def test_skipping_leaves_out_images_of_unknown_classes_but_not_a_broken_set(
    tmp_path: Path,
) -> None:
    images = [{"id": n, "file_name": "a.png"} for n in (5, 6)]
    annotations = [box(1, image=5), box(2, image=6, category=99), box(3, image=44)]
    samples = opened(
        put(tmp_path / "x.json", images=images, annotations=annotations), on_bad="skip"
    )
    assert len(samples) == 1
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
        assert sum(len(one.labels) for one in found) == boxes
        without = [
            int(Path(samples.name(i)).stem) for i, one in enumerate(found) if not len(one.labels)
        ]
        assert without == empty


# masks


def masks(root: Path, split: str, format: str = "coco") -> MaskSamples:
    found = [d for d in parse(root, ReadOptions("masks"), format) if split in d.splits]
    return opened_dataset(found[0], split, samples_type=MaskSamples)


def square(left: int, top: int, side: int) -> list[list[float]]:
    right, low = left + side, top + side
    return [[left, top, right, top, right, low, left, low]]


def instances(root: Path, annotations: list[dict[str, Any]], **first: Any) -> Path:
    """A data set of two images of 40 x 30, of which the second has no object."""
    images = [
        {"id": 7, "file_name": "7.jpg", "height": 30, "width": 40, **first},
        {"id": 8, "file_name": "8.jpg", "height": 30, "width": 40},
    ]
    names = {1: "person", 44: "bottle", 73: "laptop"}
    content = {
        "images": images,
        "categories": [{"id": number, "name": name} for number, name in reversed(names.items())],
        "annotations": [
            {"id": at, "image_id": 7, "bbox": [0, 0, 9, 9], **annotation}
            for at, annotation in enumerate(annotations)
        ],
    }
    for part in ("train", "val"):
        for one in images:
            image(root / f"{part}2017" / str(one["file_name"]), (40, 30))
        write(root, f"annotations/instances_{part}2017.json", json.dumps(content))
    return root


def test_the_ids_of_vocs_classes() -> None:
    assert (VOC_CLASSES[VOC_PLACES[1]], VOC_CLASSES[VOC_PLACES[72]]) == ("person", "tvmonitor")
    assert sorted(VOC_PLACES.values()) == list(range(1, 21))


def test_smaller_objects_lie_on_larger_ones(tmp_path: Path) -> None:
    small = {"category_id": 44, "segmentation": square(5, 5, 4)}
    large = {"category_id": 1, "segmentation": square(0, 0, 20)}
    for number, order in enumerate(([small, large], [large, small])):
        val = masks(instances(tmp_path / str(number), order), "val")
        assert val.classes == ("background", "person", "bottle", "laptop") and val.ignore == 255
        expected = np.zeros((30, 40), int)
        expected[:20, :20] = 1
        expected[5:9, 5:9] = 2
        np.testing.assert_array_equal(val.mask(0), expected)
        assert not val.mask(1).any()


def test_vocs_classes_of_coco(tmp_path: Path) -> None:
    root = instances(
        tmp_path,
        [
            {"category_id": 1, "segmentation": square(0, 0, 20)},
            {"category_id": 73, "segmentation": square(5, 5, 4)},  # hides nothing
            {"category_id": 73, "segmentation": square(20, 20, 9), "iscrowd": 1},
            {"category_id": 44, "segmentation": square(30, 0, 5)},
        ],
    )
    val = masks(root, "val", "coco_voc")
    assert val.classes == VOC_CLASSES and val.dataset.format == "coco_voc"
    expected = np.zeros((30, 40), int)
    expected[:20, :20] = VOC_CLASSES.index("person")
    expected[:5, 30:35] = VOC_CLASSES.index("bottle")
    np.testing.assert_array_equal(val.mask(0), expected)


def test_crowds_and_objects_of_no_shape_are_ignored(tmp_path: Path) -> None:
    crowd = np.zeros((30, 40), np.uint8)
    crowd[10:, :] = 1
    columns = crowd.ravel(order="F")
    turns = np.flatnonzero(np.diff(columns)) + 1
    counts = np.diff([0, *turns, columns.size]).tolist()
    root = instances(
        tmp_path,
        [
            {"category_id": 44, "segmentation": square(2, 12, 4)},
            {"category_id": 1, "segmentation": {"size": [30, 40], "counts": counts}, "iscrowd": 1},
            {"category_id": 1, "segmentation": square(3, 13, 1), "iscrowd": 1},  # hides nothing
            {"category_id": 1, "segmentation": [[1, 1, 2, 2]], "bbox": [30, 2, 5, 3]},
        ],
    )
    expected = crowd.astype(int) * 255
    expected[12:16, 2:6] = 2
    expected[2:5, 30:35] = 255
    np.testing.assert_array_equal(masks(root, "val").mask(0), expected)


@pytest.mark.parametrize("kind", ["noise", "stripe", "nothing", "everything"])
def test_packed_masks_are_read_as_pycocotools_packs_them(tmp_path: Path, kind: str) -> None:
    from pycocotools import mask as coco

    shape = np.full((30, 40), kind == "everything", np.uint8)
    if kind == "noise":
        shape = np.random.default_rng(0).integers(0, 2, (30, 40)).astype(np.uint8)
    elif kind == "stripe":
        shape[:, 7:31] = 1
    packed = coco.encode(np.asfortranarray(shape))
    packed["counts"] = packed["counts"].decode()
    root = instances(tmp_path, [{"category_id": 1, "segmentation": packed}])
    np.testing.assert_array_equal(masks(root, "val").mask(0), shape)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools and NumPy 2
def test_polygons_are_filled_as_pycocotools_fills_them(tmp_path: Path) -> None:
    from pycocotools import mask as coco

    draw = np.random.default_rng(1)
    outline = [(draw.random(10) * 29).round(2).tolist() for _ in range(3)]
    root = instances(tmp_path, [{"category_id": 1, "segmentation": outline}])
    expected = coco.decode(coco.merge(coco.frPyObjects(outline, 30, 40)))
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(masks(root, "val").mask(0), expected)


@pytest.mark.parametrize("counts", [[30 * 41], [-1, 1201], "PP", [], None, ["a"]])
def test_masks_of_another_size_or_damaged(tmp_path: Path, counts: object) -> None:
    outline = {"size": [30, 40], "counts": counts}
    root = instances(tmp_path, [{"category_id": 1, "segmentation": outline}])
    val = masks(root, "val")
    with pytest.raises(
        ImageError, match=r"instances_val2017\.json: 7\.jpg: .*(another size|Error)"
    ):
        val.mask(0)


def test_images_without_objects_are_evaluated_but_not_trained_on(tmp_path: Path) -> None:
    root = instances(tmp_path, [{"category_id": 73, "segmentation": square(0, 0, 9)}])
    assert len(masks(root, "val")) == 2
    train = masks(root, "train")
    assert stems(train) == ["7"]
    assert train.dataset.notes == ("1 images without objects are not trained on",)
    with pytest.raises(DataError, match="no images in train"):
        masks(root, "train", "coco_voc")


def test_images_are_looked_for_where_they_usually_are(tmp_path: Path) -> None:
    root = instances(tmp_path, [{"category_id": 1, "segmentation": square(0, 0, 9)}])
    (root / "val2017").rename(root / "val")
    assert masks(root, "val").source(0) == root / "val" / "7.jpg"
    (root / "images").mkdir()
    (root / "val").rename(root / "images" / "val2017")
    val = masks(root, "val")
    assert val.source(0) == root / "images" / "val2017" / "7.jpg"
    val.source(1).unlink()
    with pytest.raises(DataError, match=r"missing images: 1(.|\n)*image missing: 8\.jpg"):
        masks(root, "val")


def test_an_image_of_another_size_than_stated(tmp_path: Path) -> None:
    root = instances(tmp_path, [{"category_id": 1, "segmentation": square(0, 0, 9)}], height=31)
    with pytest.raises(MaskSizeError, match=r"7\.jpg: the mask has 40 x 31 pixels"):
        masks(root, "val").mask(0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[", "not JSON"),
        ("{}", 'lacks the lists "images", "annotations", "categories"'),
        (
            '{"categories": [{"id": 1, "name": "a"}], "images": [], "annotations": []}',
            "only boxes, without outlines",
        ),
    ],
)
def test_json_that_is_not_of_masks_is_named(tmp_path: Path, content: str, reason: str) -> None:
    file = write(tmp_path, "x.json", content)
    with pytest.raises(DataError, match=rf"x\.json: .*{reason}"):
        opened_dataset(read_objects(file, content="masks"), samples_type=MaskSamples)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"category_id": 5}, "no category has its category_id 5"),
        ({"image_id": 9}, "no image has its image_id 9"),
        ({"segmentation": [[1]], "bbox": None}, "an object cannot be drawn"),
        ({"segmentation": [["x"] * 6]}, "an object cannot be drawn"),
    ],
)
def test_objects_that_cannot_be_drawn_are_named(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    good = {"category_id": 1, "segmentation": square(0, 0, 9)}
    root = instances(tmp_path, [good, good | change])
    with pytest.raises(DataError, match=reason):
        masks(root, "val")


def test_boxes_alone_make_no_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only boxes, without outlines"):
        masks(instances(tmp_path, [{"category_id": 1}]), "val")


def panoptic(root: Path, ids: np.ndarray, segments: list[dict[str, Any]]) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "7.jpg", "height": 6, "width": 8}],
        "categories": [{"id": 1, "name": "person"}, {"id": 200, "name": "rug"}],
        "annotations": [{"image_id": 7, "file_name": "7.png", "segments_info": segments}],
    }
    image(root / "val2017" / "7.jpg", (8, 6))
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], 2).astype(np.uint8)
    path = root / "annotations" / "panoptic_val2017" / "7.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(rgb).save(path)
    write(root, "annotations/panoptic_val2017.json", json.dumps(content))
    return root


def test_panoptic_segments_have_24_bit_numbers(tmp_path: Path) -> None:
    ids = np.resize([0, 5, 70_000, 900], (6, 8))
    segments = [
        {"id": 5, "category_id": 1},
        {"id": 70_000, "category_id": 200},
        {"id": 900, "category_id": 1, "iscrowd": 1},
    ]
    root = panoptic(tmp_path / "a", ids, segments)
    val = masks(root, "val", "coco_panoptic")
    assert val.classes == ("person", "rug") and val.ignore == 255
    assert val.mask(0).ravel()[:4].tolist() == [255, 0, 1, 255]
    voc = masks(root, "val", "coco_voc")
    assert voc.mask(0).ravel()[:4].tolist() == [255, 15, 0, 255]
    root = panoptic(tmp_path / "b", ids, segments[:1])
    with pytest.raises(ImageError, match=r"does not list its segments \[900, 70000\]"):
        masks(root, "val", "coco_panoptic").mask(0)


def test_cocos_boxes_of_128_photos_are_no_masks(shared: Path) -> None:
    with pytest.raises(DataError, match="only boxes, without outlines"):
        masks(shared / "data" / "coco128", "val")
