"""A check of masks finds all that is wrong at once, in words that lead to the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.formats.folders import DataError
from mobilevit.tasks.segmentation.check import check_masks


def put(root: Path, name: str, values: tuple[int, ...] = (), seed: int = 0) -> Path:
    """An index mask of 8 x 6 pixels with these values, or an image of noise if there are none."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(np.resize(np.array(values, np.uint8), (6, 8)) if values else noise).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight and four images of three classes, a quarter of the pixels ignored."""
    for number in range(12):
        split = "train" if number < 8 else "val"
        put(tmp_path, f"{split}/images/{number}.png", seed=number)
        put(tmp_path, f"{split}/masks/{number}.png", (0, 1, 2, 255))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    return tmp_path


def test_good_masks_are_ok(root: Path) -> None:
    report = check_masks(root, workers=2)
    assert report.ok and report.exit_code == 0
    assert (report.train.images, report.val.images) == (8, 4)
    assert report.train.classes == {"sky": 96, "road": 96, "car": 96}
    assert report.train.ignored == 96 and report.val.ignored == 48
    assert report.train.ignored_share == 0.25
    text = str(report)
    assert "3 classes by classes.txt" in text and "33.33%" in text and "25.00%" in text
    assert text.endswith("every image and mask can be used")
    assert "warning" not in text and "error" not in text


def test_all_that_is_wrong_is_found_at_once(root: Path) -> None:
    put(root, "train/masks/0.png", (0, 3, 200, 255))
    Image.new("L", (6, 8)).save(root / "train/masks/1.png")
    (root / "train/masks/2.png").unlink()
    (root / "train/images/3.png").unlink()
    (root / "train/images/4.png").write_bytes(b"no image")
    put(root, "train/masks/4.png", (0, 9))  # with a bad mask as well
    (root / "val/masks/9.png").write_bytes(b"")
    report = check_masks(root)
    assert not report.ok and report.exit_code == 1
    assert {(mask.path.name, mask.values) for mask in report.outside} == {
        ("0.png", (3, 200)),
        ("4.png", (9,)),
    }
    assert [file.path.name for file in report.sizes] == ["1.png"]
    assert [str(file.path.relative_to(root)) for file in report.unmatched] == [
        "train/masks/3.png",
        "train/images/2.png",
    ]
    assert [str(file.path.relative_to(root)) for file in report.unreadable] == [
        "train/images/4.png",
        "val/masks/9.png",
    ]
    assert (report.train.images, report.val.images) == (6, 4)
    # 5, 6, 7 as before, of 0 the values that are classes, of 4 half, of 1 nothing.
    assert report.train.classes == {"sky": 36 + 12 + 24, "road": 36, "car": 36}
    text = str(report)
    for words in (
        f"error: {root / 'train/masks/0.png'}: no class has the value 3, 200; classes are 0 to 2",
        f"error: {root / 'train/masks/1.png'}: the mask has 6 x 8 pixels",
        f"error: {root / 'train/images/2.png'}: no mask in",
        f"error: {root / 'train/masks/3.png'}: no image in",
        f"error: {root / 'train/images/4.png'}: not an image: a text file",
        f"error: {root / 'val/masks/9.png'}: empty file",
        "7 files cannot be used",
    ):
        assert words in text


def test_classes_that_never_come_are_warnings(root: Path) -> None:
    (root / "classes.txt").write_text("sky\nroad\ncar\ndog\n")
    put(root, "train/masks/0.png", (3,))
    report = check_masks(root)
    assert report.ok and report.never_in_train == () and report.never_in_val == ("dog",)
    assert "warning: never in val: dog" in str(report)
    (root / "classes.txt").write_text("sky\nroad\ncar\ndog\ncow")
    assert "warning: never in train: cow\nwarning: never in val: dog, cow" in str(check_masks(root))


def test_the_same_image_in_train_and_val(root: Path) -> None:
    first, second = root / "train/images/3.png", root / "val/images/10.png"
    second.write_bytes(first.read_bytes())
    report = check_masks(root)
    assert report.ok and report.duplicates == ((first, second),)
    assert f"{first} (train) and {second} (val) are the same file" in str(report)


def test_a_mask_that_fits_turned_as_well_is_told(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (8, 6)).save(root / "val/images/8.png", exif=exif)
    report = check_masks(root)
    assert report.ok and report.in_doubt == (root / "val/images/8.png",)
    assert "its mask would fit either way" in str(report)


def test_one_pair_of_folders_is_divided_as_for_training(root: Path) -> None:
    (root / "train/masks/0.png").unlink()
    report = check_masks(root / "train", classes=["a", "b", "c"], val_fraction=0.5)
    assert (report.train.images, report.val.images) == (3, 4)
    assert len(report.unmatched) == 1  # told once


def test_nothing_usable_is_still_a_report(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    report = check_masks(root)
    assert len(report.unreadable) == 24
    assert report.train.classes == {"sky": 0, "road": 0, "car": 0}
    assert report.train.ignored_share == 0 and "24 files cannot be used" in str(report)


def test_no_data_set_gets_no_report(root: Path) -> None:
    with pytest.raises(DataError, match="no data set with masks"):
        check_masks(root / "train" / "images")
    with pytest.raises(ValueError, match="workers"):
        check_masks(root, workers=0)


def test_camvid_is_fine(shared: Path) -> None:
    report = check_masks(shared / "data" / "camvid", ignore=11)
    assert report.ok and (report.train.images, report.val.images) == (200, 60)
    assert report.never_in_train == report.never_in_val == ()
    total = report.train.ignored + sum(report.train.classes.values())
    assert total == 200 * 480 * 360
    with_too_few = check_masks(
        shared / "data" / "camvid", ignore=11, classes=["a", "b", "c", "d", "e"]
    )
    assert 250 < len(with_too_few.outside) <= 260


def test_photos_of_coco_without_masks_are_told(shared: Path) -> None:
    report = check_masks(shared / "data" / "coco128", ignore=0)
    assert len(report.unmatched) == 56 and not report.unreadable and not report.sizes
    assert (report.train.images, report.val.images) == (100, 100)
