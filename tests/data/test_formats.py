"""Contracts of all formats: the same data set in each gives the same labels, boxes and masks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from mobilevit.commands.check import check
from mobilevit.data.class_names import VOC_CLASSES
from mobilevit.data.errors import DataError
from mobilevit.data.formats import registry
from mobilevit.data.formats.base import Format, ParsedDataset, ReadOptions
from mobilevit.data.formats.builder import DatasetBuilder
from mobilevit.data.formats.files import FileTree
from mobilevit.data.formats.registry import FORMATS, formats_with, parse
from mobilevit.data.formats.text import read_text
from mobilevit.data.open import open_evaluation, open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import LabelSamples, Splits
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.segmentation.dataset import MaskSamples
from tests.data.factories import (
    BOX_WRITERS,
    BOXES,
    CLASSES,
    MASK_WRITERS,
    Annotated,
    coco_box,
    coco_json,
    image,
    mask,
    stems,
    write,
    write_class_folders,
    write_coco,
    write_coco_masks,
    write_label_studio,
    write_mask_folders,
    write_voc,
    write_voc_masks,
    write_yolo,
)


def boxes(root: Path, **options: object) -> Splits[BoxSamples]:
    return open_splits(BoxSamples, DataOptions(root=str(root), **options))  # type: ignore[arg-type]


def masks(root: Path, **options: object) -> Splits[MaskSamples]:
    return open_splits(MaskSamples, DataOptions(root=str(root), **options))  # type: ignore[arg-type]


def evaluated_boxes(root: Path, **options: object) -> BoxSamples:
    return open_evaluation(BoxSamples, DataOptions(root=str(root), **options))  # type: ignore[arg-type]


def test_every_format_has_a_writer_here() -> None:
    assert formats_with("boxes").keys() == BOX_WRITERS.keys()
    automatic = {f.name for f in FORMATS if f.automatic and "masks" in f.contents}
    assert automatic - {"coco_panoptic"} == MASK_WRITERS.keys()


def test_a_new_format_is_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(tree: FileTree, options: ReadOptions) -> list[ParsedDataset]:
        builder = DatasetBuilder(tree.root, csv)
        for number, line in enumerate(read_text(tree.root / "boxes.csv").splitlines(), start=1):
            name, *corners = line.split(",")
            index = builder.add_image(tree.root / name, annotation_file=tree.root / "boxes.csv")
            builder.add_box(index, [float(side) for side in corners], 0, line=number)
        return [builder.build(["cell"])]

    csv = Format(
        name="csv",
        display_name="CSV",
        contents=frozenset(["boxes"]),
        looks_for="CSV (boxes.csv)",
        matches=lambda tree, content: (tree.root / "boxes.csv").is_file(),
        read=read,
    )
    monkeypatch.setattr(registry, "FORMATS", (*registry.FORMATS, csv))
    for name in "abcd":
        image(tmp_path / f"{name}.png")
    write(tmp_path, "boxes.csv", "a.png,1,2,3,4\nb.png,1,2,3,4\nc.png,1,2,3,4\nd.png,9,9,9,9\n")
    assert boxes(tmp_path).train.annotation(0).boxes.tolist() == [[1, 2, 3, 4]]
    report = check(tmp_path, task="detection", progress=False)
    assert f"{tmp_path}/boxes.csv:4: (9, 9, 9, 9) has no width or no height" in str(report)


# Boxes


@pytest.mark.parametrize("format", BOX_WRITERS)
def test_the_same_boxes_come_from_every_format(tmp_path: Path, format: str) -> None:
    BOX_WRITERS[format](tmp_path)
    for stated in ("auto", format):
        found = boxes(tmp_path, format=stated)
        assert found.train.dataset.format == format
        for split, samples in (("train", found.train), ("val", found.val)):
            assert samples.classes == CLASSES
            assert samples.category_ids == found.train.category_ids
            assert len(samples) == len(BOXES[split])
            by_name = {one.name: one.boxes for one in BOXES[split]}
            for index, stem in enumerate(stems(samples)):
                annotation = samples.annotation(index)
                expected = by_name[stem.removeprefix(f"{split}-")]
                shown = annotation.boxes.round().int().tolist()
                labels = [CLASSES[label] for label in annotation.labels.tolist()]
                assert dict(zip(map(tuple, shown), labels, strict=True)) == dict(expected)


@pytest.mark.parametrize("format", BOX_WRITERS)
def test_damage_is_named_by_file_and_item(tmp_path: Path, format: str) -> None:
    BOX_WRITERS[format](tmp_path)
    file = {
        "coco": tmp_path / "annotations/instances_train.json",
        "csv": tmp_path / "train/_annotations.csv",
        "voc": tmp_path / "train/a.xml",
        "yolo": tmp_path / "train/labels/a.txt",
        "labelme": tmp_path / "train/a.json",
        "cvat": tmp_path / "annotations.xml",
        "label_studio": tmp_path / "train.json",
    }[format]
    change = {
        "coco": ('"category_id": 1,', '"category_id": 77,', "annotation 1: no category"),
        "csv": ("cat,10,20", "cat,left,20", "corners are not numbers: left, 20"),
        "voc": ("<xmin>11</xmin>", "<xmin>left</xmin>", "xmin is not a number"),
        "yolo": ("0 0.25", "0 x", "not numbers"),
        "labelme": ("[[10, 20],", '[["x", 20],', "shape 1: cannot be read: .*'x'"),
        "cvat": ('xtl="10.00"', 'xtl="left"', "xml:5: box cannot be read: .*'left'"),
        "label_studio": ('"width": 30', '"width": "x"', "task 0: region Xy3 cannot be read"),
    }[format]
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(change[0], change[1], 1))
    with pytest.raises(DataError, match=change[2]) as caught:
        boxes(tmp_path)
    assert str(file) in str(caught.value)
    left = boxes(tmp_path, on_bad="skip").train
    assert [stem.removeprefix("train-") for stem in stems(left)] == ["b", "empty"]


@pytest.mark.parametrize("format", BOX_WRITERS)
def test_a_mistake_in_a_reader_is_not_reported_as_one_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    BOX_WRITERS[format](tmp_path)
    for mistake in (AttributeError, KeyError, TypeError):
        monkeypatch.setattr(DatasetBuilder, "add_box", Mock(side_effect=mistake))
        with pytest.raises(mistake):
            parse(tmp_path, ReadOptions("boxes"))


@pytest.mark.parametrize(
    ("format", "field"),
    [("labelme", "label"), ("cvat", "label"), ("cvat", "xtl"), ("label_studio", "original_width")],
)
def test_a_missing_field_is_named(tmp_path: Path, format: str, field: str) -> None:
    BOX_WRITERS[format](tmp_path)
    for file in (*tmp_path.rglob("*.json"), *tmp_path.rglob("*.xml")):
        file.write_text(re.sub(rf'(?<=[ "]){field}(?=["=])', "other", file.read_text()))
    (dataset,) = parse(tmp_path, ReadOptions("boxes"), format)
    assert {i.message.partition("cannot be read: ")[2] for i in dataset.issues} == {
        f"lacks the field '{field}'"
    }


@pytest.mark.parametrize("format", BOX_WRITERS)
def test_missing_and_broken_images_stop_it_or_are_left_out(tmp_path: Path, format: str) -> None:
    BOX_WRITERS[format](tmp_path)
    path = next(path for path in tmp_path.rglob("*b.png"))
    path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=f"images that cannot be read: 1.*\n.*{path.name}.*text"):
        boxes(tmp_path)
    assert len(boxes(tmp_path, check=False).train) == 3
    path.unlink()
    if format != "yolo":  # which lists no images
        with pytest.raises(DataError, match="missing images: 1"):
            boxes(tmp_path)
    found = boxes(tmp_path, on_bad="skip")
    assert len(found.train) == 2 and len(evaluated_boxes(tmp_path)) == 1


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
@pytest.mark.parametrize("format", BOX_WRITERS)
def test_splits_that_are_named_are_used(tmp_path: Path, format: str, val: str) -> None:
    BOX_WRITERS[format](tmp_path, {"train": BOXES["train"], val: BOXES["val"]})
    found = boxes(tmp_path)
    assert (len(found.train), len(found.val)) == (3, 1)
    assert "(3 images), val: " in found.note and "(1 images)" in found.note
    assert len(evaluated_boxes(tmp_path)) == 1
    assert len(evaluated_boxes(tmp_path, split="Train")) == 3


@pytest.mark.parametrize("format", BOX_WRITERS)
@pytest.mark.parametrize("part", ["all", "train"])
def test_a_share_is_held_out_where_no_split_is_named(
    tmp_path: Path, format: str, part: str
) -> None:
    images = [Annotated(str(number), {(1, 1, 9, 9): "cat"}) for number in range(10)]
    BOX_WRITERS[format](tmp_path, {part: images})
    data = DataOptions(root=str(tmp_path), val_fraction=0.3)
    first = open_splits(BoxSamples, data, seed=4)
    assert (len(first.train), len(first.val)) == (7, 3)
    assert "30% of the images held out with seed 4 (7 + 3 images)" in first.note
    stated = "has only train" if part == "train" else "has no train and val splits"
    assert stated in first.note
    assert stems(open_splits(BoxSamples, data, seed=4).val) == stems(first.val)
    assert stems(open_splits(BoxSamples, data, seed=6).val) != stems(first.val)
    assert len(evaluated_boxes(tmp_path)) == 10
    if part == "all":
        with pytest.raises(DataError, match="has no split 'val', it states no splits"):
            evaluated_boxes(tmp_path, split="val")


@pytest.mark.parametrize("format", sorted(BOX_WRITERS.keys() - {"yolo"}))  # of one list of classes
def test_a_class_only_in_val_is_named(tmp_path: Path, format: str) -> None:
    val = {"val": [Annotated("w", {(1, 1, 9, 9): "wolf"})]}
    BOX_WRITERS[format](tmp_path, val)
    # CVAT has one file for all splits.
    BOX_WRITERS[format](tmp_path, {"train": BOXES["train"], **(val if format == "cvat" else {})})
    with pytest.raises(DataError, match='class "wolf" in val but not in train'):
        boxes(tmp_path)
    for quick in (True, False):
        report = check(tmp_path, task="detection", progress=False, quick=quick)
        assert 'class "wolf" in val' in report.select_issues("blocking")[0].message


@pytest.mark.parametrize("reaches", [0.5, 1.02])
@pytest.mark.parametrize("format", sorted(BOX_WRITERS.keys() - {"yolo"}))
def test_boxes_of_relative_coordinates_are_refused(
    tmp_path: Path, format: str, reaches: float
) -> None:
    relative: Any = {(0.1, 0.1, 0.4, reaches): "cat"}  # of formats that do not state shares
    images = {split: [Annotated("a", relative)] for split in ("train", "val")}
    BOX_WRITERS[format](tmp_path, images)
    for path in tmp_path.rglob("*.xml"):  # VOC counts from 1, these from 0
        path.write_text(re.sub(r"<(.m(?:in))>1\.1<", r"<\1>0.1<", path.read_text()))
    unit = "per cent; multiply by 100" if format == "label_studio" else "pixels; multiply x by"
    with pytest.raises(DataError, match=rf"no box reaches beyond .* look relative.* states {unit}"):
        boxes(tmp_path)
    report = check(tmp_path, task="detection", progress=False)
    assert "look relative to the image's size" in str(report) and report.exit_code == 1


def test_shares_in_place_of_per_cent_are_refused_whatever_the_size(tmp_path: Path) -> None:
    relative: Any = {(0.1, 0.1, 0.9, 0.9): "cat"}
    write_label_studio(tmp_path, {"train": [Annotated("a", relative)]})
    file = tmp_path / "train.json"
    file.write_text(re.sub(r'("original_\w+": \d+)', r"\g<1>00", file.read_text()))
    with pytest.raises(DataError, match=r"no box reaches beyond 1\.125: they look relative"):
        boxes(tmp_path)


@pytest.mark.parametrize("format", BOX_WRITERS)
def test_no_boxes_at_all_is_an_error(tmp_path: Path, format: str) -> None:
    BOX_WRITERS[format](tmp_path, {"train": BOXES["train"], "val": [Annotated("a")]})
    with pytest.raises(DataError, match="no boxes in val, 1 images"):
        boxes(tmp_path)


def test_classes_of_test_are_not_those_of_train(tmp_path: Path) -> None:
    for split, names in (("train", "bc"), ("val", "c"), ("test", "a")):
        write_voc(tmp_path, {split: [Annotated(n, {(1, 1, 9, 9): n}) for n in names]})
    found = boxes(tmp_path)
    assert found.train.classes == found.val.classes == ("b", "c")
    assert found.train.category_ids == found.val.category_ids == (1, 2)
    assert found.val.annotation(0).labels.tolist() == [1]


def test_classes_of_two_files_are_matched_by_name(tmp_path: Path) -> None:
    write_coco(tmp_path)
    image(tmp_path / "images" / "x.png")
    file = tmp_path / "annotations/instances_val.json"
    entry = {"id": 1, "file_name": "x.png"}
    coco_json(file, [entry], [coco_box(1, 1, 1)], {3: "unused", 1: "dog"})
    found = boxes(tmp_path)
    assert found.val.classes == ("cat", "dog")
    assert found.val.annotation(0).labels.tolist() == [1]
    assert found.val.category_ids == (4, 1)  # val's own, and a free one for the cat it lacks
    assert found.train.category_ids == (1, 5)


def test_one_file_may_be_given(tmp_path: Path) -> None:
    write_coco(tmp_path)
    train = tmp_path / "annotations/instances_train.json"
    assert len(evaluated_boxes(train)) == 3
    assert len(boxes(train, val_fraction=0.4).val) == 1
    write_yolo(tmp_path / "y", {"images": BOXES["train"]})
    file = write(tmp_path / "y", "cells.yml", "train: images/images\nnames: [a, b]")
    assert len(evaluated_boxes(file)) == 3
    with pytest.raises(DataError, match="is an archive; unpack it"):
        boxes(write(tmp_path, "set.zip"))
    for path, format in ((train, "voc"), (train, "yolo"), (file, "coco")):
        with pytest.raises(DataError, match="is a file that is not recognised; looked for"):
            boxes(path, format=format)


def test_each_split_has_its_json(tmp_path: Path) -> None:
    write_coco(tmp_path, {"train": BOXES["train"]})
    write_coco(tmp_path / "valid", {"valid": BOXES["val"]})
    (tmp_path / "valid/annotations/instances_valid.json").rename(
        tmp_path / "valid/_annotations.coco.json"
    )
    annotations = tmp_path / "annotations"
    for name in ("captions_train.json", "../all.json"):
        (annotations / name).write_text((annotations / "instances_train.json").read_text())
    found = boxes(tmp_path)
    assert "instances_train.json (3 images), val: _annotations.coco.json" in found.note
    datasets = parse(tmp_path, ReadOptions("boxes"))
    assert {split for dataset in datasets for split in dataset.splits} == {"train", "valid"}
    write_coco(tmp_path, {"train2014": BOXES["train"]})
    with pytest.raises(DataError, match=r"several JSON files, .*train.*; give the one to read"):
        boxes(tmp_path)


def test_of_several_yaml_files_the_one_named_data_is_read(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    write(tmp_path, "a.yaml", "names: [a, x]")
    write(tmp_path, "b.yaml", "names: [b, x]")
    with pytest.raises(DataError, match=r"several YAML files, a\.yaml, b\.yaml"):
        boxes(tmp_path)
    write(tmp_path, "data.yaml", "names: [c, x]")
    assert boxes(tmp_path).train.classes == ("c", "x")


def test_two_formats_ask_for_a_choice(tmp_path: Path) -> None:
    one = [Annotated("a", {(1, 1, 9, 9): "cat"})]
    write_yolo(tmp_path, {"train": one})
    write_coco(tmp_path, {"train": one * 3})
    write_voc(tmp_path, {"train": [Annotated(n, {(1, 1, 9, 9): "cat"}) for n in "abcd"]})
    with pytest.raises(DataError, match=r"coco and voc and yolo; state which .*--data.format coco"):
        boxes(tmp_path)
    for format, count in (("coco", 3), ("voc", 4)):
        assert len(evaluated_boxes(tmp_path, format=format)) == count
    with pytest.raises(ValueError, match=r"one of auto, voc, coco, yolo, csv, .*, not 'txt'"):
        boxes(tmp_path, format="txt")


def test_nothing_recognised_says_what_was_looked_for_and_is_there(tmp_path: Path) -> None:
    image(tmp_path / "photos" / "1.png")
    write(tmp_path, "boxes.txt", "1.png,1,2,3,4,cat")
    with pytest.raises(DataError) as caught:
        boxes(tmp_path)
    for words in ("COCO", "VOC", "data.yaml", "it has boxes.txt, photos/"):
        assert words in str(caught.value)
    with pytest.raises(DataError) as caught:
        masks(tmp_path)
    for words in (str(tmp_path), "images", "masks", "annotations", "it has boxes.txt"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match=r"looked for Pascal VOC .*; it has boxes"):
        boxes(tmp_path, format="voc")
    for open_ in (boxes, masks):
        with pytest.raises(DataError, match="no such file or folder"):
            open_(tmp_path / "nothing")
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="it has nothing"):
            open_(tmp_path / "empty")
        with pytest.raises(DataError, match=r"boxes\.txt: is a file"):
            open_(tmp_path / "boxes.txt")


def test_a_stated_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    file = write(tmp_path, "x.json", '{"images": []}')
    with pytest.raises(DataError, match=r'lacks the lists "annotations", "categories"'):
        boxes(file)


def test_issues_of_a_split_that_is_not_used_do_not_matter(tmp_path: Path) -> None:
    write_yolo(tmp_path, dict.fromkeys(("train", "val", "test"), BOXES["train"]))
    write(tmp_path, "test/labels/a.txt", "nonsense")
    assert len(boxes(tmp_path).train) == 3
    with pytest.raises(DataError, match=r"a\.txt:1: not numbers"):
        evaluated_boxes(tmp_path, split="test")


def test_paths_with_steps_back_are_understood(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": BOXES["train"]})
    write(tmp_path, "train.txt", "../" + tmp_path.name + "/train/images/b.png\n")
    samples = evaluated_boxes(tmp_path / "train" / "..")
    assert len(samples) == 1
    assert len(samples.annotation(0).labels) == 1


# Masks


@pytest.mark.parametrize(
    ("format", "classes", "values"),
    [
        ("folders", 3, {0, 1, 2}),
        ("voc", 21, {0, 20, 255}),
        ("ade20k", 150, {255, 0, 149}),
        ("cityscapes", 19, {255, 0, 13, 18}),
        ("coco", 3, {0, 2}),
        ("roboflow", 3, {0, 1, 2}),
        ("labelme", 3, {0, 2}),
        ("cvat", 3, {0, 2}),
        ("label_studio", 3, {0, 2}),
    ],
)
def test_masks_come_from_every_format(
    tmp_path: Path, format: str, classes: int, values: set[int]
) -> None:
    MASK_WRITERS[format](tmp_path)
    for stated in ("auto", format):
        found = masks(tmp_path, format=stated)
        assert (found.train.dataset.format, found.val.dataset.format) == (format, format)
        assert found.train.classes == found.val.classes and len(found.train.classes) == classes
        assert set(np.unique(found.val.mask(0)).tolist()) == values
        assert f"({len(found.train)} images)" in found.note
    val = open_evaluation(MaskSamples, DataOptions(root=str(tmp_path)))
    assert stems(val) == stems(found.val)


@pytest.mark.parametrize("format", MASK_WRITERS)
def test_damaged_masks_are_named(tmp_path: Path, format: str) -> None:
    MASK_WRITERS[format](tmp_path)
    drawn = {
        "labelme": ("val/c.json", "[30, 40]", '["x", 40]'),
        "cvat": ("annotations.xml", "30.00,40.00;60.00", "30.00,40.00;x"),
        "label_studio": ("val.json", "[[30, 50.0]", '[["x", 50.0]'),
    }
    if format in drawn:
        name, before, after = drawn[format]
        text = (tmp_path / name).read_text()
        assert before in text
        (tmp_path / name).write_text(text.replace(before, after))
        reason = "cannot be read"
    elif format == "coco":
        file = tmp_path / "annotations/instances_val2017.json"
        content = json.loads(file.read_text())
        content["annotations"][0]["segmentation"] = [["x"] * 6]
        file.write_text(json.dumps(content))
        name, reason = file.name, "cannot be drawn"
    else:
        samples = masks(tmp_path).val
        file = Path(samples.mask_name(0))
        file.write_bytes(file.read_bytes()[:50])
        name, reason = file.name, "cannot be decoded"
    with pytest.raises(DataError, match=rf"{name}.*{reason}"):
        masks(tmp_path)


@pytest.mark.parametrize("format", ["labelme", "cvat", "label_studio"])
def test_outlines_of_relative_coordinates_are_refused(tmp_path: Path, format: str) -> None:
    relative: Any = {(0.1, 0.1, 0.4, 0.5): "cat"}
    MASK_WRITERS[format](
        tmp_path, {split: [Annotated("a", relative)] for split in ("train", "val")}
    )
    with pytest.raises(DataError, match=r"no box reaches beyond .* look relative"):
        masks(tmp_path)
    report = check(tmp_path, task="segmentation", progress=False)
    assert "look relative to the image's size" in str(report) and report.exit_code == 1


def test_coco_may_be_read_in_three_ways(tmp_path: Path) -> None:
    write_coco_masks(tmp_path)
    assert masks(tmp_path, format="coco").val.classes == ("background", "person", "bicycle")
    assert masks(tmp_path, format="coco_panoptic").val.classes == ("person", "bicycle")
    data = DataOptions(root=str(tmp_path), format="coco_voc")
    val = open_evaluation(MaskSamples, data, classes=VOC_CLASSES)
    assert val.classes == VOC_CLASSES and np.unique(val.mask(0)).tolist() == [0, 2]
    for path in (tmp_path / "annotations").glob("instances*"):
        path.unlink()
    assert masks(tmp_path).val.dataset.format == "coco_panoptic"
    assert np.unique(open_evaluation(MaskSamples, data).mask(0)).tolist() == [2, 255]


def test_one_pair_of_folders_is_divided(tmp_path: Path) -> None:
    write_mask_folders(tmp_path, train="", val="")
    data = DataOptions(root=str(tmp_path), val_fraction=0.5)
    found = open_splits(MaskSamples, data, seed=1)
    assert len(found.train) == len(found.val) == 3
    assert not set(stems(found.train)) & set(stems(found.val))
    assert "50% of the images held out with seed 1 (3 + 3 images)" in found.note
    assert stems(open_splits(MaskSamples, data, seed=1).val) == stems(found.val)
    assert len(open_evaluation(MaskSamples, data)) == 6


def test_train_or_val_alone(tmp_path: Path) -> None:
    write_mask_folders(tmp_path, val="train/")
    data = DataOptions(root=str(tmp_path))
    found = open_splits(MaskSamples, data)
    assert (len(found.train), len(found.val)) == (5, 1) and "has only train" in found.note
    (tmp_path / "train").rename(tmp_path / "val")
    with pytest.raises(DataError, match='has split "val" but nothing to train on'):
        masks(tmp_path)
    assert len(open_evaluation(MaskSamples, data)) == 6


def test_a_models_classes_decide_the_order(tmp_path: Path) -> None:
    MASK_WRITERS["cityscapes"](tmp_path)
    own = masks(tmp_path).val.classes
    data = DataOptions(root=str(tmp_path))
    found = open_splits(MaskSamples, data, classes=[*reversed(own), "more"])
    assert found.train.classes == found.val.classes == (*reversed(own), "more")
    assert np.unique(found.val.mask(0)).tolist() == [0, 5, 18, 255]
    with pytest.raises(DataError, match='unknown classes "sidewalk"'):
        open_evaluation(MaskSamples, data, classes=["road"])


def test_categories_of_val_are_matched_by_name(tmp_path: Path) -> None:
    write_coco_masks(tmp_path)
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 2, "name": "person"}, {"id": 9, "name": "bicycle"}]
    file.write_text(json.dumps(content))
    found = masks(tmp_path)
    values = [np.unique(part.mask(0)).tolist() for part in (found.train, found.val)]
    assert values == [[0, 2], [0, 1]]


def test_only_folders_leave_open_what_is_ignored(tmp_path: Path) -> None:
    found = masks(write_mask_folders(tmp_path / "a"), ignore=2)
    assert found.train.classes == ("0", "1") and found.train.ignore == 2
    with pytest.raises(DataError, match="is read as voc, which states itself what is ignored"):
        masks(write_voc_masks(tmp_path / "b"), ignore=2)


def spoil(root: Path) -> dict[str, str]:
    """Spoil images 0 to 2 and 5 of `write_mask_folders`, add a bad one; name -> reason."""
    (root / "train/masks/0.png").unlink()
    (root / "train/images/1.jpg").write_bytes(b"no image")
    path = root / "train/masks/2.png"
    path.write_bytes(path.read_bytes()[:50])
    mask(root / "val/masks/5.png", 0, size=(6, 8))
    path = image(root / "train/images/6.jpg", (8, 6))
    path.write_bytes(path.read_bytes()[:-5])
    mask(root / "train/masks/6.png", 0, 1, 2)
    return {
        "0.jpg": "no mask",
        "1.jpg": "text file",
        "2.png": "cannot be decoded",
        "5.png": "6 x 8",
        "6.jpg": "truncated",
    }


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    reasons = spoil(write_mask_folders(tmp_path))
    with pytest.raises(DataError, match=r"cannot be used as it is.*--data\.on_bad skip") as caught:
        masks(tmp_path)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 5
    for name, reason in reasons.items():
        assert any(f"/{name}: " in line and reason in line for line in lines)
    with pytest.raises(DataError, match="masks of another size than their images: 1"):
        open_evaluation(MaskSamples, DataOptions(root=str(tmp_path)))


def test_bad_files_may_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reasons = spoil(write_mask_folders(tmp_path))
    image(tmp_path / "val/images/7.jpg", (8, 6))
    mask(tmp_path / "val/masks/7.png", 0, 7)  # a value that is no class
    data = DataOptions(root=str(tmp_path), classes="a,b,c", on_bad="skip")
    found = open_splits(MaskSamples, data)
    assert [*stems(found.train), *stems(found.val)] == ["3", "4"]
    assert found.note.endswith("; 5 images left out")
    assert "6 issues skipped, 5 images left out" in caplog.text and "value 7" in caplog.text
    for reason in reasons.values():
        assert reason in caplog.text
    assert stems(open_evaluation(MaskSamples, data)) == ["4"]
    (tmp_path / "val/masks/4.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of its 3 images can be used"):
        open_evaluation(MaskSamples, data)


# What is left out


@pytest.mark.parametrize(
    ("task", "format"),
    [
        *(("detection", format) for format in BOX_WRITERS),
        *(("segmentation", format) for format in MASK_WRITERS),
        ("classification", ""),
    ],
)
def test_images_that_are_left_out_are_counted_and_named_by_train_and_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, task: Any, format: str
) -> None:
    write_set, samples_type = {
        "detection": (BOX_WRITERS.get(format), BoxSamples),
        "segmentation": (MASK_WRITERS.get(format), MaskSamples),
        "classification": (write_class_folders, LabelSamples),
    }[task]
    assert write_set is not None
    write_set(tmp_path)
    found: Splits[Any] = open_splits(samples_type, DataOptions(root=str(tmp_path)))
    assert "not all of it is used" not in caplog.text
    caplog.clear()
    folder = Path(found.train.name(0)).parent
    for number in range(3):
        write(folder, f"left{number}.HEIC", b"\0\0\0\x18ftypheic")
    image(tmp_path / "spare" / "lone.png", (8, 6))
    open_splits(samples_type, DataOptions(root=str(tmp_path)))
    report = str(check(tmp_path, task=task, progress=False, quick=True))
    name = (folder / "left0.HEIC").relative_to(tmp_path)
    for text in (caplog.text, report):
        message = f"3 images are in formats that are not read; convert them: {name}"
        assert text.count(message) == 1
        assert "1 image is not part of the data set: spare/lone.png" in text


@pytest.mark.parametrize("lists", ["path: {root}\ntrain: images", "train: {root}/list.txt", None])
def test_images_that_absolute_paths_name_are_used_below_a_relative_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: str | None
) -> None:
    for name in ("1", "2", "lone"):
        image(tmp_path / f"set/{'spare' if name == 'lone' else 'images'}/{name}.png")
        write(tmp_path, f"set/labels/{name}.txt", "0 .5 .5 .1 .1")
    root = tmp_path / "set"
    listing = f"{root}/images/1.png\n{root}/images/2.png"
    write(root, "list.txt" if lists else "train.txt", listing)
    if lists:
        write(root, "data.yaml", f"names: [a]\n{lists.format(root=root)}")
    monkeypatch.chdir(tmp_path)
    (dataset,) = parse("set", ReadOptions("boxes"), "yolo")
    assert len(dataset.images) == len(dataset.splits["train"]) == 2
    unused = [issue.message for issue in dataset.issues if "image" in issue.message]
    assert unused[-1] == "1 image is not part of the data set: spare/lone.png"


def test_doubtful_masks_are_not_called_unused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_mask_folders(tmp_path)
    image(tmp_path / "train/images/0.jpg", (8, 6), orientation=3)  # its mask fits either way
    open_splits(MaskSamples, DataOptions(root=str(tmp_path)))
    assert not caplog.text
    assert "would fit either way" in str(check(tmp_path, task="segmentation", progress=False))


# Real ones


def test_real_boxes(shared: Path) -> None:
    found = boxes(shared / "data" / "bccd")
    assert (len(found.train), len(found.val)) == (205, 87)
    assert found.train.classes == found.val.classes == ("Platelets", "RBC", "WBC")
    assert found.note.startswith("Pascal VOC: train: train (205 images)")
    found = boxes(shared / "data" / "coco128")
    assert (len(found.train), len(found.val)) == (128, 128)
    assert found.note.startswith("COCO: train: instances_train2017.json (128 images)")
    with pytest.raises(DataError, match="no data set with boxes recognised"):
        boxes(shared / "data" / "camvid")


def test_real_masks(shared: Path) -> None:
    found = masks(shared / "data" / "camvid", ignore=11)
    assert (len(found.train), len(found.val)) == (200, 60)
    assert found.train.classes == tuple(map(str, range(11))) and found.train.ignore == 11
    assert found.val.mask(0).shape == (360, 480)
    root = shared / "data" / "coco128"
    with pytest.raises(DataError, match="images and masks that do not match: 56"):
        masks(root, ignore=0)
    found = masks(root, ignore=0, on_bad="skip")
    assert (len(found.train), len(found.val)) == (100, 100)
    assert found.train.classes[0] == "1" and len(found.train.classes) <= 200
    assert found.train.ignore == 255
    data = DataOptions(root=str(root), ignore=0, on_bad="skip")
    val = open_evaluation(MaskSamples, data, classes=found.train.classes)
    np.testing.assert_array_equal(val.mask(3), found.val.mask(3))
