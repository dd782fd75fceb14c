"""Images and masks in folders find each other by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.class_names import ADE20K_CLASSES
from mobilevit.data.errors import DataError
from mobilevit.data.formats import scenes
from mobilevit.data.formats.base import EVERYTHING, ReadOptions
from mobilevit.data.formats.files import FileTree
from mobilevit.data.formats.mask_folders import (
    FolderPair,
    find_folders,
    match_pair,
    read_masks,
)
from mobilevit.data.formats.scenes import (
    find_ade20k,
    read_ade20k,
    read_cityscapes,
)
from mobilevit.data.images import ImageError
from mobilevit.tasks.segmentation.dataset import MaskSamples
from tests.data.factories import image, mask, touch, write, write_cityscapes


def opened(
    root: Path, classes: Sequence[str] | None = None, ignore: int = 255
) -> tuple[MaskSamples, str]:
    names = None if classes is None else tuple(classes)
    dataset = read_masks(root, ReadOptions("masks", names, ignore))
    return MaskSamples.from_dataset(dataset), dataset.notes[0]


# Folders


@pytest.mark.parametrize(
    ("images", "masks", "train", "val"),
    [
        ("images", "masks", "train", "val"),
        ("JPEGImages", "SegmentationClass", "train", "test"),
        ("imgs", "labels", "Training", "validation"),
        ("images", "semantic_masks", "train2017", "val2017"),
    ],
)
def test_train_and_val_may_be_above_or_below(
    tmp_path: Path, images: str, masks: str, train: str, val: str
) -> None:
    above, below = tmp_path / "above", tmp_path / "below"
    for split in (train, val):
        touch(above, f"{split}/{images}/1.jpg", f"{split}/{masks}/1.png")
        touch(below, f"{images}/{split}/1.jpg", f"{masks}/{split}/1.png")
    assert find_folders(above) == {
        "train": FolderPair(above / train / images, above / train / masks),
        "val": FolderPair(above / val / images, above / val / masks),
    }
    assert find_folders(below) == {
        "train": FolderPair(below / images / train, below / masks / train),
        "val": FolderPair(below / images / val, below / masks / val),
    }


def test_one_pair_is_not_divided(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "images/city/2.jpg", "masks/1.png")
    assert find_folders(tmp_path) == {
        EVERYTHING: FolderPair(tmp_path / "images", tmp_path / "masks")
    }


@pytest.mark.parametrize(
    "files",
    [
        ["images/1.jpg"],
        ["images/1.jpg", "labels/1.txt"],  # YOLO's boxes
        ["images/train2017/1.jpg", "annotations/a.json", "annotations/panoptic/1.png"],  # COCO
        ["cat/1.jpg", "dog/2.jpg"],
    ],
)
def test_other_folders_are_no_masks(tmp_path: Path, files: list[str]) -> None:
    assert find_folders(touch(tmp_path, *files)) == {}


def test_two_folders_of_masks_are_a_question(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "labels/1.png", "masks/1.png", "annotations/1.xml")
    with pytest.raises(DataError, match='which of its folders "masks", "labels" holds the masks'):
        find_folders(tmp_path)


# Names


def test_partners_have_one_name(tmp_path: Path) -> None:
    touch(
        tmp_path / "images",
        "1.jpg",
        "2.JPEG",
        "3.png",
        "x/4.jpg",
        "y/4.jpg",
        "5_leftImg8bit.png",
        "6.jpg",
        "cafe\u0301.jpg",
        "7_L.jpg",
    )
    touch(
        tmp_path / "masks",
        "1.png",
        "2_mask.png",
        "3_L.png",
        "x/4.png",
        "y/4_label.png",
        "5_gtFine_labelIds.png",
        "6-mask.bmp",
        "caf\u00e9.png",
        "7_L.png",
    )
    matches = match_pair(FolderPair(tmp_path / "images", tmp_path / "masks"))
    assert matches.unmatched == []
    found = {
        one.relative_to(tmp_path / "images").as_posix(): (
            other.relative_to(tmp_path / "masks").as_posix()
        )
        for one, other in matches.pairs
    }
    assert found == {
        "1.jpg": "1.png",
        "2.JPEG": "2_mask.png",
        "3.png": "3_L.png",
        "x/4.jpg": "x/4.png",
        "y/4.jpg": "y/4_label.png",
        "5_leftImg8bit.png": "5_gtFine_labelIds.png",
        "6.jpg": "6-mask.bmp",
        "cafe\u0301.jpg": "caf\u00e9.png",
        "7_L.jpg": "7_L.png",
    }


def test_what_lacks_a_partner_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "images", "1.jpg", "2.jpg", "3.jpg", "3.png", "4.jpg")
    touch(tmp_path / "masks", "1.png", "3.png", "4.png", "4_mask.png", "5.png")
    matches = match_pair(FolderPair(tmp_path / "images", tmp_path / "masks"))
    assert [(one.name, other.name) for one, other in matches.pairs] == [("1.jpg", "1.png")]
    told = {path.name: reason for path, reason in matches.unmatched}
    assert set(told) == {"2.jpg", "3.jpg", "4.png", "5.png"}
    assert "no mask in" in told["2.jpg"] and "no image in" in told["5.png"]
    assert told["3.jpg"].endswith("3.jpg, 3.png") and told["4.png"].endswith("4.png, 4_mask.png")


def test_no_partner_at_all_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "images/2.jpg", "masks/one.png")
    with pytest.raises(DataError, match=r"none of its 2 images has a mask among the 1 of"):
        match_pair(FolderPair(tmp_path / "images", tmp_path / "masks"))


# Classes


@pytest.fixture
def pair(tmp_path: Path) -> FolderPair:
    for number, values in enumerate([(0, 1), (3, 255), (0, 2)]):
        image(tmp_path / "images" / f"{number}.jpg", (8, 6))
        mask(tmp_path / "masks" / f"{number}.png", *values)
    return FolderPair(tmp_path / "images", tmp_path / "masks")


def test_classes_without_names_are_numbered(tmp_path: Path, pair: FolderPair) -> None:
    samples, how = opened(tmp_path, None, 255)
    assert samples.classes == ("0", "1", "2", "3") and samples.ignore == 255
    assert "3 is the largest value in 3 of 3 masks" in how
    samples, _ = opened(tmp_path, None, 3)
    assert samples.classes[2:4] == ("2", "4") and len(samples.classes) == 255  # 255 is a class
    assert samples.ignore == 255  # the place of none
    mask(pair.masks / "1.png", 3, 0)
    samples, _ = opened(tmp_path, None, 0)
    assert samples.classes == ("1", "2", "3")
    assert np.unique(samples.mask(1)).tolist() == [2, 255]


def test_an_unreadable_mask_does_not_hinder_the_look(tmp_path: Path, pair: FolderPair) -> None:
    (pair.masks / "0.png").write_bytes(b"")
    samples, _ = opened(tmp_path, None, 255)
    assert len(samples.classes) == 4
    for path in pair.masks.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 3 masks can be read: .*0\.png: empty file"):
        opened(tmp_path, None, 255)


@pytest.mark.parametrize(
    ("values", "reason"),
    [((0, 255), 'no value but 0, 255, and 255 is ignored.*"object": 255'), ((0, 0), "but 0, and")],
)
def test_masks_of_one_class_are_refused(
    tmp_path: Path, values: tuple[int, ...], reason: str
) -> None:
    image(tmp_path / "images" / "1.jpg", (8, 6))
    mask(tmp_path / "masks" / "1.png", *values)
    with pytest.raises(DataError, match=reason):
        opened(tmp_path, None, 255)
    (tmp_path / "classes.json").write_text('{"background": 0, "object": 255}')
    samples, how = opened(tmp_path, None, 254)
    assert samples.classes == ("background", "object") and how == "2 classes by classes.json"
    assert set(np.unique(samples.mask(0))) == {int(value == 255) for value in values}


def test_huge_values_are_not_numbered(tmp_path: Path, pair: FolderPair) -> None:
    Image.fromarray(np.full((6, 8), 5000, np.uint16)).save(pair.masks / "0.png")
    with pytest.raises(DataError, match="values up to 5000, too many"):
        opened(tmp_path, None, 255)


def test_names_come_from_a_file_or_are_given(tmp_path: Path, pair: FolderPair) -> None:
    given = ["sky", "road", "car", "dog"]
    samples, how = opened(tmp_path, given, 255)
    assert samples.classes == tuple(given) and how == "4 classes by data.classes"
    (tmp_path / "classes.txt").write_text("\n".join(given))
    samples, _ = opened(tmp_path, None, 255)
    assert samples.classes == tuple(given)
    # Where both are, the file says what values mean and the names which order is wanted.
    order = ["dog", "car", "road", "sky", "tree"]
    samples, _ = opened(tmp_path, order, 255)
    assert not samples.dataset.classes_from_options
    samples = samples.relabel(order)
    assert np.unique(samples.mask(1)).tolist() == [0, 255]  # stored as 3
    with pytest.raises(DataError, match='unknown classes "dog", "car", "tree"'):
        samples.relabel(["sky", "road"])


def test_given_numbers_are_values(tmp_path: Path, pair: FolderPair) -> None:
    mask(pair.masks / "1.png", 3, 0)
    samples, _ = opened(tmp_path, ["1", "2", "3"], 0)
    assert np.unique(samples.mask(1)).tolist() == [2, 255]  # stored as 3 and 0
    with pytest.raises(DataError, match=r"data\.classes: the value 0 is ignored"):
        opened(tmp_path, ["sky", "road", "car"], 0)


def test_rgb_masks_are_read_by_stated_colours(tmp_path: Path) -> None:
    image(tmp_path / "images" / "1.jpg", (8, 6))
    rgb = np.zeros((6, 8, 3), np.uint8)
    rgb[2:] = (128, 64, 0)
    (tmp_path / "masks").mkdir()
    Image.fromarray(rgb).save(tmp_path / "masks" / "1.png")
    with pytest.raises(DataError, match=r"none of 1 masks can be read.*an RGB mask"):
        opened(tmp_path, None, 255)
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nroad:128,64,0::")
    samples, _ = opened(tmp_path, None, 255)
    assert samples.mask(0).tolist() == [[0] * 8] * 2 + [[1] * 8] * 4


# ADE20K and Cityscapes


def test_ade20k_counts_from_one(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for part in ("training", "validation"):
        image(root / "images" / part / "1.jpg", (8, 6))
        mask(root / "annotations" / part / "1.png", 0, 1, 150)
    assert find_ade20k(tmp_path) == find_ade20k(root) == root
    assert scenes.ADE20K.matches(FileTree(root), "masks")
    dataset = read_ade20k(root)
    val = MaskSamples.from_dataset(dataset, dataset.splits["val"])
    assert len(val.classes) == len(ADE20K_CLASSES) == len(set(ADE20K_CLASSES)) == 150
    assert (val.classes[0], val.classes[149], val.ignore) == ("wall", "flag", 255)
    assert val.mask(0).ravel()[:3].tolist() == [255, 0, 149]
    mask(root / "annotations/validation/1.png", 151)
    with pytest.raises(ImageError, match=r"no class has the value 151; classes are 1 to 150"):
        val.mask(0)
    moved = root.rename(tmp_path / "scenes")
    assert find_ade20k(moved) == moved
    assert not scenes.ADE20K.matches(FileTree(moved), "masks")
    write(moved, "objectInfo150.txt")
    assert scenes.ADE20K.matches(FileTree(moved), "masks")


def test_cityscapes_has_19_classes(tmp_path: Path) -> None:
    dataset = read_cityscapes(write_cityscapes(tmp_path))
    train = MaskSamples.from_dataset(dataset, dataset.splits["train"])
    assert len(train) == 2 and len(train.classes) == 19 and train.ignore == 255
    assert [train.classes[place] for place in (0, 13, 18)] == ["road", "car", "bicycle"]
    assert train.mask(0).ravel()[:5].tolist() == [255, 0, 13, 255, 18]
    Path(train.mask_name(1)).unlink()
    assert len(read_cityscapes(tmp_path).issues) == 1
    (tmp_path / "gtFine" / "val").rename(tmp_path / "gtFine" / "other")
    with pytest.raises(DataError, match="val of Cityscapes cannot be listed"):
        read_cityscapes(tmp_path)
