"""Images and masks in folders find each other by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.formats.folders import DataError
from mobilevit.data.formats.mask_folders import (
    Pair,
    Pairs,
    find_pairs,
    hold_out,
    match_pair,
    open_pairs,
)


def put(path: Path, *values: int) -> Path:
    """An index mask of 8 x 6 pixels with these values, or an image where there are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if values:
        Image.fromarray(np.resize(np.array(values, np.uint8), (6, 8))).save(path)
    else:
        Image.new("RGB", (8, 6)).save(path)
    return path


def fill(root: Path, *names: str) -> Path:
    """Names may be matched without the files being opened."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def relative(paths: tuple[Path, ...], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


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
        fill(above, f"{split}/{images}/1.jpg", f"{split}/{masks}/1.png")
        fill(below, f"{images}/{split}/1.jpg", f"{masks}/{split}/1.png")
    assert find_pairs(above) == Pairs(
        train=Pair(above / train / images, above / train / masks),
        val=Pair(above / val / images, above / val / masks),
    )
    assert find_pairs(below) == Pairs(
        train=Pair(below / images / train, below / masks / train),
        val=Pair(below / images / val, below / masks / val),
    )


def test_one_pair_is_not_divided(tmp_path: Path) -> None:
    fill(tmp_path, "images/1.jpg", "images/city/2.jpg", "masks/1.png")
    assert find_pairs(tmp_path) == Pairs(whole=Pair(tmp_path / "images", tmp_path / "masks"))


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
    assert find_pairs(fill(tmp_path, *files)) is None


def test_two_folders_of_masks_are_a_question(tmp_path: Path) -> None:
    fill(tmp_path, "images/1.jpg", "labels/1.png", "masks/1.png", "annotations/1.xml")
    with pytest.raises(DataError, match='which of its folders "masks", "labels" holds the masks'):
        find_pairs(tmp_path)


# Names


def test_partners_have_one_name(tmp_path: Path) -> None:
    fill(
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
    fill(
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
    images, masks, unmatched = match_pair(Pair(tmp_path / "images", tmp_path / "masks"))
    assert unmatched == ()
    found = dict(
        zip(
            relative(images, tmp_path / "images"),
            relative(masks, tmp_path / "masks"),
            strict=True,
        )
    )
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
    fill(tmp_path / "images", "1.jpg", "2.jpg", "3.jpg", "3.png", "4.jpg")
    fill(tmp_path / "masks", "1.png", "3.png", "4.png", "4_mask.png", "5.png")
    images, masks, unmatched = match_pair(Pair(tmp_path / "images", tmp_path / "masks"))
    assert [path.name for path in (*images, *masks)] == ["1.jpg", "1.png"]
    told = {path.name: reason for path, reason in unmatched}
    assert set(told) == {"2.jpg", "3.jpg", "4.png", "5.png"}
    assert "no mask in" in told["2.jpg"] and "no image in" in told["5.png"]
    assert told["3.jpg"].endswith("3.jpg, 3.png") and told["4.png"].endswith("4.png, 4_mask.png")


def test_no_partner_at_all_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "images/1.jpg", "images/2.jpg", "masks/one.png")
    with pytest.raises(DataError, match=r"not one of its 2 images has a mask among the 1 of"):
        match_pair(Pair(tmp_path / "images", tmp_path / "masks"))


# Classes


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    for number, values in enumerate([(0, 1), (3, 255), (0, 2)]):
        put(tmp_path / "images" / f"{number}.jpg")
        put(tmp_path / "masks" / f"{number}.png", *values)
    return Pair(tmp_path / "images", tmp_path / "masks")


def test_classes_without_names_are_numbered(tmp_path: Path, pair: Pair) -> None:
    (samples,), how = open_pairs(tmp_path, [pair], classes=None, ignore=255)
    assert samples.classes == ("0", "1", "2", "3") and samples.ignore == 255
    assert "3 is the largest value in 3 of 3 masks" in how
    (samples,), _ = open_pairs(tmp_path, [pair], classes=None, ignore=3)
    assert samples.classes[2:4] == ("2", "4") and len(samples.classes) == 255  # 255 is a class
    assert samples.ignore == 255  # the place of none
    put(pair.masks / "1.png", 3, 0)
    (samples,), _ = open_pairs(tmp_path, [pair], classes=None, ignore=0)
    assert samples.classes == ("1", "2", "3")
    assert np.unique(samples.mask(1)).tolist() == [2, 255]


def test_an_unreadable_mask_does_not_hinder_the_look(tmp_path: Path, pair: Pair) -> None:
    (pair.masks / "0.png").write_bytes(b"")
    (samples,), _ = open_pairs(tmp_path, [pair], classes=None, ignore=255)
    assert len(samples.classes) == 4
    for path in pair.masks.iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"not one of 3 masks can be read: .*0\.png: empty file"):
        open_pairs(tmp_path, [pair], classes=None, ignore=255)


@pytest.mark.parametrize(
    ("values", "reason"),
    [((0, 255), 'no value but 0, 255, and 255 is ignored.*"object": 255'), ((0, 0), "but 0, and")],
)
def test_masks_of_one_class_are_refused(
    tmp_path: Path, values: tuple[int, ...], reason: str
) -> None:
    put(tmp_path / "images" / "1.jpg")
    put(tmp_path / "masks" / "1.png", *values)
    pair = Pair(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(DataError, match=reason):
        open_pairs(tmp_path, [pair], classes=None, ignore=255)
    (tmp_path / "classes.json").write_text('{"background": 0, "object": 255}')
    (samples,), how = open_pairs(tmp_path, [pair], classes=None, ignore=254)
    assert samples.classes == ("background", "object") and how == "2 classes by classes.json"
    assert set(np.unique(samples.mask(0))) == {int(value == 255) for value in values}


def test_huge_values_are_not_numbered(tmp_path: Path, pair: Pair) -> None:
    Image.fromarray(np.full((6, 8), 5000, np.uint16)).save(pair.masks / "0.png")
    with pytest.raises(DataError, match="values up to 5000, too many"):
        open_pairs(tmp_path, [pair], classes=None, ignore=255)


def test_names_come_from_a_file_or_are_given(tmp_path: Path, pair: Pair) -> None:
    given = ["sky", "road", "car", "dog"]
    (samples,), how = open_pairs(tmp_path, [pair], classes=given, ignore=255)
    assert samples.classes == tuple(given) and how == "4 classes by given name"
    (tmp_path / "classes.txt").write_text("\n".join(given))
    (samples,), _ = open_pairs(tmp_path, [pair], classes=None, ignore=255)
    assert samples.classes == tuple(given)
    # Where both are, the file says what values mean and the names which order is wanted.
    order = ["dog", "car", "road", "sky", "tree"]
    (samples,), _ = open_pairs(tmp_path, [pair], classes=order, ignore=255)
    assert samples.classes == tuple(order)
    assert np.unique(samples.mask(1)).tolist() == [0, 255]  # stored as 3
    with pytest.raises(DataError, match="unknown classes: car, dog"):
        open_pairs(tmp_path, [pair], classes=["sky", "road"], ignore=255)


def test_given_numbers_are_values(tmp_path: Path, pair: Pair) -> None:
    put(pair.masks / "1.png", 3, 0)
    (samples,), _ = open_pairs(tmp_path, [pair], classes=["1", "2", "3"], ignore=0)
    assert np.unique(samples.mask(1)).tolist() == [2, 255]  # stored as 3 and 0
    with pytest.raises(DataError, match="the given classes: the value 0 is ignored"):
        open_pairs(tmp_path, [pair], classes=["sky", "road", "car"], ignore=0)


def test_rgb_masks_are_read_by_stated_colours(tmp_path: Path) -> None:
    put(tmp_path / "images" / "1.jpg")
    rgb = np.zeros((6, 8, 3), np.uint8)
    rgb[2:] = (128, 64, 0)
    (tmp_path / "masks").mkdir()
    Image.fromarray(rgb).save(tmp_path / "masks" / "1.png")
    pair = Pair(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(DataError, match=r"not one of 1 masks can be read.*an RGB mask"):
        open_pairs(tmp_path, [pair], classes=None, ignore=255)
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nroad:128,64,0::")
    (samples,), _ = open_pairs(tmp_path, [pair], classes=None, ignore=255)
    assert samples.mask(0).tolist() == [[0] * 8] * 2 + [[1] * 8] * 4


# Held out


def test_a_share_is_held_out_and_stays(tmp_path: Path) -> None:
    def opened(root: Path, names: list[str]) -> tuple[list[str], list[str]]:
        for name in names:
            put(root / "images" / f"{name}.jpg")
            put(root / "masks" / f"{name}.png", 0, 1)
        pair = Pair(root / "images", root / "masks")
        (whole,), _ = open_pairs(root, [pair], classes=None, ignore=255)
        both = hold_out(whole, val_fraction=0.25, seed=3)
        return tuple([Path(one.name(i)).stem for i in range(len(one))] for one in both)  # type: ignore[return-value]

    names = [str(number) for number in range(20)]
    train, val = opened(tmp_path / "a", names)
    assert len(val) == 5 and sorted(train + val) == sorted(names)
    later_train, later_val = opened(tmp_path / "b", [*names, "100"])
    assert len({*later_val} - {*val, "100"}) <= 1 and len({*later_train} - {*train, "100"}) <= 1


def test_a_share_of_one_image_is_none(tmp_path: Path) -> None:
    put(tmp_path / "images" / "1.jpg")
    put(tmp_path / "masks" / "1.png", 0, 1)
    pair = Pair(tmp_path / "images", tmp_path / "masks")
    (whole,), _ = open_pairs(tmp_path, [pair], classes=None, ignore=255)
    with pytest.raises(DataError, match="one image"):
        hold_out(whole, val_fraction=0.5, seed=0)
    with pytest.raises(ValueError, match="val_fraction"):
        hold_out(whole, val_fraction=1.0, seed=0)
