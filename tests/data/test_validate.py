"""Validation finds all that is wrong at once, and what `train` refuses `check` calls an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilevit.commands.check import check
from mobilevit.data.errors import DataError
from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import LabelSamples, Samples
from mobilevit.data.validate import MAX_LISTED, Report
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.segmentation.dataset import MaskSamples
from mobilevit.utils.progress import map_parallel
from tests.data.factories import (
    BOX_WRITERS,
    MASK_WRITERS,
    Annotated,
    coco_box,
    coco_json,
    image,
    image_bytes,
    mask,
    voc_object,
    voc_xml,
    write,
    write_class_folders,
    write_coco,
    write_mask_folders,
    write_yolo,
)

FORMATS = {".jpg": "JPEG", ".png": "PNG", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP"}
SAMPLES: dict[Any, type[Samples]] = {
    "classification": LabelSamples,
    "detection": BoxSamples,
    "segmentation": MaskSamples,
}


def by_category(report: Report) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for issue in report.issues:
        found.setdefault(issue.category, []).append(str(issue))
    return found


def blocked(report: Report) -> list[str]:
    return [issue.where for issue in report.select_issues("blocking")]


# Training and check agree


WRITERS: dict[tuple[str, str], Callable[..., Path]] = {
    ("classification", "folders"): write_class_folders,
    **{("detection", name): writer for name, writer in BOX_WRITERS.items()},
    **{("segmentation", name): writer for name, writer in MASK_WRITERS.items()},
}


def _broken_image(root: Path) -> None:
    images = [path for path in root.rglob("*.*") if path.suffix in (".jpg", ".png")]
    of_train = [path for path in images if "train" in str(path) or "/a." in str(path)]
    next(path for path in of_train if "panoptic" not in str(path)).write_bytes(b"no image")


def _gone(root: Path) -> None:
    for path in root.rglob("*"):
        if path.suffix in (".jpg", ".png"):
            path.unlink()


def _fine(root: Path) -> None:
    """No damage."""


@pytest.mark.parametrize("damage", [_fine, _broken_image, _gone])
@pytest.mark.parametrize(("task", "format"), WRITERS)
def test_check_has_errors_where_training_refuses(
    tmp_path: Path, task: Any, format: str, damage: Callable[[Path], None]
) -> None:
    WRITERS[task, format](tmp_path)
    damage(tmp_path)

    def outcome(act: Callable[[], object]) -> str | None:
        try:
            act()
        except DataError as error:
            return str(error)
        return None

    data = DataOptions(root=str(tmp_path))
    refused = outcome(lambda: open_splits(SAMPLES[task], data))
    reports: list[Report] = []
    unread = outcome(lambda: reports.append(check(tmp_path, task=task, quick=True, progress=False)))
    assert (refused is None) == (damage is _fine)
    if unread is not None:
        assert refused == unread  # it is no data set at all
    else:
        report = reports[0]
        assert (refused is None) == (not report.select_issues("blocking"))
        for issue in report.select_issues("blocking")[:MAX_LISTED]:
            assert refused is not None and str(issue) in refused
            assert f"error: {issue}" in str(report)


@pytest.mark.parametrize(
    ("task", "format"), [key for key in WRITERS if key != ("classification", "folders")]
)
def test_quick_reads_headers_and_file_ends_only(tmp_path: Path, task: Any, format: str) -> None:
    WRITERS[task, format](tmp_path)
    for file in tmp_path.rglob("*.png"):  # header and end stay, what lies between is lost
        content = file.read_bytes()
        start, end = content.index(b"IDAT") + 4, len(content) - 16
        file.write_bytes(content[:start] + bytes(end - start) + content[end:])
    options = {}
    if (task, format) == ("segmentation", "folders"):  # else they are found in the masks
        options["classes"] = "a,b,c"
    quick, full = (
        check(tmp_path, task=task, quick=quick, progress=False, **options)
        for quick in (True, False)
    )
    assert (quick.depth, full.depth) == ("headers", "decode")
    assert quick.ok and len(quick.issues) < len(full.issues)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("classification", {"classes": "a,b"}),
        ("classification", {"ignore": 7}),
        ("detection", {"classes": "a,b"}),
        ("detection", {"ignore": 7}),
    ],
)
def test_options_of_other_tasks_are_refused(tmp_path: Path, task: Any, options: Any) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is for .*, not for {task}"):
        check(write_class_folders(tmp_path), task=task, progress=False, **options)


def test_a_format_of_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"format must be one of auto, .*, not .coco"):
        check(write_class_folders(tmp_path), format="coco", progress=False)


# Labelled images


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path)


@pytest.mark.parametrize("quick", [True, False])
def test_a_good_folder_is_ok(folders: Path, quick: bool) -> None:
    report = check(folders, quick=quick, workers=2)
    assert report.ok and report.exit_code == 0 and report.issues == ()
    assert report.splits["train"].classes == {"cat": 10, "dog": 10}
    assert report.splits["val"].classes == {"cat": 2, "dog": 2}
    assert report.details == (
        "width: 48 to 48 pixels, median 48", "height: 40 to 40 pixels, median 40",
        "formats: JPEG 24; modes: RGB 24",
    )  # fmt: skip
    text = str(report)
    assert f"{folders}: 24 images, " in text and text.endswith("no errors found")
    assert "warning" not in text and "error:" not in text


@pytest.mark.parametrize("quick", [True, False])
def test_all_bad_files_are_named_at_once(tmp_path: Path, quick: bool) -> None:  # case A26
    write(tmp_path, "cat/1.jpg", image_bytes(1))
    write(tmp_path, "dog/2.jpg", image_bytes(2))
    write(tmp_path, "cat/3.jpg", image_bytes(3)[:-200])
    write(tmp_path, "cat/4.jpg", b"")
    write(tmp_path, "dog/5.jpg", b"not an image at all\n")
    report = check(tmp_path, quick=quick)
    assert not report.ok and report.exit_code == 1
    reasons = {Path(i.where).name: i.message for i in report.select_issues("blocking")}
    assert set(reasons) == {"3.jpg", "4.jpg", "5.jpg"}
    assert "truncated" in reasons["3.jpg"].lower()
    assert reasons["4.jpg"] == "empty file"
    assert "text file" in reasons["5.jpg"]
    assert "images that cannot be read: 3" in str(report).splitlines()[-1]


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("missing", [1, 40, 2000])
def test_cut_files_are_found_in_every_format(
    folders: Path, quick: bool, extension: str, missing: int
) -> None:
    content = image_bytes(99, FORMATS[extension])
    path = write(folders, f"train/cat/cut{extension}", content[:-missing])
    write(folders, f"train/cat/complete{extension}", content)
    harmless = extension in (".png", ".gif") and missing == 1  # the image is all there
    assert blocked(check(folders, quick=quick)) == ([] if harmless else [str(path)])


def test_an_error_of_the_system_does_not_end_the_check(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    report = check(folders)
    assert len(report.select_issues("blocking")) == 24
    assert "Input/output error" in report.issues[0].message


@pytest.mark.parametrize("extension", FORMATS)
def test_bytes_after_the_end_are_no_reason_to_refuse(folders: Path, extension: str) -> None:
    content = image_bytes(99, FORMATS[extension]) + b"ftypmp42" * 99
    write(folders, f"train/cat/video{extension}", content)
    assert check(folders, quick=True).ok


def test_damage_within_is_found_by_decoding(folders: Path) -> None:
    data = bytearray(image_bytes(99, "PNG"))
    data[300:900] = bytes(600)
    path = write(folders, "val/dog/damaged.png", bytes(data))
    assert blocked(check(folders)) == [str(path)]


def test_wrong_extensions_small_and_other_files_are_warnings(folders: Path) -> None:
    path = write(folders, "train/cat/really.jpg", image_bytes(50, "PNG", size=(31, 90)))
    write(folders, "train/cat/notes.txt", b"notes")
    write(folders, "train/labels/1.json", b"{}")
    report = check(folders)
    assert report.ok and report.details[0] == "width: 31 to 48 pixels, median 48"
    text = str(report)
    for words in (
        f"warning: {path}: contains PNG",
        ".json 1",
        "labels",
        "1 images have a side below 32",
    ):
        assert words in text


def test_equal_files_in_two_splits_or_classes(folders: Path) -> None:
    leaked = write(folders, "val/cat/copy.jpg", (folders / "train/cat/0.jpg").read_bytes())
    twin = write(folders, "train/dog/twin.jpg", (folders / "train/cat/1.jpg").read_bytes())
    report = check(folders)
    assert report.ok
    found = by_category(report)
    assert found["images in two splits"] == [
        f"{leaked}: (val) is of the same bytes as {folders}/train/cat/0.jpg (train)"
    ]
    assert found["images in two classes"] == [
        f"{twin}: is the same file as {folders}/train/cat/1.jpg, in another class"
    ]
    assert "images in two splits" not in by_category(check(folders, quick=True))


def test_tiny_and_missing_classes(folders: Path) -> None:
    write(folders, "train/emu/1.jpg", image_bytes(60))
    text = str(check(folders))
    assert "no images in val of: emu" in text
    assert "fewer than 10 images in train: emu 1" in text


def test_a_class_only_in_val_is_an_error(folders: Path, tmp_path: Path) -> None:
    write(folders, "val/wolf/1.jpg", image_bytes(61))
    report = check(folders)
    (issue,) = report.select_issues("blocking")
    assert issue.where == str(folders / "val" / "wolf") and 'class "wolf" in val' in issue.message
    with pytest.raises(DataError, match="no such file or folder"):
        check(tmp_path / "nothing")


def test_nothing_readable_is_still_a_report(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "dog/4.jpg"):
        write(tmp_path, name, b"")
    report = check(tmp_path)
    assert len(report.select_issues("blocking")) == 4
    assert report.details == ()


def test_a_class_that_skipping_empties_is_named(
    folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folders, "train/emu/1.jpg", b"")
    found = open_splits(LabelSamples, DataOptions(root=str(folders), on_bad="skip"))
    assert len(found.train) == 20 and "1 images left out" in found.note
    assert "no image is left of: emu" in caplog.text


def test_workers_and_progress(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(folders, workers=1) == check(folders, workers=3, progress=True)
    capsys.readouterr()
    check(folders, workers=1)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="workers"):
        check(folders, workers=0)


def test_results_come_in_order() -> None:
    assert list(map_parallel(lambda at: at * at, range(50), "", workers=3)) == [
        at * at for at in range(50)
    ]


def test_options_of_another_task_are_refused(folders: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.ignore is for segmentation"):
        check(folders, ignore=3)


# Boxes


SIZE = (200, 160)


def put_coco(
    root: Path, part: str, images: dict[int, tuple[int, int]], *annotations: object
) -> Path:
    entries = [
        {"id": n, "file_name": f"{part}/{n}.png", "width": w, "height": h}
        for n, (w, h) in images.items()
    ]
    names = {1: "cat", 2: "dog", 9: "emu"}
    return coco_json(root / f"{part}.json", entries, annotations, names)


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """Two images to train on, one to evaluate on, nothing wrong."""
    for part, numbers in (("train", (1, 2)), ("val", (3,))):
        for number in numbers:
            image(tmp_path / part / f"{number}.png", SIZE, seed=number)
    boxes = [
        coco_box(10, 1, bbox=[0, 0, 20, 20]),
        coco_box(11, 1, 2, bbox=[50, 50, 40, 40]),
        coco_box(12, 1, 9, bbox=[0, 0, 200, 160], area=10, iscrowd=1),
    ]
    put_coco(tmp_path, "train", {1: SIZE, 2: SIZE}, *boxes)
    put_coco(tmp_path, "val", {3: SIZE}, coco_box(20, 3, bbox=[0, 0, 96, 96]))
    return tmp_path


def check_boxes(root: Path, **options: Any) -> Report:
    return check(root, task="detection", progress=False, **options)


@pytest.mark.parametrize("quick", [True, False])
def test_good_boxes_are_counted(boxed: Path, quick: bool) -> None:
    report = check_boxes(boxed, quick=quick, workers=2)
    assert report.ok and report.exit_code == 0
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, train.unreadable) == (2, 0)
    assert train.classes == {"cat": 1, "dog": 1, "emu": 1}
    assert train.extra == {
        "images without boxes": 1, "boxes left out": 0, "crowd or difficult": 1,
        "small": 2, "medium": 1, "large": 0,  # the crowd is small by its own area
    }  # fmt: skip
    assert val.classes == {"cat": 1, "dog": 0, "emu": 0} and val.extra["large"] == 1
    text = str(report)
    for words in (f"{boxed}: 3 images", "COCO: train: ", "no errors found", "medium"):
        assert words in text
    assert "error:" not in text
    assert by_category(report) == {"classes": [f"{boxed}: no boxes in val of: dog, emu"]}


def test_all_that_is_wrong_with_boxes_is_named_at_once(boxed: Path) -> None:  # case A36
    sizes = dict.fromkeys(range(1, 7), SIZE)
    image(boxed / "train" / "4.png", (200, 150), seed=4)
    (boxed / "train" / "5.png").write_bytes(b"not an image")
    file = put_coco(
        boxed,
        "train",
        sizes,
        coco_box(30, 1, bbox=[10, 10, 0, 40]),
        coco_box(31, 1, bbox=[200, 10, 5, 5]),
        coco_box(32, 2, bbox=[150, 10, 60, 20]),
        coco_box(33, 2, bbox=[10, 10, 20, 20]),
        coco_box(34, 2, bbox=[10, 10, 20, 20]),
        coco_box(35, 2, 2, bbox=[10, 10, 20, 20]),  # of another class, so no repetition
        coco_box(36, 2, bbox=[1, 2]),
        coco_box(37, 4, bbox=[10, 10, 20, 20]),
        coco_box(38, 2, 77, bbox=[10, 10, 20, 20]),
        coco_box(39, 66, bbox=[10, 10, 20, 20]),
        coco_box(40, 5, bbox=[10, 10, 20, 20]),
        coco_box(41, 2, bbox=[199, 10, 1.5, 20]),  # half a pixel is rounding
    )
    report = check_boxes(boxed)
    assert not report.ok and report.exit_code == 1
    found = by_category(report)
    for category, where, words in (
        ("boxes without width or height", "annotation 30 (1.png)", "no width or no height"),
        ("boxes outside their images", "annotation 31 (1.png)", "is outside 200 x 160"),
        ("boxes partly outside their images", "annotation 32 (2.png)", "10 pixels beyond 200"),
        ("boxes stated twice", "annotation 34 (2.png)", "annotation 33 (2.png)"),
        ("boxes that are not numbers", "annotation 36 (2.png)", "is left out"),
        ("images of another size than stated", "4.png", "200 x 150 pixels, but by"),
        ("images that cannot be read", "5.png", "text file"),
        ("missing images", str(file), "train/3.png (image id 3)"),
    ):
        if category != "missing images":
            assert len(found[category]) == 1
        text = "\n".join(found[category])
        assert where in text and words in text
        assert text.split("\n")[0] in str(report)
    assert len(found["missing images"]) == 2
    unusable = "\n".join(found["annotations that cannot be used"])
    assert f"{file}: annotation 38: no category has its category_id 77" in unusable
    assert f"{file}: annotation 39: no image has its image_id 66" in unusable
    assert "no boxes of: emu" in "\n".join(found["classes"])
    train = report.splits["train"]
    assert (train.images, train.unreadable, train.extra["boxes left out"]) == (6, 3, 3)
    assert sum(train.classes.values()) == 7
    assert "boxes without width or height: 1" in str(report).splitlines()[-1]


def test_what_is_unusual_is_no_error(boxed: Path) -> None:
    (boxed / "val" / "3.png").write_bytes((boxed / "train" / "2.png").read_bytes())
    repeated = [coco_box(number, 1, bbox=[5, 5, 20, 20]) for number in (1, 2)]
    put_coco(boxed, "train", {1: SIZE, 2: SIZE}, *repeated)
    put_coco(boxed, "val", {3: SIZE}, coco_box(20, 3, 2, bbox=[0, 0, 96, 96]))
    report = check_boxes(boxed)
    assert report.exit_code == 0
    found = by_category(report)
    assert found["images in two splits"] == [
        f"{boxed}/val/3.png: (val) is of the same bytes as {boxed}/train/2.png (train)"
    ]
    assert [line.removeprefix(f"{boxed}: ") for line in found["classes"]] == [
        "no boxes of: emu", "no boxes in train of: dog", "no boxes in val of: cat",
    ]  # fmt: skip
    assert len(found["boxes stated twice"]) == 1
    assert "images in two splits" not in by_category(check_boxes(boxed, quick=True))


def test_many_issues_of_a_category_are_not_all_written_out(boxed: Path) -> None:
    flat = [coco_box(number, 1, bbox=[5, 5, 0, 0]) for number in range(MAX_LISTED + 30)]
    put_coco(boxed, "train", {1: SIZE}, coco_box(99, 1), *flat)
    report = check_boxes(boxed)
    assert len(by_category(report)["boxes without width or height"]) == MAX_LISTED + 30
    assert str(report).count("has no width or no height") == MAX_LISTED
    assert "error: ... 30 more: boxes without width or height" in str(report)


def test_a_broken_file_does_not_hide_the_rest(boxed: Path) -> None:
    write(boxed, "val.json", (boxed / "val.json").read_text()[:-1])
    put_coco(boxed, "train", {1: SIZE}, coco_box(1, 1), coco_box(2, 1, bbox=[5, 5, 0, 0]))
    found = by_category(check_boxes(boxed))
    assert "val.json: not JSON" in found["annotations that cannot be used"][0]
    assert "boxes without width or height" in found


def test_a_set_without_splits_is_divided_as_training_divides_it(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"all": [Annotated(str(n), {(1, 1, 9, 9): "a"}) for n in range(10)]})
    report = check_boxes(tmp_path, val_fraction=0.3, seed=3)
    assert {name: summary.images for name, summary in report.splits.items()} == {
        "train": 7, "val": 3,
    }  # fmt: skip
    assert "30% of the images held out with seed 3" in str(report)
    for number in range(1, 10):
        (tmp_path / f"all/images/{number}.png").unlink()
    report = check_boxes(tmp_path)
    assert list(report.splits) == ["all"]
    assert "too few to hold one out" in report.select_issues("blocking")[0].message


def test_voc_issues_name_file_and_line(tmp_path: Path) -> None:
    for name, part in (("a", "train"), ("b", "train"), ("c", "val")):
        image(tmp_path / part / f"{name}.png", SIZE, seed=ord(name))
        things = [voc_object("cat", 11, 11, 50, 60), voc_object("Cat ", 30, 11, 30, 60)]
        # The stated size is the wrong way round.
        write(tmp_path, f"{part}/{name}.xml", voc_xml(things, size=(160, 200)))
    write(tmp_path, "train/b.xml", "<annotation>\n<object>")
    write(tmp_path, "train/d.xml", "<annotation/>")
    image(tmp_path / "train" / "lone.png", seed=0)
    found = by_category(check_boxes(tmp_path))
    assert f"{tmp_path}/train/b.xml:2: malformed XML" in found["annotations that cannot be used"][0]
    flat = found["boxes without width or height"][0]
    assert flat.startswith(f"{tmp_path}/train/a.xml:6: (30, 11, 30, 60) has no width")
    assert "d.xml: image missing" in found["missing images"][0]
    assert "is 200 x 160 pixels, but by" in found["images of another size than stated"][0]
    assert 'classes "Cat" and "cat" differ only in case or spaces' in found["classes"][-1]
    assert found["files that are not part of the data set"] == [
        f"{tmp_path}: 1 image is not part of the data set: train/lone.png"
    ]


def test_yolo_issues_name_file_and_line(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number in range(2):
            path = tmp_path / part / "images" / f"{number}.png"
            image(path, SIZE, seed=len(part) + 10 * number)
            write(tmp_path, f"{part}/labels/{number}.txt", "\n0 .5 .5 0 .1\n1 .5 .5 .1 .1\n")
    write(tmp_path, "val/labels/1.txt", "0 .5 .5 .2\n3 .5 .5 .1 .1\n0 .9 .5 .3 .1\n")
    write(
        tmp_path,
        "data.yaml",
        "train: train/images\nval: [val/images, train/images]\ntest: gone\nnames: [a, b]\n",
    )
    report = check_boxes(tmp_path)
    found = by_category(report)
    bad = "\n".join(found["annotations that cannot be used"])
    assert "1.txt:1: 4 numbers" in bad and "1.txt:2: class 3" in bad
    assert len(found["boxes without width or height"]) == 3  # once each, also those in both splits
    assert "labels/0.txt:2: (100, 72, 100, 88) has no width" in str(report)
    assert "1.txt:3: (150, 72, 210, 88) reaches 10 pixels beyond" in str(report)
    assert len(found["images in two splits"]) == 2
    assert "is the same file as" in found["images in two splits"][0]


def test_images_stated_more_than_once(boxed: Path) -> None:
    file = put_coco(boxed, "train", {1: SIZE, 2: SIZE}, coco_box(1, 1, bbox=[5, 5, 20, 20]))
    content = json.loads(file.read_text())
    content["images"][1]["file_name"] = "train/1.png"
    file.write_text(json.dumps(content))
    found = by_category(check_boxes(boxed))
    assert found["images stated more than once"] == [
        f"{boxed}/train/1.png: is stated more than once in train"
    ]


def test_boxes_left_out_are_counted_when_training_starts(
    boxed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = [coco_box(1, 1), coco_box(2, 1, bbox=[5, 5, 0, 0])]
    put_coco(boxed, "train", {1: SIZE}, *boxes)
    assert len(open_splits(BoxSamples, DataOptions(root=str(boxed))).train) == 1
    assert "1 annotations are wrong" in caplog.text and "annotation 2 (1.png)" in caplog.text


# Masks


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Eight and four images of three classes, a quarter of the pixels ignored."""
    for number in range(12):
        split = "train" if number < 8 else "val"
        image(tmp_path / f"{split}/images/{number}.png", (8, 6), seed=number)
        mask(tmp_path / f"{split}/masks/{number}.png", 0, 1, 2, 255)
    write(tmp_path, "classes.txt", "sky\nroad\ncar\n")
    return tmp_path


def check_masks(root: Path, **options: Any) -> Report:
    return check(root, task="segmentation", progress=False, **options)


def test_good_masks_are_ok(masked: Path) -> None:
    report = check_masks(masked, workers=2)
    assert report.ok and report.exit_code == 0
    assert "sky" not in str(check_masks(masked, quick=True))  # pixels are not counted
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, val.images) == (8, 4)
    assert train.classes == {"sky": 96, "road": 96, "car": 96}
    assert train.extra["ignored"] == 96 and val.extra["ignored"] == 48
    text = str(report)
    assert "3 classes by classes.txt" in text and "33.33%" in text and "25.00%" in text
    assert text.endswith("no errors found")


def test_all_that_is_wrong_with_masks_is_found_at_once(masked: Path) -> None:
    mask(masked / "train/masks/0.png", 0, 3, 200, 255)
    mask(masked / "train/masks/1.png", 0, size=(6, 8))
    (masked / "train/masks/2.png").unlink()
    (masked / "train/images/3.png").unlink()
    (masked / "train/images/4.png").write_bytes(b"no image")
    mask(masked / "train/masks/4.png", 0, 9)  # with a bad mask as well
    (masked / "val/masks/9.png").write_bytes(b"")
    report = check_masks(masked)
    assert not report.ok and report.exit_code == 1
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, val.images) == (6, 4)
    # 5, 6, 7 as before, of 0 the values that are classes, of 4 half, of 1 nothing.
    assert train.classes == {"sky": 36 + 12 + 24, "road": 36, "car": 36}
    text = str(report)
    for words in (
        f"error: {masked / 'train/masks/0.png'}: no class has the value 3, 200; classes are 0 to 2",
        f"error: {masked / 'train/masks/4.png'}: no class has the value 9",
        f"error: {masked / 'train/masks/1.png'}: the mask has 6 x 8 pixels",
        f"error: {masked / 'train/images/2.png'}: no mask has its name",
        f"error: {masked / 'train/masks/3.png'}: no image has its name",
        f"error: {masked / 'train/images/4.png'}: not an image: a text file",
        f"error: {masked / 'val/masks/9.png'}: empty file",
    ):
        assert words in text
    assert len(report.select_issues("blocking")) == 7


def test_classes_without_pixels_are_warnings(masked: Path) -> None:
    write(masked, "classes.txt", "sky\nroad\ncar\ndog\n")
    mask(masked / "train/masks/0.png", 3)
    report = check_masks(masked)
    assert report.ok and "no pixels in val of: dog" in str(report)
    assert "no pixels in train" not in str(report)
    write(masked, "classes.txt", "sky\nroad\ncar\ndog\ncow")
    assert "no pixels of: cow" in str(check_masks(masked))
    assert "no pixels" not in str(check_masks(masked, quick=True))  # they are not counted


def test_a_mask_that_fits_turned_as_well_is_a_warning(masked: Path) -> None:
    image(masked / "val/images/8.png", (8, 6), orientation=3)
    report = check_masks(masked)
    assert report.ok and "its mask would fit either way" in str(report)


def test_one_pair_of_folders_is_divided_as_for_training(masked: Path) -> None:
    (masked / "train/masks/0.png").unlink()
    report = check_masks(masked / "train", classes="a,b,c", val_fraction=0.5)
    assert (report.splits["train"].images, report.splits["val"].images) == (3, 4)
    assert len(report.select_issues("blocking")) == 1  # named once


def test_no_usable_mask_is_still_a_report(masked: Path) -> None:
    for path in masked.rglob("*.png"):
        path.write_bytes(b"")
    report = check_masks(masked)
    assert len(report.select_issues("blocking")) == 24
    assert report.splits["train"].classes == {"sky": 0, "road": 0, "car": 0}


def test_no_data_set_has_no_report(masked: Path) -> None:
    for root in (masked / "train" / "images", write_mask_folders(masked / "a") / "train/images"):
        with pytest.raises(DataError, match="no data set with masks recognised"):
            check_masks(root)


# Real ones


def test_corn_leaf_photos_are_fine(shared: Path) -> None:
    report = check(shared / "data" / "corn_leaf")
    assert report.ok and sum(summary.images for summary in report.splits.values()) == 160


def test_real_boxes(shared: Path) -> None:
    report = check_boxes(shared / "data" / "bccd")
    assert report.exit_code == 1
    errors = report.select_issues("blocking", "error")
    assert [issue.category for issue in errors] == ["boxes without width or height"] * 2
    assert {Path(issue.where).name for issue in errors} == {
        "BloodImage_00338.xml:158", "BloodImage_00343.xml:50",
    }  # fmt: skip
    assert list(report.splits) == ["train", "val", "test"]
    assert sum(sum(summary.classes.values()) for summary in report.splits.values()) == 4886
    report = check_boxes(shared / "data" / "coco128")
    assert report.exit_code == 0
    empty = [summary.extra["images without boxes"] for summary in report.splits.values()]
    counts = [sum(summary.classes.values()) for summary in report.splits.values()]
    assert (empty, counts) == ([2, 0], [929, 898])


def test_real_masks(shared: Path) -> None:
    root = shared / "data" / "camvid"
    report = check_masks(root, ignore=11)
    assert report.ok and "no pixels" not in str(report)
    train = report.splits["train"]
    assert (train.images, report.splits["val"].images) == (200, 60)
    assert train.extra["ignored"] + sum(train.classes.values()) == 200 * 480 * 360
    few = check_masks(root, ignore=11, classes="a,b,c,d,e")
    assert 250 < len(few.select_issues("blocking")) <= 260
    report = check_masks(shared / "data" / "coco128", ignore=0)
    assert {issue.category for issue in report.select_issues("blocking")} == {
        "images and masks that do not match"
    }
    assert len(report.select_issues("blocking")) == 56


def test_a_class_that_is_written_twice_in_coco_is_an_error(tmp_path: Path) -> None:
    write_coco(tmp_path)
    file = tmp_path / "annotations/instances_train.json"
    file.write_text(file.read_text().replace('"name": "cat"', '"name": "dog"'))
    report = check_boxes(tmp_path)
    assert 'class "dog" stated more than once' in report.select_issues("blocking")[0].message
