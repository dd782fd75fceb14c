"""Images and masks in folders find each other by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.class_names import ADE20K_CLASSES
from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import ParsedDataset, ReadOptions
from mobilevit.data.formats.files import FileTree
from mobilevit.data.formats.masks import datasets
from mobilevit.data.formats.masks.folders import Matches, find_images_and_masks, match_masks
from mobilevit.data.formats.registry import parse
from mobilevit.data.images import ImageError
from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.tasks.segmentation.dataset import MaskSamples
from tests.data.factories import (
    image,
    mask,
    touch,
    write,
    write_cityscapes,
    write_roboflow_masks,
)


def opened(
    root: Path, classes: Sequence[str] | None = None, ignore: int = 255
) -> tuple[MaskSamples, str]:
    names = None if classes is None else tuple(classes)
    (dataset,) = parse(root, ReadOptions("masks", names, ignore), "folders")
    return MaskSamples.from_dataset(dataset), dataset.notes[0]


# Folders


def find(root: Path) -> tuple[set[str], set[str]]:
    """The images and masks of a folder, below it."""
    images, masks = find_images_and_masks(FileTree(root))
    return tuple({Path(path).relative_to(root).as_posix() for path in x} for x in (images, masks))  # type: ignore[return-value]


def match(root: Path) -> Matches:
    return match_masks(root, *find_images_and_masks(FileTree(root)))


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
        image(above / f"{split}/{images}/1.jpg", (8, 6))
        mask(above / f"{split}/{masks}/1.png", 0, 1)
        image(below / f"{images}/{split}/1.jpg", (8, 6))
        mask(below / f"{masks}/{split}/1.png", 0, 1)
    for root in (above, below):
        dataset = opened(root)[0].dataset
        assert [len(indices) for indices in dataset.splits.values()] == [1, 1]
        assert {*dataset.splits} in ({"train", "val"}, {"train", "test"}, {"train", "validation"})
        for split, (index,) in dataset.splits.items():
            assert f"/{split}" in dataset.images.name(index).lower().replace("training", "train")
            assert dataset.masks is not None
            stored = Path(dataset.masks.name(index))
            assert stored.is_relative_to(root / (train if split == "train" else val)) or (
                stored.parent.name == (train if split == "train" else val)
            )


def test_one_pair_is_not_divided(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "images/city/2.jpg", "masks/1.png", "other/masks/2.png")
    assert find(tmp_path) == ({"images/1.jpg", "images/city/2.jpg"}, {"masks/1.png"})


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
    assert find(touch(tmp_path, *files)) == (set(), set())


def test_two_folders_of_masks_are_a_question(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "labels/1.png", "masks/1.png", "annotations/1.xml")
    with pytest.raises(DataError, match='which of its folders "labels", "masks" holds the masks'):
        find(tmp_path)


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
    matches = match(tmp_path)
    assert matches.unmatched == []
    found = {
        Path(one).relative_to(tmp_path / "images").as_posix(): (
            Path(other).relative_to(tmp_path / "masks").as_posix()
        )
        for one, other in zip(matches.images, matches.masks, strict=True)
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
    matches = match(tmp_path)
    assert [Path(path).name for path in matches.images + matches.masks] == ["1.jpg", "1.png"]
    told = {Path(path).name: reason for path, reason in matches.unmatched}
    assert told == {
        "2.jpg": "no mask has its name",
        "3.jpg": "more than one image has its name",
        "3.png": "more than one image has its name",
        "4.jpg": "more than one mask has its name",
        "5.png": "no image has its name",
    }


def test_no_partner_at_all_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "images/2.jpg", "masks/one.png")
    with pytest.raises(DataError, match=r"none of its 2 images has one of its 1 masks"):
        match(tmp_path)


# Classes


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """The folder of masks of three images."""
    for number, values in enumerate([(0, 1), (3, 255), (0, 2)]):
        image(tmp_path / "images" / f"{number}.jpg", (8, 6))
        mask(tmp_path / "masks" / f"{number}.png", *values)
    return tmp_path / "masks"


def test_classes_without_names_are_numbered(tmp_path: Path, masks: Path) -> None:
    samples, how = opened(tmp_path, None, 255)
    assert samples.classes == ("0", "1", "2", "3") and samples.ignore == 255
    assert "3 is the largest value in 3 of 3 masks" in how
    mask(masks / "1.png", 3, 0)
    samples, _ = opened(tmp_path, None, 0)
    assert samples.classes == ("1", "2", "3")
    assert np.unique(samples.mask(1)).tolist() == [2, 255]


def test_an_unreadable_mask_does_not_hinder_the_look(tmp_path: Path, masks: Path) -> None:
    (masks / "0.png").write_bytes(b"")
    samples, _ = opened(tmp_path, None, 255)
    assert len(samples.classes) == 4
    for path in masks.iterdir():
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


@pytest.mark.parametrize(
    ("values", "ignore", "listed"),
    [
        ((0, 38, 75, 113), 255, "0, 38, 75, 113"),
        ((0, 1, 5000), 255, "0 to 1, 5000"),
        ((0, 1, 255), 3, "0 to 1, 255"),
        (tuple(range(1200)), 1300, "0 to 1199"),
    ],
)
def test_values_far_from_counting_are_listed_and_not_numbered(
    tmp_path: Path, values: tuple[int, ...], ignore: int, listed: str
) -> None:
    """They are refused until a file or the option states what they stand for."""
    image(tmp_path / "images" / "1.jpg", (40, 30))
    (tmp_path / "masks").mkdir()
    stored = np.resize(np.array(values, np.uint16), (30, 40))
    Image.fromarray(stored).save(tmp_path / "masks" / "1.png")
    with pytest.raises(DataError, match=f"have the values {listed}, too many or too far"):
        opened(tmp_path, None, ignore)
    samples, _ = opened(tmp_path, [str(value) for value in values], ignore)
    assert len(samples.classes) == len(values) and samples.mask(0).max() == len(values) - 1


def test_names_come_from_a_file_or_are_given(tmp_path: Path, masks: Path) -> None:
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


def test_given_numbers_are_values(tmp_path: Path, masks: Path) -> None:
    mask(masks / "1.png", 3, 0)
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


# Roboflow


def test_masks_next_to_images_are_those_of_roboflow(tmp_path: Path) -> None:
    data = open_splits(MaskSamples, DataOptions(root=str(write_roboflow_masks(tmp_path))))
    assert (len(data.train), len(data.val)) == (6, 2) and "Roboflow" in data.note
    assert data.train.classes == ("background", "leaf", "rot")
    assert np.unique(data.val.mask(1)).tolist() == [0, 1, 2]
    assert Path(data.val.name(1)).stem + "_mask" == Path(data.val.mask_name(1)).stem


def test_a_folder_of_roboflow_without_splits_is_divided(tmp_path: Path) -> None:
    root = write_roboflow_masks(tmp_path / "all") / "train"
    data = open_splits(MaskSamples, DataOptions(root=str(root)))
    assert len(data.train) + len(data.val) == 6 and data.val.classes[2] == "rot"


def test_what_is_wrong_with_an_export_of_roboflow_is_named(tmp_path: Path) -> None:
    root = write_roboflow_masks(tmp_path)
    (root / "train" / "0_jpg.rf.0a_mask.png").unlink()
    with pytest.raises(DataError, match=r"0_jpg\.rf\.0a\.jpg: no mask has its name"):
        open_splits(MaskSamples, DataOptions(root=str(root)))
    write(root, "valid/_classes.csv", "Pixel Value, Class\n0, background\n1, rot\n")
    with pytest.raises(DataError, match="state different classes"):
        open_splits(MaskSamples, DataOptions(root=str(root)))
    write(root, "valid/_classes.csv", "Pixel Value, Class\nleaf, 1\n")
    with pytest.raises(DataError, match=r"valid/_classes\.csv: is no table of values and names"):
        open_splits(MaskSamples, DataOptions(root=str(root)))
    for split in ("train", "valid"):  # the table of an export of labels
        write(root, f"{split}/_classes.csv", "filename, leaf, rot\n0.jpg, 0, 1\n")
    with pytest.raises(DataError, match="no data set with masks recognised"):
        open_splits(MaskSamples, DataOptions(root=str(root)))


# ADE20K and Cityscapes


def read_as(root: Path, format: str) -> ParsedDataset:
    (dataset,) = parse(root, ReadOptions("masks"), format)
    return dataset


def test_ade20k_counts_from_one(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for part in ("training", "validation"):
        image(root / "images" / part / "1.jpg", (8, 6))
        mask(root / "annotations" / part / "1.png", 0, 1, 150)
    for found in (tmp_path, root):
        assert datasets.ADE20K.matches(FileTree(found), "masks")
    dataset = read_as(root, "ade20k")
    val = MaskSamples.from_dataset(dataset, dataset.splits["validation"])
    assert len(val.classes) == len(ADE20K_CLASSES) == len(set(ADE20K_CLASSES)) == 150
    assert (val.classes[0], val.classes[149], val.ignore) == ("wall", "flag", 255)
    assert val.mask(0).ravel()[:3].tolist() == [255, 0, 149]
    mask(root / "annotations/validation/1.png", 151)
    with pytest.raises(ImageError, match=r"no class has the value 151; classes are 1 to 150"):
        val.mask(0)
    moved = root.rename(tmp_path / "scenes")
    assert not datasets.ADE20K.matches(FileTree(moved), "masks")
    write(moved, "objectInfo150.txt")
    assert datasets.ADE20K.matches(FileTree(moved), "masks")


def test_cityscapes_has_19_classes(tmp_path: Path) -> None:
    write_cityscapes(tmp_path)
    for name in ("gtFine_color", "gtFine_instanceIds"):
        mask(tmp_path / f"gtFine/train/a/a_000000_{name}.png", 0)
    write(tmp_path, "gtFine/train/a/a_000000_gtFine_polygons.json", "{}")
    image(tmp_path / "leftImg8bit/train_extra/a/b_leftImg8bit.png", (8, 6))
    dataset = read_as(tmp_path, "cityscapes")
    train = MaskSamples.from_dataset(dataset, dataset.splits["train"])
    assert len(train) == 2 and len(train.classes) == 19 and train.ignore == 255
    assert [train.classes[place] for place in (0, 13, 18)] == ["road", "car", "bicycle"]
    assert train.mask(0).ravel()[:5].tolist() == [255, 0, 13, 255, 18]
    (issue,) = dataset.issues
    assert issue.message.endswith(
        "not part of the data set: leftImg8bit/train_extra/a/b_leftImg8bit.png"
    )
    Path(train.mask_name(1)).unlink()
    assert len(read_as(tmp_path, "cityscapes").issues) == 2
    (tmp_path / "gtFine" / "val").rename(tmp_path / "gtFine" / "other")
    with pytest.raises(DataError, match="no images in val"):
        open_splits(MaskSamples, DataOptions(root=str(tmp_path)))
