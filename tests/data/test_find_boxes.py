"""A folder is recognised, or it is said what was looked for; splits are found or made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobilevit.data.formats.folders import DataError
from mobilevit.tasks.detection.check import check_boxes
from mobilevit.tasks.detection.open import box_evaluation, box_splits, find_boxes


def make_image(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 80), (colour, 0, 0)).save(path, "PNG")
    return path


def put(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def yolo(root: Path, part: str, *classes: int) -> None:
    """Images of one box each."""
    for number, label in enumerate(classes):
        make_image(root / part / "images" / f"{number}.png")
        put(root, f"{part}/labels/{number}.txt", f"{label} .5 .5 .2 .2")


def voc(root: Path, part: str, *classes: str) -> None:
    for number, label in enumerate(classes):
        make_image(root / part / f"{number}.png")
        sides = "<xmin>11</xmin><ymin>11</ymin><xmax>50</xmax><ymax>60</ymax>"
        put(
            root,
            f"{part}/{number}.xml",
            f"<annotation><object><name>{label}</name><bndbox>{sides}</bndbox></object></annotation>",
        )


def coco(
    root: Path, part: str, *labels: int, name: str = "", categories: dict[int, str] | None = None
) -> Path:
    names = {1: "cat", 5: "dog"} if categories is None else categories
    images = [{"id": 100 + n, "file_name": f"{part}-{n}.png"} for n in range(len(labels))]
    for image in images:
        make_image(root / "images" / str(image["file_name"]))
    content: dict[str, Any] = {
        "images": images,
        "annotations": [
            {"id": n, "image_id": 100 + n, "category_id": label, "bbox": [10, 10, 30, 30]}
            for n, label in enumerate(labels)
        ],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
    }
    return put(root, name or f"annotations/instances_{part}.json", json.dumps(content))


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_splits_that_are_named_are_taken(tmp_path: Path, val: str) -> None:
    yolo(tmp_path / "y", "train", 0, 1, 1)
    yolo(tmp_path / "y", val, 1)
    voc(tmp_path / "v", "train", "dog", "cat")
    voc(tmp_path / "v", val, "dog")
    coco(tmp_path / "c", "train", 5, 1)
    coco(tmp_path / "c", val, 5)
    for folder, kind, count in (("y", "yolo", 3), ("v", "voc", 2), ("c", "coco", 2)):
        data = box_splits(tmp_path / folder)
        assert (data.train.format, len(data.train), len(data.val)) == (kind, count, 1)
        assert data.train.classes == data.val.classes
        assert data.val.annotation(0).labels.tolist() == [1]
        assert data.val.category_ids == data.train.category_ids
        assert f"({count} images), val: " in data.note and "(1 images)" in data.note
        assert len(box_evaluation(tmp_path / folder)) == 1
        assert len(box_evaluation(tmp_path / folder, split="Train")) == count


def test_the_first_of_several_held_out_parts_is_used(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 3), ("valid", 2)):
        yolo(tmp_path, part, *[0] * count)
    assert len(box_splits(tmp_path).val) == 2
    assert len(box_evaluation(tmp_path)) == 2
    assert len(box_evaluation(tmp_path, split="test")) == 3
    with pytest.raises(DataError, match=r"has no split 'nope', only .*valid"):
        box_evaluation(tmp_path, split="nope")


@pytest.mark.parametrize("make", [yolo, voc, coco])
@pytest.mark.parametrize("part", ["all", "train"])
def test_a_share_is_held_out_where_nothing_is_named(
    tmp_path: Path, make: Callable[..., object], part: str
) -> None:
    labels: list[Any] = [1] * 10
    make(tmp_path, part, *labels)
    data = box_splits(tmp_path, val_fraction=0.3, seed=4)
    assert (len(data.train), len(data.val)) == (7, 3)
    assert "30% of the images held out with seed 4 (7 + 3 images)" in data.note
    assert ("has only train" if part == "train" else "names no splits") in data.note
    again = box_splits(tmp_path, val_fraction=0.3, seed=4)
    assert again.val.files == data.val.files
    assert box_splits(tmp_path, val_fraction=0.3, seed=6).val.files != data.val.files
    assert len(box_evaluation(tmp_path)) == 10
    if part == "all":
        with pytest.raises(DataError, match="has no split 'val', it names no splits"):
            box_evaluation(tmp_path, split="val")


def test_trainval_is_trained_on_where_there_is_no_train(tmp_path: Path) -> None:
    voc(tmp_path, "Annotations", *["cat"] * 9)
    for name, members in (("trainval", "012345"), ("val", "345"), ("test", "678")):
        put(tmp_path, f"ImageSets/Main/{name}.txt", "\n".join(members))
    data = box_splits(tmp_path)
    assert (len(data.train), len(data.val)) == (6, 3)
    assert not {*data.train.files} & {*data.val.files}
    assert list(check_boxes(tmp_path, progress=False).splits) == ["trainval", "test"]
    put(tmp_path, "ImageSets/Main/train.txt", "0\n1\n2")
    assert len(box_splits(tmp_path).train) == 3
    assert len(box_splits(tmp_path).val) == 3
    assert list(check_boxes(tmp_path, progress=False).splits) == ["train", "val", "test"]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_the_fraction_lies_between_0_and_1(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match="val_fraction"):
        box_splits(tmp_path, val_fraction=fraction)


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    yolo(tmp_path, "val", 0, 0)
    with pytest.raises(DataError, match='has split "val" but nothing to train on'):
        box_splits(tmp_path)
    assert len(box_evaluation(tmp_path)) == 2


def test_images_in_both_parts_are_said(tmp_path: Path) -> None:
    yolo(tmp_path, "train", 0, 0)
    put(tmp_path, "data.yaml", "train: train/images\nval: train/images\nnames: [a]")
    assert "val (2 images), of which 2 are in train too" in box_splits(tmp_path).note.replace(
        "val: ", ""
    )


def test_a_class_in_val_only_is_an_error_that_names_it(tmp_path: Path) -> None:
    voc(tmp_path / "v", "train", "cat", "dog")
    voc(tmp_path / "v", "val", "dog", "wolf")
    coco(tmp_path / "c", "train", 1)
    coco(tmp_path / "c", "val", 7, categories={1: "cat", 7: "wolf", 8: "unused"})
    for folder in "vc":
        with pytest.raises(DataError, match='class "wolf" in val but not in train'):
            box_splits(tmp_path / folder)


def test_classes_of_test_are_none_of_train(tmp_path: Path) -> None:
    for part, names in (("train", "bc"), ("val", "c"), ("test", "a")):
        voc(tmp_path, part, *names)
    data = box_splits(tmp_path)
    assert data.train.classes == data.val.classes == ("b", "c")
    assert data.train.category_ids == data.val.category_ids == (1, 2)
    assert data.val.annotation(0).labels.tolist() == [1]


def test_classes_of_two_files_are_matched_by_name(tmp_path: Path) -> None:
    coco(tmp_path, "train", 1, 5)
    coco(tmp_path, "val", 1, categories={3: "unused", 1: "dog"})
    data = box_splits(tmp_path)
    assert data.val.classes == ("cat", "dog")
    assert data.val.annotation(0).labels.tolist() == [1]
    assert data.val.category_ids == (4, 1)  # val's own, and a free one for the cat it lacks
    assert data.train.category_ids == (1, 5)


def test_one_file_may_be_named(tmp_path: Path) -> None:
    train = coco(tmp_path, "train", 1, 1, 1)
    coco(tmp_path, "val", 5)
    assert len(box_evaluation(train)) == 3
    assert len(box_splits(train, val_fraction=0.4).val) == 1
    yolo(tmp_path / "y", "images", 0, 0)
    file = put(tmp_path / "y", "cells.yml", "train: images/images\nnames: [a]")
    assert len(box_splits(file).train) == 1
    with pytest.raises(DataError, match="is an archive; unpack it"):
        find_boxes(put(tmp_path, "set.zip", ""))
    for path, format in ((train, "voc"), (train, "yolo"), (file, "coco")):
        with pytest.raises(DataError, match=f"as {format} .* is read"):
            find_boxes(path, format=format)


def test_each_split_has_its_json(tmp_path: Path) -> None:
    coco(tmp_path, "train", 1, 1)
    coco(tmp_path, "captions", 1, name="annotations/captions_train.json")
    coco(tmp_path, "everything", 1, name="all.json")
    coco(tmp_path, "valid", 1, name="valid/_annotations.coco.json")
    data = box_splits(tmp_path)
    assert (len(data.train), len(data.val)) == (2, 1)
    assert "instances_train.json (2 images), val: _annotations.coco.json" in data.note
    assert set(find_boxes(tmp_path).parts) == {"train", "valid"}
    coco(tmp_path, "train2014", 1)
    with pytest.raises(DataError, match=r"several JSON files, .*train.*; give the one to read"):
        box_splits(tmp_path)


def test_of_several_yaml_files_the_one_called_data_is_read(tmp_path: Path) -> None:
    yolo(tmp_path, "train", 0, 0)
    put(tmp_path, "a.yaml", "names: [a]")
    put(tmp_path, "b.yaml", "names: [b]")
    with pytest.raises(DataError, match=r"several YAML files, a\.yaml, b\.yaml"):
        find_boxes(tmp_path)
    put(tmp_path, "data.yaml", "names: [c]")
    assert box_splits(tmp_path).train.classes == ("c",)


def test_two_formats_ask_for_a_choice(tmp_path: Path) -> None:
    yolo(tmp_path, "train", 0, 0)
    coco(tmp_path, "train", 1, 1, 1)
    voc(tmp_path, "train", "a", "a", "a", "a")
    with pytest.raises(DataError, match=r"coco and voc and yolo; say which .*--data.format coco"):
        box_splits(tmp_path)
    for format, count in (("coco", 3), ("voc", 4)):
        assert len(box_evaluation(tmp_path, format=format)) == count
    assert box_evaluation(tmp_path, format="yolo").format == "yolo"
    with pytest.raises(ValueError, match="format must be auto, coco, voc or yolo, not 'csv'"):
        find_boxes(tmp_path, format="csv")


def test_nothing_recognised_says_what_was_looked_for_and_is_there(tmp_path: Path) -> None:
    make_image(tmp_path / "photos" / "1.png")
    put(tmp_path, "boxes.csv", "1.png,1,2,3,4,cat")
    with pytest.raises(DataError) as caught:
        box_splits(tmp_path)
    for words in ("COCO", "VOC", "data.yaml", "it holds boxes.csv, photos"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match=r"looked for Pascal VOC \.xml files; it holds boxes"):
        box_splits(tmp_path, format="voc")
    with pytest.raises(DataError, match="no such file or folder"):
        box_splits(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it holds nothing"):
        box_splits(tmp_path / "empty")


def test_a_stated_format_says_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    put(tmp_path, "x.json", '{"images": []}')
    with pytest.raises(DataError, match=r'lacks the lists "annotations", "categories"'):
        box_splits(tmp_path, format="coco")


def test_no_boxes_at_all_is_an_error(tmp_path: Path) -> None:
    coco(tmp_path, "train", 1)
    file = coco(tmp_path, "val", 1)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(DataError, match="no boxes in val, 1 images"):
        box_splits(tmp_path)


def test_bad_images_stop_it_or_are_left_out(tmp_path: Path) -> None:
    coco(tmp_path, "train", 1, 5, 1)
    coco(tmp_path, "val", 1)
    (tmp_path / "images" / "train-1.png").unlink()
    with pytest.raises(DataError, match="1 of 3 images are missing"):
        box_splits(tmp_path)
    assert len(box_splits(tmp_path, on_bad="skip").train) == 2
    assert len(box_evaluation(tmp_path)) == 1
    with pytest.raises(DataError, match="1 of 3 images are missing"):
        box_evaluation(tmp_path, split="train")


def test_faults_of_a_split_that_is_not_used_do_not_matter(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        yolo(tmp_path, part, 0, 0)
    put(tmp_path, "test/labels/0.txt", "nonsense")
    assert len(box_splits(tmp_path).train) == 2
    with pytest.raises(DataError, match=r"0\.txt:1: not numbers"):
        box_evaluation(tmp_path, split="test")


def test_paths_with_steps_back_are_understood(tmp_path: Path) -> None:
    yolo(tmp_path, "train", 0, 0)
    put(tmp_path, "train.txt", "../" + tmp_path.name + "/train/images/0.png\n")
    data = box_evaluation(tmp_path / "train" / "..")
    assert len(data) == 1
    assert data.annotation(0).ids == (1,)


def test_real_sets(shared: Path) -> None:
    data = box_splits(shared / "data" / "bccd")
    assert (len(data.train), len(data.val)) == (205, 87)
    assert data.train.classes == data.val.classes == ("Platelets", "RBC", "WBC")
    assert data.note.startswith("Pascal VOC: train: train (205 images)")
    data = box_splits(shared / "data" / "coco128")
    assert (len(data.train), len(data.val)) == (128, 128)
    assert data.note.startswith("COCO: train: instances_train2017.json (128 images)")
    with pytest.raises(DataError, match="no boxes recognised"):
        box_splits(shared / "data" / "camvid")
