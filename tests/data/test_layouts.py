"""Layouts of labelled images as they are met: splits by any name, tables, wrapped folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobilevit.commands.check import check
from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import ReadOptions
from mobilevit.data.formats.files import find_split
from mobilevit.data.formats.registry import parse
from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import LabelSamples, Splits
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.segmentation.dataset import MaskSamples
from tests.data.factories import image, image_bytes, mask, touch, write


def opened(root: Path, **options: object) -> Splits[LabelSamples]:
    data = DataOptions(root=str(root), check=False, **options)  # type: ignore[arg-type]
    return open_splits(LabelSamples, data)


def labels(samples: LabelSamples) -> dict[str, str]:
    """File name -> class."""
    return {
        Path(samples.name(index)).name: samples.classes[label]
        for index, label in enumerate(samples.labels.tolist())
    }


# Splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("seg_train", "train"),
        ("Training Data", "train"),
        ("TestImages", "test"),
        ("val-2017", "val"),
        ("my.valid", "valid"),
        ("HOLDOUT", "holdout"),
        ("obj_train_data", "train"),
        ("constraint", None),
        ("latest", None),
        ("train_test", None),
    ],
)
def test_words_that_name_a_split(name: str, split: str | None) -> None:
    assert find_split(name, within=True) == split


@pytest.mark.parametrize("train", ["seg_train", "Training", "train_images", "train/train"])
@pytest.mark.parametrize("val", ["seg_test", "Validation", "my holdout", "testing/test"])
def test_folders_that_speak_of_splits_are_splits(tmp_path: Path, train: str, val: str) -> None:
    for split, count in ((train, 2), (val, 1)):
        touch(tmp_path, *(f"{split}/{name}/{n}.jpg" for name in "ab" for n in range(count)))
    touch(tmp_path, "seg_pred/9.jpg")
    found = opened(tmp_path)
    assert (len(found.train), len(found.val)) == (4, 2)
    assert found.train.classes == found.val.classes == ("a", "b")


def test_words_of_splits_are_the_same_for_boxes_and_masks(tmp_path: Path) -> None:
    for split in ("my_train", "my_test"):
        image(tmp_path / f"boxes/{split}/images/1.png")
        write(tmp_path, f"boxes/{split}/labels/1.txt", "0 .5 .5 .5 .5")
        image(tmp_path / f"masks/{split}/images/1.png", (8, 6))
        mask(tmp_path / f"masks/{split}/masks/1.png", 0, 1)
    for kind, samples_type in (("boxes", BoxSamples), ("masks", MaskSamples)):
        found = open_splits(samples_type, DataOptions(root=str(tmp_path / kind)))
        assert (len(found.train), len(found.val)) == (1, 1)
        assert "my_train" in found.train.name(0)


def test_a_word_in_a_folder_without_train_is_no_split(tmp_path: Path) -> None:
    for number in range(4):
        image(tmp_path / f"test_tubes/{number}.png")
        write(tmp_path, f"test_tubes/{number}.txt", "0 .5 .5 .5 .5")
    found = open_splits(BoxSamples, DataOptions(root=str(tmp_path)))
    assert (len(found.train), len(found.val)) == (3, 1)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["train/a/1.jpg", "train/b/1.jpg", "cat/1.jpg"], "train is named after a split .* cat"),
        (["train/1.jpg", "test/1.jpg"], "test, train are named after splits, but hold images"),
        (["train/a/1.jpg", "Training/a/1.jpg"], "Training and train are both named after train"),
        (["val/a/1.jpg", "test/a/1.jpg"], 'has splits "val", "test" but nothing to train on'),
    ],
)
def test_names_of_splits_that_leave_a_doubt_are_refused(
    tmp_path: Path, files: list[str], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        opened(touch(tmp_path, *files))


# Class folders


def test_folders_around_the_class_folders_are_passed_through(tmp_path: Path) -> None:
    touch(tmp_path, *(f"archive/pets/{name}/{n}.jpg" for name in ("cat", "dog") for n in "12"))
    found = opened(tmp_path)
    assert found.train.classes == ("cat", "dog")
    assert f"classes are the folders in {tmp_path / 'archive' / 'pets'}" in found.note
    touch(tmp_path, "archive/pets/train/cat/1.jpg")
    with pytest.raises(DataError, match="train is named after a split"):
        opened(tmp_path)


def test_folders_around_splits_are_passed_through(tmp_path: Path) -> None:
    for split in ("train", "val"):
        touch(tmp_path, f"set/{split}/images/cat/1.jpg", f"set/{split}/images/dog/1.jpg")
    found = opened(tmp_path)
    assert found.train.classes == ("cat", "dog") and len(found.val) == 2


def test_a_class_with_deeper_folders_in_val_alone_stays_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/cat/in/1.jpg", "val/cat/out/2.jpg")
    assert set(labels(opened(tmp_path).val).values()) == {"cat"}


def test_one_class_is_refused_by_train_and_check(tmp_path: Path) -> None:
    for number in range(3):
        image(tmp_path / f"photos/{number}.jpg", seed=number)
    with pytest.raises(DataError, match="all 3 images are of one class, photos; training needs"):
        opened(tmp_path)
    report = check(tmp_path, progress=False)
    assert report.exit_code == 1 and "are of one class, photos" in str(report)


def test_what_is_left_out_is_named_by_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        write(tmp_path, f"{'ab'[number % 2]}/{number}.jpg", image_bytes(number))
        write(tmp_path, f"a/{number}.heic")
    open_splits(LabelSamples, DataOptions(root=str(tmp_path)))
    assert "4 images are in formats that are not read" in caplog.text and "a/0.heic" in caplog.text
    caplog.clear()
    image(tmp_path / "boxes/images/1.png")
    image(tmp_path / "boxes/images/2.png")
    for number in range(1, 4):
        write(tmp_path, f"boxes/labels/{number}.txt", "0 .5 .5 .5 .5")
    open_splits(BoxSamples, DataOptions(root=str(tmp_path / "boxes")))
    assert "3.txt: no image belongs to it" in caplog.text


# Tables


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("labels.csv", "filename,label\n1.jpg,cat\n2.jpg,dog\n3.jpg,cat\n4.jpg,dog"),
        ("labels.csv", "\ufeffImage;Class\r\n1.jpg;cat\r\n2.jpg;dog\r\n3.jpg;cat\r\n4.jpg;dog\r\n"),
        ("labels.tsv", "id\tbreed\n1\tcat\n2\tdog\n3\tcat\n4\tdog"),
        ("labels.csv", "image,label,split\n1.jpg,cat,train\n2.jpg,dog,Train\n3.jpg,cat,test\n"
                       "images/4.jpg,dog,test"),
        ("images/metadata.csv", "file_name,label\n1.jpg,cat\n2.jpg,dog\n3.jpg,cat\n4.jpg,dog"),
        ("images/metadata.jsonl", "\n".join(
            json.dumps({"file_name": f"{n}.jpg", "label": name})
            for n, name in enumerate(("cat", "dog", "cat", "dog"), start=1))),
    ],
)  # fmt: skip
def test_a_table_states_the_classes(tmp_path: Path, table: str, text: str) -> None:
    touch(tmp_path, *(f"images/{number}.jpg" for number in range(1, 5)))
    write(tmp_path, table, text)
    for root in (tmp_path, tmp_path / table):
        if root.is_file() and root.suffix == ".jsonl":
            continue
        found = opened(root, val_fraction=0.5)
        assert found.train.dataset.format == "table" and len(found.train) == 2
        assert labels(found.train) | labels(found.val) == {
            "1.jpg": "cat", "2.jpg": "dog", "3.jpg": "cat", "4.jpg": "dog",
        }  # fmt: skip
    if "split" in text:
        assert labels(found.val) == {"3.jpg": "cat", "4.jpg": "dog"}


def test_each_split_may_have_its_table(tmp_path: Path) -> None:
    for split, numbers in (("train", "12"), ("test", "34")):
        touch(tmp_path, *(f"{split}/{n}.jpg" for n in numbers))
        rows = [json.dumps({"file_name": f"{n}.jpg", "label": int(n) % 2}) for n in numbers]
        write(tmp_path, f"{split}/metadata.jsonl", "\n".join(rows))
    write(tmp_path, "sample_submission.csv", "id,label\n3,0\n")
    found = opened(tmp_path)
    assert labels(found.train) == {"1.jpg": "1", "2.jpg": "0"}
    assert labels(found.val) == {"3.jpg": "1", "4.jpg": "0"}


def test_what_is_wrong_with_a_table_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, *(f"images/{number}.jpg" for number in range(6)))
    rows = ["0.jpg,a", "1.jpg,b", "2.jpg,", "9.jpg,a", "3.jpg,a", "4.jpg,b"]
    file = write(tmp_path, "labels.csv", "\n".join(["image,label", *rows]))
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert f"{file}:4: 2.jpg has no single label" in str(caught.value)
    assert f"{file}:5: image missing: 9.jpg" in str(caught.value)
    write(tmp_path, "labels.csv", "\n".join(["image,label", *rows, "0.jpg,b"]))
    with pytest.raises(DataError, match=r"0\.jpg is of class b here and of a before"):
        opened(tmp_path)
    write(tmp_path, "labels.csv", "\n".join(["image,label", *rows[:2], *rows[4:]]))
    assert len(opened(tmp_path).train) == 2
    assert "2 images are not part of the data set: images/2.jpg, images/5.jpg" in caplog.text
    write(tmp_path, "more.csv", "image,label\n5.jpg,a")
    caplog.clear()
    opened(file)  # the table, in place of its folder
    assert "2 images are not part of the data set: images/2.jpg, images/5.jpg" in caplog.text
    with pytest.raises(DataError, match=r"several tables of labels, labels\.csv, more\.csv"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["_classes.csv", "labels.csv"])
def test_a_column_of_0_and_1_for_each_class_is_a_table_of_labels(tmp_path: Path, name: str) -> None:
    for split, rows in (("train", "1.jpg, 1, 0, 0\n2.jpg, 0, 0, 1"), ("valid", "3.jpg,0,0.0,1.0")):
        touch(tmp_path, *(f"{split}/{row[:5]}" for row in rows.split("\n")))
        write(tmp_path, f"{split}/{name}", f"filename, Cat, old dog, Dog\n{rows}\n")
    found = opened(tmp_path)
    assert found.train.dataset.format == "table" and found.train.classes == ("Cat", "Dog")
    assert labels(found.train) == {"1.jpg": "Cat", "2.jpg": "Dog"}
    assert labels(found.val) == {"3.jpg": "Dog"}


def test_columns_of_0_and_1_may_be_numbers_of_json_next_to_those_of_rows(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.jpg" for n in range(4)))
    rows = [{"file_name": f"{n}.jpg", "id": n, "a": n % 2, "b": 1.0 - n % 2} for n in range(4)]
    tables = {"metadata.jsonl": "\n".join(map(json.dumps, rows))}
    tables["labels.csv"] = ",filename,index,a,b\n" + "".join(
        f"{n},{n}.jpg,{n},{n % 2},{1 - n % 2}\n" for n in range(4)
    )
    for name, text in tables.items():
        file = write(tmp_path, name, text)
        found = opened(tmp_path, val_fraction=0.5)
        stated = labels(found.train) | labels(found.val)
        assert stated == {"0.jpg": "b", "1.jpg": "a", "2.jpg": "b", "3.jpg": "a"}
        file.unlink()


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("metadata.jsonl", {"objects": {"bbox": [[1, 2, 3, 4]]}, "width": 3}),
        ("metadata.jsonl", {"objects": {"bbox": []}}),
        ("metadata.jsonl", {"tags": [1], "blurry": 0, "night": True, "text": None}),
        ("metadata.jsonl", {"blurry": 0, "night": 1}),
        ("attributes.csv", {"blurry": 0, "night": 1}),
    ],
)
@pytest.mark.parametrize("split", ["", "train/"])
def test_what_a_table_states_beside_classes_leaves_class_folders(
    tmp_path: Path, split: str, name: str, row: dict[str, object]
) -> None:
    images = ("cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg")
    touch(tmp_path, *(split + image for image in images))
    rows = [{"file_name": image, **row} for image in images]
    lines = list(map(json.dumps, rows))
    if name.endswith(".csv"):
        lines = [",".join(map(str, cells)) for cells in (rows[0], *(r.values() for r in rows))]
    file = write(tmp_path, split + name, "\n".join(lines))
    found = opened(tmp_path).train
    assert found.dataset.format == "folders" and found.classes == ("cat", "dog")
    if row == {"blurry": 0, "night": 1}:
        (dataset,) = parse(file, ReadOptions("labels"))
        assert dataset.format == "table" and dataset.classes == ("night",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("3.jpg,1,1,0", "3.jpg is of 2 classes, a, b; multi-label classification is not supported"),
        ("3.jpg,0,0,0", "3.jpg is of none of the classes a, b, c"),
        ("3.jpg,0,0.5,1", "3.jpg has '0.5' for b, instead of 0 or 1"),
    ],
)
def test_a_row_that_has_not_exactly_one_1_is_refused(tmp_path: Path, row: str, reason: str) -> None:
    touch(tmp_path, "train/1.jpg", "train/2.jpg", "train/3.jpg")
    text = f"filename,a,b,c\n1.jpg,1,0,0\n{row}\n2.jpg,0,1,0\n"
    file = write(tmp_path, "train/_classes.csv", text)
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert f"{file}:3: {reason}" in str(caught.value)
    assert check(tmp_path, progress=False, quick=True).exit_code == 1


def test_the_table_of_roboflows_masks_is_none_of_labels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{number}.jpg" for name in "ab" for number in range(2)))
    write(tmp_path, "_classes.csv", "Pixel Value, Class\n0, background\n1, leaf\n")
    assert opened(tmp_path).train.dataset.format == "folders"


def test_a_table_next_to_class_folders_is_used_and_the_difference_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, *(f"{name}/{name}{n}.jpg" for name in "ab" for n in range(2)))
    write(tmp_path, "labels.csv", "file,label\na0.jpg,a\na1.jpg,b\nb0.jpg,a\nb1.jpg,b")
    assert set(opened(tmp_path).train.dataset.notes) == {"classes by labels.csv"}
    assert "in a folder of another class, as 2 images are" in caplog.text
    assert opened(tmp_path, format="folders").train.dataset.format == "folders"


# Formats that are not read


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("Supervisely", "ds/ann/1.jpg.json", '{"objects": [{"classTitle": "cat"}]}'),
        ("VGG Image Annotator", "via.json", '{"1.jpg": {"regions": [{"shape_attributes": {}}]}}'),
        ("TensorFlow", "train.tfrecord", ""),
        ("FiftyOne", "metadata.json", '{"sample_fields": []}'),
    ],
)
def test_formats_that_are_not_read_are_named_with_a_way_out(
    tmp_path: Path, name: str, file: str, text: str
) -> None:
    image(tmp_path / "ds/img/1.jpg")
    write(tmp_path, file, text)
    for samples_type in (BoxSamples, MaskSamples):
        with pytest.raises(DataError, match=f"is a data set of {name}.*export it as COCO: "):
            open_splits(samples_type, DataOptions(root=str(tmp_path)))
