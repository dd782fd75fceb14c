"""Class folders become labelled images by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import ParsedDataset, ReadOptions
from mobilevit.data.formats.registry import parse
from mobilevit.data.open import open_evaluation, open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import LabelSamples
from tests.data.factories import read_labels, touch


def names(dataset: ParsedDataset) -> list[str]:
    count = len(dataset.images)
    return [
        Path(dataset.images.name(index)).relative_to(dataset.root).as_posix()
        for index in range(count)
    ]


def test_classes_are_folder_names_in_order(tmp_path: Path) -> None:
    root = touch(tmp_path, "dog/2.jpg", "cat/b.PNG", "cat/a.jpeg", "dog/deep/er/1.Webp")
    dataset = read_labels(root)
    assert dataset.classes == ("cat", "dog")
    assert names(dataset) == ["cat/a.jpeg", "cat/b.PNG", "dog/2.jpg", "dog/deep/er/1.Webp"]
    assert dataset.labels is not None and dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset.splits == {} and dataset.issues == ()


def test_system_leftovers_are_passed_over_and_other_files_counted(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/._1.jpg", "cat/.hidden.png", "cat/Thumbs.db", "cat/notes.txt")
    touch(tmp_path, "__MACOSX/cat/1.jpg", ".git/x.jpg", ".DS_Store", "LICENSE.pdf", "loose.jpg")
    dataset = read_labels(tmp_path)
    assert names(dataset) == ["cat/1.jpg"]
    assert {issue.severity for issue in dataset.issues} == {"warning"}
    assert [issue.message for issue in dataset.issues] == [
        "2 other files ignored, extensions: .pdf 1, .txt 1",
        "1 image is not part of the data set: loose.jpg",
    ]


def test_folders_without_images_are_no_classes(tmp_path: Path) -> None:
    dataset = read_labels(touch(tmp_path, "cat/1.jpg", "labels/1.json"))
    assert dataset.classes == ("cat",)
    assert dataset.issues[0].message == "labels"


def test_a_class_name_is_the_same_however_it_is_encoded(tmp_path: Path) -> None:
    touch(tmp_path, "train/cafe\u0301/1.jpg", "val/caf\u00e9/2.jpg")
    datasets = parse(tmp_path, ReadOptions("labels"))
    assert [dataset.classes for dataset in datasets] == [("caf\u00e9",)] * 2


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "3.jpg")
    root = touch(tmp_path / "root", "cat/1.jpg", "cat/sub/2.jpg", "dog/1.jpg")
    try:
        (root / "cat" / "up").symlink_to(root)
        (root / "cat" / "sub" / "again").symlink_to(root / "cat")
        (root / "cat" / "itself").symlink_to(root / "cat" / "itself")
        (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
        (root / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    except OSError:
        pytest.skip("this system lets us make no links")
    # The dangling one stays a sample, so that reading it says what is wrong.
    assert names(read_labels(root)) == [
        "cat/1.jpg", "cat/gone.jpg", "cat/more/3.jpg", "cat/sub/2.jpg", "dog/1.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "no class folders"),
        (["a.jpg", "b.jpg"], "holds 2 images directly; images must lie in one folder per class"),
        (["cat/notes.txt", "dog/x"], 'no images in its folders "cat", "dog"'),
        (["notes.txt"], "no class folders"),
    ],
)
def test_a_folder_without_images_says_what_to_do(
    tmp_path: Path, files: list[str], reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_labels(touch(tmp_path, *files))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg")
    (tmp_path / "cat").chmod(0)
    with pytest.raises(DataError, match="cannot be listed"):
        read_labels(tmp_path)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test", "Val"])
def test_folders_for_train_and_val_are_used(tmp_path: Path, val: str) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", f"{val}/dog/2.jpg", f"{val}/dog/3.jpg")
    data = DataOptions(root=str(tmp_path), check=False)
    found = open_splits(LabelSamples, data)
    assert found.train.classes == found.val.classes == ("cat", "dog")
    assert found.val.labels.tolist() == [1, 1]  # an index of train's classes, not of val's own
    assert f"{tmp_path / val} (2 images)" in found.note
    assert "without images in val: cat" in found.note
    model = open_evaluation(LabelSamples, data, classes=["emu", "dog"])
    assert model.labels.tolist() == [1, 1]


def test_the_first_of_several_held_out_folders_is_used(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/cat/2.jpg", "valid/cat/3.jpg")
    found = open_splits(LabelSamples, DataOptions(root=str(tmp_path), check=False))
    assert found.val.name(0) == str(tmp_path / "valid/cat/3.jpg")


def test_a_class_that_train_lacks_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg", "val/wolf/3.jpg")  # case A23
    with pytest.raises(DataError, match="wolf") as caught:
        open_splits(LabelSamples, DataOptions(root=str(tmp_path), check=False))
    assert str(tmp_path / "val" / "wolf") in str(caught.value)


def test_train_alone_is_not_taken_for_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.jpg", "train/cat/2.jpg", "train/dog/1.jpg")
    for root in (tmp_path, tmp_path / "train"):
        assert read_labels(root).classes == ("cat", "dog")
    note = open_splits(LabelSamples, DataOptions(root=str(tmp_path), check=False)).note
    assert "has only train: 20% of the images of each class held out" in note


def test_train_may_be_a_class_of_vehicles(tmp_path: Path) -> None:
    touch(tmp_path, "bus/1.jpg", "bus/2.jpg", "train/1.jpg", "train/2.jpg")
    assert read_labels(tmp_path).classes == ("bus", "train")


def test_imagenette_is_found(shared: Path) -> None:
    train, val = parse(shared / "data" / "imagenette", ReadOptions("labels"))
    assert (len(train.images), len(val.images), len(train.classes)) == (9469, 3925, 10)
