"""Data sets of known form give the classes that they are known for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.class_names import ADE20K_CLASSES, VOC_CLASSES
from mobilevit.data.formats.folders import DataError
from mobilevit.data.images import ImageError
from mobilevit.data.mask_coco import COCO_IDS_OF_VOC, find_coco, open_coco
from mobilevit.data.mask_sets import (
    find_ade20k,
    find_cityscapes,
    find_voc,
    open_ade20k,
    open_cityscapes,
    open_voc,
    surely_ade20k,
)
from mobilevit.tasks.segmentation.dataset import MaskSizeError, voc_palette


def make_image(path: Path, width: int = 8, height: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)
    return path


def mask(path: Path, *values: int) -> Path:
    """8 x 6 pixels with these values, over and over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), (6, 8))).save(path)
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# Pascal VOC


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("a", "b", "c", "d"):
        make_image(base / "JPEGImages" / f"{name}.jpg")
    for name in ("a", "b"):
        path = mask(base / "SegmentationClass" / f"{name}.png", 0, 20, 255)
        image = Image.open(path).convert("P")
        image.putdata(np.resize([0, 20, 255], 48).tolist())
        image.putpalette([channel for colour in voc_palette() for channel in colour])
        image.save(path)
    mask(base / "SegmentationClassAug" / "a.png", 0, 1)
    mask(base / "SegmentationClassAug" / "c.png", 0, 15)
    write(base / "ImageSets" / "Segmentation" / "train.txt", "a\n")
    write(base / "ImageSets" / "Segmentation" / "val.txt", "b\n")
    return tmp_path


def test_voc_has_21_classes_of_palette_indices(voc: Path) -> None:
    for root in (voc, voc / "VOCdevkit", voc / "VOCdevkit" / "VOC2012"):
        assert find_voc(root) == voc / "VOCdevkit" / "VOC2012"
    base = voc / "VOCdevkit" / "VOC2012"
    train, val = open_voc(base, "train"), open_voc(base, "val")
    assert [train.source(0).stem, val.source(0).stem] == ["a", "b"]
    assert train.classes == VOC_CLASSES and len(VOC_CLASSES) == 21 and train.ignore == 255
    assert np.unique(train.mask(0)).tolist() == [0, 20, 255]


@pytest.mark.parametrize("folder", ["ImageSets/Segmentation", "list"])
@pytest.mark.parametrize("name", ["train_aug", "trainaug"])
def test_the_list_of_voc_and_sbd_is_used(voc: Path, folder: str, name: str) -> None:
    base = voc / "VOCdevkit" / "VOC2012"
    paths = "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n"
    write(base / folder / f"{name}.txt", f"c\n{paths}a\n\nd\n")
    train = open_voc(base, "train")
    assert [path.parent.name for path in train.masks] == [
        "SegmentationClassAug", "SegmentationClassAug", "SegmentationClass",
    ]  # fmt: skip
    assert [path.stem for path in train.images] == ["c", "a", "a"]
    assert [(path.name, "is missing" in reason) for path, reason in train.unmatched] == [
        ("d.jpg", True)
    ]
    assert np.unique(train.mask(0)).tolist() == [0, 15]


def test_voc_in_colours_and_with_other_classes(voc: Path) -> None:
    base = voc / "VOCdevkit" / "VOC2012"
    path = base / "SegmentationClass" / "a.png"
    Image.open(path).convert("RGB").save(path)
    assert np.unique(open_voc(base, "train").mask(0)).tolist() == [0, 20, 255]
    write(base / "classes.txt", "\n".join(str(name) * 2 for name in VOC_CLASSES))
    assert open_voc(base, "train").classes[1] == "aeroplaneaeroplane"


def test_voc_without_lists_is_none(voc: Path) -> None:
    base = voc / "VOCdevkit" / "VOC2012"
    (base / "ImageSets" / "Segmentation" / "train.txt").unlink()
    with pytest.raises(DataError, match=r"no train_aug\.txt or trainaug\.txt or train\.txt"):
        open_voc(base, "train")
    (base / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match="not one of 1 images"):
        open_voc(base, "val")
    (base / "ImageSets" / "Segmentation" / "val.txt").unlink()
    assert find_voc(voc) is None


# ADE20K and Cityscapes


def test_ade20k_counts_from_one(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for part in ("training", "validation"):
        make_image(root / "images" / part / "1.jpg")
        mask(root / "annotations" / part / "1.png", 0, 1, 150)
    assert find_ade20k(tmp_path) == find_ade20k(root) == surely_ade20k(root) == root
    val = open_ade20k(root, "val")
    assert len(val.classes) == len(ADE20K_CLASSES) == len(set(ADE20K_CLASSES)) == 150
    assert (val.classes[0], val.classes[149], val.ignore) == ("wall", "flag", 255)
    assert val.mask(0).ravel()[:3].tolist() == [255, 0, 149]
    mask(val.masks[0], 151)
    with pytest.raises(ImageError, match=r"no class has the value 151; classes are 1 to 150"):
        val.mask(0)
    moved = root.rename(tmp_path / "scenes")
    assert find_ade20k(moved) == moved and surely_ade20k(moved) is None
    write(moved / "objectInfo150.txt", "")
    assert surely_ade20k(moved) == moved


def test_cityscapes_has_19_classes(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a_000000_000000", "a_000001_000000"):
            make_image(tmp_path / "leftImg8bit" / part / "a" / f"{name}_leftImg8bit.png")
            mask(tmp_path / "gtFine" / part / "a" / f"{name}_gtFine_labelIds.png", 0, 7, 26, 29, 33)
    assert find_cityscapes(tmp_path) == tmp_path
    train = open_cityscapes(tmp_path, "train")
    assert len(train) == 2 and len(train.classes) == 19 and train.ignore == 255
    assert [train.classes[place] for place in (0, 13, 18)] == ["road", "car", "bicycle"]
    assert train.mask(0).ravel()[:5].tolist() == [255, 0, 13, 255, 18]
    train.masks[1].unlink()
    assert len(open_cityscapes(tmp_path, "train").unmatched) == 1
    (tmp_path / "leftImg8bit" / "val").rename(tmp_path / "leftImg8bit" / "other")
    with pytest.raises(DataError, match="val of Cityscapes cannot be listed"):
        open_cityscapes(tmp_path, "val")


# COCO


def square(left: int, top: int, side: int) -> list[list[float]]:
    right, low = left + side, top + side
    return [[left, top, right, top, right, low, left, low]]


def instances(root: Path, annotations: list[dict[str, Any]], **image: Any) -> Path:
    """A data set of two images of 40 x 30, of which the second has no object."""
    images = [
        {"id": 7, "file_name": "7.jpg", "height": 30, "width": 40, **image},
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
            make_image(root / f"{part}2017" / str(one["file_name"]), 40, 30)
        write(root / "annotations" / f"instances_{part}2017.json", json.dumps(content))
    return root


def test_the_ids_of_vocs_classes() -> None:
    named = dict(zip(VOC_CLASSES, COCO_IDS_OF_VOC, strict=True))
    assert (named["background"], named["person"], named["tvmonitor"]) == (0, 1, 72)


def test_smaller_objects_lie_on_larger_ones(tmp_path: Path) -> None:
    small = {"category_id": 44, "segmentation": square(5, 5, 4)}
    large = {"category_id": 1, "segmentation": square(0, 0, 20)}
    for number, order in enumerate(([small, large], [large, small])):
        val = open_coco(instances(tmp_path / str(number), order), "val", kind="instances")
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
    val = open_coco(root, "val", kind="instances", voc=True)
    assert val.classes == VOC_CLASSES and val.format == "coco_voc"
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
    np.testing.assert_array_equal(open_coco(root, "val", kind="instances").mask(0), expected)


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
    np.testing.assert_array_equal(open_coco(root, "val", kind="instances").mask(0), shape)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools and NumPy 2
def test_polygons_are_filled_as_pycocotools_fills_them(tmp_path: Path) -> None:
    from pycocotools import mask as coco

    draw = np.random.default_rng(1)
    outline = [(draw.random(10) * 29).round(2).tolist() for _ in range(3)]
    root = instances(tmp_path, [{"category_id": 1, "segmentation": outline}])
    expected = coco.decode(coco.merge(coco.frPyObjects(outline, 30, 40)))
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(open_coco(root, "val", kind="instances").mask(0), expected)


@pytest.mark.parametrize("counts", [[30 * 41], [-1, 1201], "PP", [], None, ["a"]])
def test_masks_of_another_size_or_damaged(tmp_path: Path, counts: object) -> None:
    outline = {"size": [30, 40], "counts": counts}
    root = instances(tmp_path, [{"category_id": 1, "segmentation": outline}])
    val = open_coco(root, "val", kind="instances")
    with pytest.raises(
        ImageError, match=r"instances_val2017\.json: 7\.jpg: .*(another size|Error)"
    ):
        val.mask(0)


def test_images_without_objects_are_evaluated_but_not_trained_on(tmp_path: Path) -> None:
    root = instances(tmp_path, [{"category_id": 73, "segmentation": square(0, 0, 9)}])
    assert len(open_coco(root, "val", kind="instances")) == 2
    train = open_coco(root, "train", kind="instances")
    assert [path.name for path in train.images] == ["7.jpg"]
    assert "without 1 images" in train.origin
    with pytest.raises(DataError, match="not one of its 2 images"):
        open_coco(root, "train", kind="instances", voc=True)


def test_images_are_looked_for_where_they_usually_are(tmp_path: Path) -> None:
    root = instances(tmp_path, [{"category_id": 1, "segmentation": square(0, 0, 9)}])
    (root / "val2017").rename(root / "val")
    assert open_coco(root, "val", kind="instances").source(0) == root / "val" / "7.jpg"
    (root / "images").mkdir()
    (root / "val").rename(root / "images" / "val2017")
    val = open_coco(root, "val", kind="instances")
    assert val.source(0) == root / "images" / "val2017" / "7.jpg"
    val.source(1).unlink()
    assert [path.name for path, _ in open_coco(root, "val", kind="instances").unmatched] == [
        "8.jpg"
    ]
    assert find_coco(root, "instances") == root and find_coco(root, "panoptic") is None


def test_a_image_of_another_size_than_stated(tmp_path: Path) -> None:
    root = instances(tmp_path, [{"category_id": 1, "segmentation": square(0, 0, 9)}], height=31)
    with pytest.raises(MaskSizeError, match=r"7\.jpg: the mask has 40 x 31 pixels"):
        open_coco(root, "val", kind="instances").mask(0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[", "JSONDecodeError"),
        ("{}", "KeyError 'categories'"),
        ('{"categories": [], "images": [], "annotations": [{"image_id": 3}]}', "KeyError 3"),
    ],
)
def test_what_is_not_cocos_is_told(tmp_path: Path, content: str, reason: str) -> None:
    write(tmp_path / "instances_val.json", content)
    with pytest.raises(DataError, match=rf"instances_val\.json: is not as COCO has it: {reason}"):
        open_coco(tmp_path, "val", kind="instances")
    with pytest.raises(DataError, match="has no instances_train"):
        open_coco(tmp_path, "train", kind="instances")


def test_boxes_alone_make_no_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="boxes only"):
        open_coco(instances(tmp_path, [{"category_id": 1}]), "val", kind="instances")


def panoptic(root: Path, ids: np.ndarray, segments: list[dict[str, Any]]) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "7.jpg", "height": 6, "width": 8}],
        "categories": [{"id": 1, "name": "person"}, {"id": 200, "name": "rug"}],
        "annotations": [{"image_id": 7, "file_name": "7.png", "segments_info": segments}],
    }
    make_image(root / "val2017" / "7.jpg")
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], 2).astype(np.uint8)
    path = root / "annotations" / "panoptic_val2017" / "7.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(rgb).save(path)
    write(root / "annotations" / "panoptic_val2017.json", json.dumps(content))
    return root


def test_panoptic_segments_have_24_bit_numbers(tmp_path: Path) -> None:
    ids = np.resize([0, 5, 70_000, 900], (6, 8))
    segments = [
        {"id": 5, "category_id": 1},
        {"id": 70_000, "category_id": 200},
        {"id": 900, "category_id": 1, "iscrowd": 1},
    ]
    root = panoptic(tmp_path / "a", ids, segments)
    val = open_coco(root, "val", kind="panoptic")
    assert val.classes == ("person", "rug") and val.ignore == 255
    assert val.mask(0).ravel()[:4].tolist() == [255, 0, 1, 255]
    voc = open_coco(root, "val", kind="panoptic", voc=True)
    assert voc.mask(0).ravel()[:4].tolist() == [255, 15, 0, 255]
    root = panoptic(tmp_path / "b", ids, segments[:1])
    with pytest.raises(ImageError, match=r"says nothing of its segments \[900, 70000\]"):
        open_coco(root, "val", kind="panoptic").mask(0)


def test_cocos_boxes_of_128_photos_are_no_masks(shared: Path) -> None:
    with pytest.raises(DataError, match="boxes only"):
        open_coco(shared / "data" / "coco128", "val", kind="instances")
