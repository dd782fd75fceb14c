"""A folder with masks is recognised, divided, and opened without what cannot be used."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.class_names import VOC_CLASSES
from mobilevit.data.formats.folders import DataError
from mobilevit.tasks.segmentation.open import each, find_mask_splits, mask_evaluation, mask_splits


def put(root: Path, name: str, *values: int) -> Path:
    """An index mask of 8 x 6 pixels with these values, or an image where there are none."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if values:
        Image.fromarray(np.resize(np.array(values, np.uint8), (6, 8))).save(path)
    else:
        Image.new("RGB", (8, 6)).save(path)
    return path


def folders(root: Path, *, train: str = "train/", val: str = "val/") -> Path:
    """Four and two images of the classes 0 to 2."""
    for number in range(6):
        split = train if number < 4 else val
        put(root, f"{split}images/{number}.jpg")
        put(root, f"{split}masks/{number}.png", 0, 1, 2)
    return root


def voc(root: Path) -> Path:
    for part, name in (("train", "a"), ("val", "b")):
        put(root, f"JPEGImages/{name}.jpg")
        put(root, f"SegmentationClass/{name}.png", 0, 20, 255)
        (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Segmentation" / f"{part}.txt").write_text(name)
    return root


def ade20k(root: Path) -> Path:
    for part in ("training", "validation"):
        put(root, f"images/{part}/1.jpg")
        put(root, f"annotations/{part}/1.png", 0, 1, 150)
    (root / "objectInfo150.txt").touch()
    return root


def cityscapes(root: Path) -> Path:
    for part in ("train", "val"):
        put(root, f"leftImg8bit/{part}/a/a_leftImg8bit.png")
        put(root, f"gtFine/{part}/a/a_gtFine_labelIds.png", 0, 7)
    return root


def coco(root: Path, names: dict[int, str] | None = None) -> Path:
    names = names or {1: "person", 2: "bicycle"}
    for part in ("train", "val"):
        put(root, f"images/{part}2017/7.jpg")
        put(root, f"annotations/panoptic_{part}2017/7.png", 0)
        Image.fromarray(np.full((6, 8, 3), (1, 0, 0), np.uint8)).save(
            root / "annotations" / f"panoptic_{part}2017" / "7.png"
        )
        categories = [{"id": number, "name": name} for number, name in names.items()]
        about = {"images": [{"id": 7, "file_name": "7.jpg", "height": 6, "width": 8}]}
        outline = [[0, 0, 4, 0, 4, 4, 0, 4]]
        thing = {"image_id": 7, "category_id": 2, "segmentation": outline}
        panoptic = {
            "image_id": 7, "file_name": "7.png", "segments_info": [{"id": 1, "category_id": 2}],
        }  # fmt: skip
        for kind, annotation in (("instances", thing), ("panoptic", panoptic)):
            content = {**about, "categories": categories, "annotations": [annotation]}
            (root / "annotations" / f"{kind}_{part}2017.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("make", "format", "classes"),
    [
        (folders, "folders", 3),
        (voc, "voc", 21),
        (ade20k, "ade20k", 150),
        (cityscapes, "cityscapes", 19),
        (coco, "coco", 3),
    ],
)
def test_formats_are_recognised(tmp_path: Path, make, format: str, classes: int) -> None:
    data = mask_splits(make(tmp_path))
    assert (data.train.format, data.val.format) == (format, format)
    assert data.train.classes == data.val.classes and len(data.train.classes) == classes
    assert f"({len(data.train)} images)" in data.note
    assert mask_evaluation(tmp_path).images == data.val.images
    assert data.val.mask(0).shape == (6, 8)
    stated = mask_splits(tmp_path, format=format)
    assert stated.train.images == data.train.images


def test_coco_may_be_read_in_three_ways(tmp_path: Path) -> None:
    root = coco(tmp_path)
    assert mask_splits(root, format="coco").val.classes == ("background", "person", "bicycle")
    assert mask_splits(root, format="coco_panoptic").val.classes == ("person", "bicycle")
    val = mask_evaluation(root, format="coco_voc", classes=VOC_CLASSES)
    assert val.classes == VOC_CLASSES and np.unique(val.mask(0)).tolist() == [0, 2]
    for path in (root / "annotations").glob("instances*"):
        path.unlink()
    assert mask_splits(root).val.format == "coco_panoptic"
    assert np.unique(mask_evaluation(root, format="coco_voc").mask(0)).tolist() == [2]


def test_nothing_recognised_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError) as caught:
        mask_splits(tmp_path)
    for words in (str(tmp_path), "images", "masks", "instances_*.json", "There are: cat/, notes"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match="nothing that could be voc is recognised"):
        mask_evaluation(tmp_path, format="voc")
    with pytest.raises(DataError, match="no such folder"):
        mask_splits(tmp_path / "nothing")
    with pytest.raises(DataError, match="is a file, not a folder"):
        mask_splits(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"format must be one of auto, folders, .*not 'png'"):
        mask_splits(tmp_path, format="png")


def test_one_pair_of_folders_is_divided(tmp_path: Path) -> None:
    root = folders(tmp_path, train="", val="")
    data = mask_splits(root, val_fraction=0.5, seed=1)
    assert len(data.train) == len(data.val) == 3
    assert not set(data.train.images) & set(data.val.images)
    assert "50% held out with seed 1 (3 + 3 images)" in data.note
    assert mask_splits(root, val_fraction=0.5, seed=1).val.images == data.val.images
    assert len(mask_evaluation(root)) == 6
    with pytest.raises(ValueError, match="val_fraction"):
        mask_splits(root, val_fraction=0)


def test_train_alone_is_no_data_set(tmp_path: Path) -> None:
    root = folders(tmp_path, val="train/")
    for find in (mask_splits, mask_evaluation):
        with pytest.raises(DataError, match="for train, but none for val, valid"):
            find(root)
    (root / "train").rename(root / "val")
    with pytest.raises(DataError, match="for val, but none for train"):
        mask_splits(root)
    assert len(mask_evaluation(root)) == 6


def test_a_models_classes_decide_the_order(tmp_path: Path) -> None:
    root = cityscapes(tmp_path)
    own = mask_splits(root).val.classes
    data = mask_splits(root, classes=[*reversed(own), "more"])
    assert data.train.classes == data.val.classes == (*reversed(own), "more")
    assert np.unique(data.val.mask(0)).tolist() == [18, 255]
    with pytest.raises(DataError, match="unknown classes: sidewalk"):
        mask_evaluation(root, classes=["road"])


def test_categories_of_val_are_matched_by_name(tmp_path: Path) -> None:
    root = coco(tmp_path)
    file = root / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 2, "name": "person"}, {"id": 9, "name": "bicycle"}]
    file.write_text(json.dumps(content))
    data = mask_splits(root)
    assert [np.unique(part.mask(0)).tolist() for part in (data.train, data.val)] == [[0, 2], [0, 1]]


def test_what_is_ignored_is_stated_for_folders_only(tmp_path: Path) -> None:
    data = mask_splits(folders(tmp_path / "a"), ignore=2)
    assert data.train.classes == ("0", "1") and data.train.ignore == 2
    with pytest.raises(DataError, match="is read as voc, which says itself what is ignored"):
        mask_splits(voc(tmp_path / "b"), ignore=2)


# Bad files


def spoil(root: Path) -> dict[str, str]:
    """Spoil images 0 to 2 and 5 of `folders`, and add a bad one: what is said of each."""
    (root / "train/masks/0.png").unlink()
    put(root, "train/images/1.jpg").write_bytes(b"no image")
    path = root / "train/masks/2.png"
    path.write_bytes(path.read_bytes()[:50])
    Image.new("L", (6, 8)).save(root / "val/masks/5.png")
    path = put(root, "train/images/6.jpg")
    path.write_bytes(path.read_bytes()[:-5])
    put(root, "train/masks/6.png", 0, 1, 2)
    return {
        "0.jpg": "no mask",
        "1.jpg": "text file",
        "2.png": "cannot be decoded",
        "5.png": "6 x 8",
        "6.jpg": "truncated",
    }


def test_all_bad_files_are_an_error_at_once(tmp_path: Path) -> None:
    told = spoil(folders(tmp_path))
    with pytest.raises(DataError, match=r"5 files cannot be used.*--data\.on_bad skip") as caught:
        mask_splits(tmp_path)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 5
    for name, reason in told.items():
        assert any(f"/{name}: " in line and reason in line for line in lines)
    with pytest.raises(DataError, match="1 files"):
        mask_evaluation(tmp_path)
    with pytest.raises(ValueError, match="on_bad"):
        mask_splits(tmp_path, on_bad="ignore")  # type: ignore[arg-type]


def test_bad_files_may_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = spoil(folders(tmp_path))
    names = ["a", "b", "c"]
    put(tmp_path, "val/images/7.jpg")
    put(tmp_path, "val/masks/7.png", 0, 7)  # a value that is no class
    with caplog.at_level(logging.WARNING):
        data = mask_splits(tmp_path, classes=names, on_bad="skip")
    assert [path.name for path in (*data.train.images, *data.val.images)] == ["3.jpg", "4.jpg"]
    assert data.train.unmatched == ()
    assert data.note.endswith("of the images 5 left out")
    assert "6 skipped" in caplog.text and "value 7" in caplog.text
    for reason in told.values():
        assert reason in caplog.text
    val = mask_evaluation(tmp_path, classes=names, on_bad="skip")
    assert [path.name for path in val.images] == ["4.jpg"]
    (tmp_path / "val/masks/4.png").write_bytes(b"")
    with pytest.raises(DataError, match="not one of 3 images can be used"):
        mask_evaluation(tmp_path, classes=names, on_bad="skip")


def test_splits_as_they_are_keep_what_lacks_a_partner(tmp_path: Path) -> None:
    folders(tmp_path)
    (tmp_path / "train/masks/0.png").unlink()
    (tmp_path / "val/images/4.jpg").unlink()
    data = find_mask_splits(tmp_path)
    assert [path.name for path, _ in data.train.unmatched + data.val.unmatched] == [
        "0.jpg", "4.png",
    ]  # fmt: skip


def test_results_come_in_order() -> None:
    assert each(lambda at: at * at, 50, workers=3) == [at * at for at in range(50)]


# Real ones


def test_camvid(shared: Path) -> None:
    data = mask_splits(shared / "data" / "camvid", ignore=11)
    assert (len(data.train), len(data.val)) == (200, 60)
    assert data.train.classes == tuple(map(str, range(11))) and data.train.ignore == 11
    assert data.val.mask(0).shape == (360, 480)


def test_masks_of_128_photos_of_coco(shared: Path) -> None:
    root = shared / "data" / "coco128"
    with pytest.raises(DataError, match="56 files cannot be used"):
        mask_splits(root, ignore=0)
    data = mask_splits(root, ignore=0, on_bad="skip")
    assert (len(data.train), len(data.val)) == (100, 100)
    assert data.train.classes[0] == "1" and len(data.train.classes) <= 200
    assert data.train.ignore == 255
    val = mask_evaluation(root, ignore=0, classes=data.train.classes, on_bad="skip")
    np.testing.assert_array_equal(val.mask(3), data.val.mask(3))
