"""A check of annotated images finds all that is wrong at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.formats.folders import DataError
from mobilevit.tasks.detection.check import AT_MOST, BoxReport, check_boxes


def image(path: Path, seed: int, size: tuple[int, int] = (200, 160)) -> Path:
    """A file like no other: noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def put(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def kinds(report: BoxReport) -> dict[str, list[str]]:
    """Kind of problem -> what is said of each."""
    found: dict[str, list[str]] = {}
    for problem in report.problems:
        found.setdefault(problem.kind, []).append(f"{problem.where}: {problem.what}")
    return found


def annotation(number: int, image: int, *bbox: float, label: int = 1, **more: Any) -> Any:
    return {"id": number, "image_id": image, "category_id": label, "bbox": list(bbox), **more}


def coco(root: Path, part: str, images: dict[int, tuple[int, int]], *annotations: Any) -> Path:
    content = {
        "images": [
            {"id": n, "file_name": f"{part}/{n}.png", "width": w, "height": h}
            for n, (w, h) in images.items()
        ],
        "annotations": list(annotations),
        "categories": [{"id": n, "name": name} for n, name in ((1, "cat"), (2, "dog"), (9, "emu"))],
    }
    return put(root, f"{part}.json", json.dumps(content))


SIZE = (200, 160)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Two images to train on, one to evaluate by, nothing wrong."""
    for part, numbers in (("train", (1, 2)), ("val", (3,))):
        for number in numbers:
            image(tmp_path / part / f"{number}.png", number)
    boxes = [
        annotation(10, 1, 0, 0, 20, 20),
        annotation(11, 1, 50, 50, 40, 40, label=2),
        annotation(12, 1, 0, 0, 200, 160, label=9, area=10, iscrowd=1),
    ]
    coco(tmp_path, "train", {1: SIZE, 2: SIZE}, *boxes)
    coco(tmp_path, "val", {3: SIZE}, annotation(20, 3, 0, 0, 96, 96))
    return tmp_path


@pytest.mark.parametrize("quick", [True, False])
def test_a_good_set_is_counted(good: Path, quick: bool) -> None:
    report = check_boxes(good, quick=quick, workers=2, progress=False)
    assert report.ok and report.exit_code == 0
    assert report.problems == ()
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, train.empty, train.unreadable, train.unusable) == (2, 1, 0, 0)
    assert train.boxes == {"cat": 1, "dog": 1, "emu": 1}
    assert train.crowd == 1
    assert train.sizes == (2, 1, 0)  # the crowd is small by its own area
    assert val.boxes == {"cat": 1, "dog": 0, "emu": 0}
    assert val.sizes == (0, 0, 1)
    text = str(report)
    for words in (f"{good}: coco, 3 images", "nothing is wrong with it", "medium"):
        assert words in text
    assert "warning" not in text and "error" not in text


def test_all_that_is_wrong_is_named_at_once(good: Path) -> None:  # case A36
    sizes = dict.fromkeys(range(1, 7), SIZE)
    image(good / "train" / "4.png", 4, (200, 150))
    (good / "train" / "5.png").write_bytes(b"not an image")
    coco(
        good,
        "train",
        sizes,
        annotation(30, 1, 10, 10, 0, 40),
        annotation(31, 1, 200, 10, 5, 5),
        annotation(32, 2, 150, 10, 60, 20),
        annotation(33, 2, 10, 10, 20, 20),
        annotation(34, 2, 10, 10, 20, 20),
        annotation(35, 2, 10, 10, 20, 20, label=2),  # of another class, so no repetition
        annotation(36, 2, 1, 2),
        annotation(37, 4, 10, 10, 20, 20),
        annotation(38, 2, 10, 10, 20, 20, label=77),
        annotation(39, 66, 10, 10, 20, 20),
        annotation(40, 5, 10, 10, 20, 20),
        annotation(41, 2, 199, 10, 1.5, 20),  # half a pixel is rounding
    )
    report = check_boxes(good, progress=False)
    assert not report.ok and report.exit_code == 1
    found = kinds(report)
    file = good / "train.json"
    for kind, where, words in (
        ("boxes without width or height", "annotation 30 (1.png)", "no width or no height"),
        ("boxes outside their images", "annotation 31 (1.png)", "is outside 200 x 160"),
        ("boxes partly outside their images", "annotation 32 (2.png)", "10 pixels out of 200"),
        ("boxes stated twice", "annotation 34 (2.png)", "annotation 33 (2.png)"),
        ("boxes that are no numbers", "annotation 36 (2.png)", "is left out"),
        ("images of another size than stated", "4.png", "200 x 150 pixels, but by"),
        ("images that cannot be read", "5.png", "text file"),
        ("missing images", str(file), "train/3.png (image id 3)"),
    ):
        if kind != "missing images":
            assert len(found[kind]) == 1
        text = "\n".join(found[kind])
        assert where in text and words in text
        assert text.split("\n")[0] in str(report)
    assert len(found["missing images"]) == 2
    unusable = "\n".join(found["annotations that cannot be used"])
    assert f"{file}: annotation 38: no category has its category_id 77" in unusable
    assert f"{file}: annotation 39: no image has its image_id 66" in unusable
    assert "no boxes of: emu" in "\n".join(found["classes"])
    train = report.splits["train"]
    assert (train.images, train.unreadable, train.unusable) == (6, 3, 3)
    assert sum(train.boxes.values()) == 7
    assert "boxes without width or height: 1" in str(report).splitlines()[-1]


def test_warnings_alone_are_no_error(good: Path) -> None:
    (good / "val" / "3.png").write_bytes((good / "train" / "2.png").read_bytes())
    coco(good, "train", {1: SIZE, 2: SIZE}, *[annotation(n, 1, 5, 5, 20, 20) for n in (1, 2)])
    coco(good, "val", {3: SIZE}, annotation(20, 3, 0, 0, 96, 96, label=2))
    report = check_boxes(good, progress=False)
    assert report.exit_code == 0
    found = kinds(report)
    assert found["images in two splits"] == [
        f"{good}/val/3.png: (val) is of the same bytes as {good}/train/2.png (train)"
    ]
    assert [line.removeprefix(f"{good}: ") for line in found["classes"]] == [
        "no boxes of: emu", "no boxes in train, but in others, of: dog"
    ]  # fmt: skip
    assert len(found["boxes stated twice"]) == 1
    assert "warning: " in str(report) and "error: " not in str(report)
    assert "images in two splits" not in kinds(check_boxes(good, quick=True, progress=False))


def test_many_problems_of_a_kind_are_not_all_written_out(good: Path) -> None:
    coco(good, "train", {1: SIZE}, *[annotation(n, 1, 5, 5, 0, 0) for n in range(AT_MOST + 30)])
    report = check_boxes(good, progress=False)
    assert len(kinds(report)["boxes without width or height"]) == AT_MOST + 30
    assert str(report).count("has no width or no height") == AT_MOST
    assert "error: ... 30 more: boxes without width or height" in str(report)


def test_a_broken_file_does_not_hide_the_rest(good: Path) -> None:
    put(good, "val.json", (good / "val.json").read_text()[:-1])
    coco(good, "train", {1: SIZE}, annotation(1, 1, 5, 5, 0, 0))
    found = kinds(check_boxes(good, progress=False))
    assert "val.json: not JSON" in found["annotations that cannot be used"][0]
    assert "boxes without width or height" in found


def test_a_set_without_splits_is_divided_as_training_divides_it(tmp_path: Path) -> None:
    for number in range(10):
        image(tmp_path / f"{number}.png", number // 5 if number % 5 == 4 else 100 + number)
        put(tmp_path, f"{number}.txt", "0 .5 .5 .1 .1")
    report = check_boxes(tmp_path, val_fraction=0.3, seed=3, progress=False)
    assert {name: facts.images for name, facts in report.splits.items()} == {
        "train": 7, "val": 3,
    }  # fmt: skip
    assert "30% of the images held out with seed 3" in str(report)
    for number in range(1, 10):
        (tmp_path / f"{number}.png").unlink()
    assert list(check_boxes(tmp_path, progress=False).splits) == ["all"]


def test_voc_problems_name_file_and_line(tmp_path: Path) -> None:
    thing = (
        "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>11</ymin>"
        "<xmax>{}</xmax><ymax>60</ymax></bndbox></object>\n"
    )
    for name, part in (("a", "train"), ("b", "train"), ("c", "val")):
        image(tmp_path / part / f"{name}.png", ord(name))
        things = thing.format("cat", 11, 50) + thing.format("Cat ", 30, 30)
        size = "<size><width>160</width><height>200</height></size>"  # the wrong way round
        put(tmp_path, f"{part}/{name}.xml", f"<annotation>{size}\n{things}</annotation>")
    put(tmp_path, "train/b.xml", "<annotation>\n<object>")
    put(tmp_path, "train/d.xml", "<annotation/>")
    image(tmp_path / "train" / "lone.png", 0)
    report = check_boxes(tmp_path, progress=False)
    found = kinds(report)
    assert f"{tmp_path}/train/b.xml:2: malformed XML" in found["annotations that cannot be used"][0]
    assert (
        f"{tmp_path}/train/a.xml:3: (30, 11, 30, 60) has no width"
        in (found["boxes without width or height"][0])
    )
    assert "d.xml: image missing" in found["missing images"][0]
    assert "is 200 x 160 pixels, but by" in found["images of another size than stated"][0]
    assert 'classes "Cat" and "cat" differ in capitals or spaces only' in found["classes"][-1]
    assert found["files that are no part of it"] == [
        f"{tmp_path}/train/lone.png: no XML file belongs to it"
    ]


def test_yolo_problems_name_file_and_line(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number in range(2):
            image(tmp_path / part / "images" / f"{number}.png", len(part) + 10 * number)
            put(tmp_path, f"{part}/labels/{number}.txt", "\n0 .5 .5 0 .1\n1 .5 .5 .1 .1\n")
    put(tmp_path, "val/labels/1.txt", "0 .5 .5 .2\n3 .5 .5 .1 .1\n0 .9 .5 .3 .1\n")
    put(
        tmp_path,
        "data.yaml",
        "train: train/images\nval: [val/images, train/images]\ntest: gone\nnames: [a, b]\n",
    )
    report = check_boxes(tmp_path, progress=False)
    found = kinds(report)
    bad = "\n".join(found["annotations that cannot be used"])
    assert "1.txt:1: 4 numbers" in bad and "1.txt:2: class 3" in bad and "test: gone is not" in bad
    assert len(found["boxes without width or height"]) == 3  # once each, also those in both splits
    assert "labels/0.txt:2: (100, 72, 100, 88) has no width" in str(report)
    assert "1.txt:3: (150, 72, 210, 88) stands 10 pixels out" in str(report)
    assert len(found["images in two splits"]) == 2
    assert "is the same file as" in found["images in two splits"][0]


def test_images_stated_more_than_once(good: Path) -> None:
    file = coco(good, "train", {1: SIZE, 2: SIZE}, annotation(1, 1, 5, 5, 20, 20))
    content = json.loads(file.read_text())
    content["images"][1]["file_name"] = "train/1.png"
    file.write_text(json.dumps(content))
    found = kinds(check_boxes(good, progress=False))
    assert found["images stated more than once"] == [
        f"{good}/train/1.png: is stated more than once in a split"
    ]


def test_nothing_recognised_gets_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no boxes recognised"):
        check_boxes(tmp_path)
    with pytest.raises(ValueError, match="workers"):
        check_boxes(tmp_path, workers=0)


def test_real_sets(shared: Path) -> None:
    report = check_boxes(shared / "data" / "bccd", progress=False)
    assert report.exit_code == 1
    assert [problem.kind for problem in report.problems] == ["boxes without width or height"] * 2
    assert {Path(p.where).name for p in report.problems} == {
        "BloodImage_00338.xml:158", "BloodImage_00343.xml:50",
    }  # fmt: skip
    boxes = [sum(facts.boxes.values()) for facts in report.splits.values()]
    assert list(report.splits) == ["train", "val", "test"]
    assert sum(boxes) == 4886
    report = check_boxes(shared / "data" / "coco128", progress=False)
    assert report.exit_code == 0
    assert [facts.empty for facts in report.splits.values()] == [2, 0]
    assert [sum(facts.boxes.values()) for facts in report.splits.values()] == [929, 898]
