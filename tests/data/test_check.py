"""A check finds all that is wrong at once, in words that lead to the file."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.formats.folders import DataError, scan
from mobilevit.data.validate import check, readable

FORMATS = {".jpg": "JPEG", ".png": "PNG", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP"}


def image_bytes(
    seed: int, image_format: str = "JPEG", *, size: tuple[int, int] = (48, 40)
) -> bytes:
    """A file like no other: noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, image_format)
    return file.getvalue()


def put(root: Path, name: str, data: bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of twelve good images, ten and two of each in train and val."""
    for number in range(24):
        split = "val" if number % 12 >= 10 else "train"
        put(
            tmp_path, f"{split}/{'cat' if number < 12 else 'dog'}/{number}.jpg", image_bytes(number)
        )
    return tmp_path


@pytest.mark.parametrize("quick", [True, False])
def test_a_good_folder_is_ok(root: Path, quick: bool) -> None:
    report = check(root, quick=quick, workers=2)
    assert report.ok
    assert report.files == 24
    assert report.train_counts == {"cat": 10, "dog": 10}
    assert report.val_counts == {"cat": 2, "dog": 2}
    assert report.formats == {"JPEG": 24}
    assert report.modes == {"RGB": 24}
    assert report.sizes is not None
    assert report.sizes.width == (48, 48, 48)
    assert report.sizes.height == (40, 40, 40)
    assert report.bad == report.misnamed == report.missing_in_val == ()
    assert report.tiny_classes == {}
    assert "warning" not in str(report)
    assert "error" not in str(report)


@pytest.mark.parametrize("quick", [True, False])
def test_all_bad_files_are_named_at_once(tmp_path: Path, quick: bool) -> None:  # case A26
    put(tmp_path, "cat/1.jpg", image_bytes(1))
    put(tmp_path, "dog/2.jpg", image_bytes(2))
    put(tmp_path, "cat/3.jpg", image_bytes(3)[:-200])
    put(tmp_path, "cat/4.jpg", b"")
    put(tmp_path, "dog/5.jpg", b"not an image at all\n")
    report = check(tmp_path, quick=quick)
    assert not report.ok
    reasons = {file.path.name: file.reason for file in report.bad}
    assert set(reasons) == {"3.jpg", "4.jpg", "5.jpg"}
    assert "truncated" in reasons["3.jpg"].lower()
    assert reasons["4.jpg"] == "empty file"
    assert "text file" in reasons["5.jpg"]
    text = str(report)
    for file in report.bad:
        assert f"error: {file.path}: {file.reason}" in text
    assert "3 of 5 files cannot be read" in text


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("missing", [1, 40, 2000])
def test_cut_files_are_found_in_every_format(
    root: Path, quick: bool, extension: str, missing: int
) -> None:
    whole = image_bytes(99, FORMATS[extension])
    path = put(root, f"train/cat/cut{extension}", whole[:-missing])
    put(root, f"train/cat/whole{extension}", whole)
    bad = [file.path for file in check(root, quick=quick).bad]
    harmless = extension in (".png", ".gif") and missing == 1  # the image is all there
    assert bad == ([] if harmless else [path])


@pytest.mark.parametrize("extension", FORMATS)
def test_bytes_after_the_end_are_no_reason_to_refuse(root: Path, extension: str) -> None:
    put(root, f"train/cat/video{extension}", image_bytes(99, FORMATS[extension]) + b"ftypmp42" * 99)
    assert check(root, quick=True).ok


def test_damage_within_is_found_by_decoding(root: Path) -> None:
    data = bytearray(image_bytes(99, "PNG"))
    data[300:900] = bytes(600)
    path = put(root, "val/dog/damaged.png", bytes(data))
    assert [file.path for file in check(root).bad] == [path]


def test_misnamed_small_and_other_files_are_warnings(root: Path) -> None:
    misnamed = put(root, "train/cat/really.jpg", image_bytes(50, "PNG", size=(31, 90)))
    put(root, "train/cat/notes.txt", b"notes")
    put(root, "train/labels/1.json", b"{}")
    report = check(root)
    assert report.ok
    assert report.misnamed == ((misnamed, "PNG"),)
    assert len(report.ignored) == 2
    assert report.empty == ("labels",)
    assert report.sizes is not None
    assert report.sizes.small == 1
    assert report.sizes.width == (31, 48, 48)
    text = str(report)
    for words in (
        f"{misnamed}: content is PNG",
        ".json 1",
        "labels",
        "1 images have a side below 32",
    ):
        assert words in text


def test_equal_files_across_splits_and_classes(root: Path) -> None:
    leaked = put(root, "val/cat/copy.jpg", (root / "train/cat/0.jpg").read_bytes())
    twin = put(root, "train/dog/twin.jpg", (root / "train/cat/1.jpg").read_bytes())
    report = check(root)
    assert report.ok
    assert report.duplicates_across_splits == ((root / "train/cat/0.jpg", leaked),)
    assert report.conflicts == ((root / "train/cat/1.jpg", twin),)
    assert f"{leaked} (val) are the same file" in str(report)
    assert "are the same file in two classes" in str(report)
    assert not check(root, quick=True).duplicates_across_splits


def test_tiny_and_missing_classes(root: Path) -> None:
    put(root, "train/emu/1.jpg", image_bytes(60))
    report = check(root)
    assert report.tiny_classes == {"emu": 1}
    assert report.missing_in_val == ("emu",)
    assert "no image in val of: emu" in str(report)


def test_folders_that_do_not_fit_together_get_no_report(root: Path, tmp_path: Path) -> None:
    put(root, "val/wolf/1.jpg", image_bytes(61))
    with pytest.raises(DataError, match="wolf"):
        check(root)
    with pytest.raises(DataError, match="no such folder"):
        check(tmp_path / "nothing")


def test_nothing_readable_is_still_a_report(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", b"")
    put(tmp_path, "cat/2.jpg", b"")
    report = check(tmp_path)
    assert len(report.bad) == 2
    assert report.sizes is None
    assert "2 of 2 files cannot be read" in str(report)


def test_a_class_that_skipping_empties_is_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(root, "train/emu/1.jpg", b"")
    split = scan(root / "train")
    (left,) = readable(split, on_bad="skip", workers=1, progress=False)
    assert left.counts()["emu"] == 0 and len(left) == len(split) - 1
    assert "no readable image is left" in caplog.text and caplog.text.rstrip().endswith("emu")


def test_workers_and_progress(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(root, workers=1) == check(root, workers=3, progress=True)
    capsys.readouterr()
    check(root, workers=1)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="workers"):
        check(root, workers=0)


def test_corn_leaf_photos_are_fine(shared: Path) -> None:
    report = check(shared / "data" / "corn_leaf")
    assert report.ok
    assert report.files == 160
