"""What a run began with is compared with what it is resumed on, in every format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import LabelSamples, Samples, Splits
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.segmentation.dataset import MaskSamples
from mobilevit.training.errors import TrainingError
from mobilevit.training.resume import record_data
from tests.data.factories import (
    BOX_WRITERS,
    BOXES,
    MASK_WRITERS,
    image,
    write,
    write_class_folders,
)

MOVED = {
    split: [
        replace(one, boxes={(x1, y1, x2 - 4, y2): name for (x1, y1, x2, y2), name in boxes.items()})
        for one, boxes in ((one, one.boxes) for one in images)
    ]
    for split, images in BOXES.items()
}
"""`BOXES`, each a little narrower."""


def write_table(root: Path, classes: str = "abab") -> Path:
    for number in range(4):
        image(root / f"images/{number}.jpg")
    rows = [f"{number}.jpg,{name}" for number, name in enumerate(classes)]
    write(root, "labels.csv", "\n".join(["image,label", *rows]))
    return root


def lengthen_masks(root: Path, splits: Splits[Any]) -> None:
    file = splits.train.dataset.masks.file(0)
    file.write_bytes(file.read_bytes() + bytes(1))


def edit(name: str, old: str, new: str) -> Callable[[Path, Any], None]:
    def change(root: Path, splits: Splits[Any]) -> None:
        for file in root.rglob(name):
            assert old in file.read_text()
            file.write_text(file.read_text().replace(old, new))

    return change


class Case(NamedTuple):
    """A data set of a task and format, and how its annotations are changed."""

    samples: type[Samples]
    write: Callable[..., Path]
    annotate: Callable[[Path, Splits[Any]], object] | None
    format: str = "auto"


def annotated_again(write: Callable[..., Path]) -> Callable[[Path, Splits[Any]], Path]:
    return lambda root, splits: write(root, MOVED)


OUTLINED = ("labelme", "cvat", "label_studio")
CASES = {
    "classes, folders": Case(LabelSamples, write_class_folders, None),
    "classes, table": Case(LabelSamples, write_table, lambda root, _: write_table(root, "abba")),
    **{
        f"boxes, {name}": Case(BoxSamples, writer, annotated_again(writer))
        for name, writer in BOX_WRITERS.items()
    },
    **{
        f"masks, {name}": Case(
            MaskSamples, writer, annotated_again(writer) if name in OUTLINED else lengthen_masks
        )
        for name, writer in MASK_WRITERS.items()
    },
    "masks, coco": Case(
        MaskSamples, MASK_WRITERS["coco"], edit("instances*.json", "[0, 0, 4, 0,", "[0, 0, 3, 0,")
    ),
    "masks, coco_panoptic": Case(
        MaskSamples,
        MASK_WRITERS["coco"],
        edit("panoptic*.json", '"id": 1, "category_id": 2', '"id": 1, "category_id": 1'),
        "coco_panoptic",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_changes_of_files_and_annotations_are_named(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    root = case.write(tmp_path / "data")

    def record(change: Callable[[Splits[Any]], Splits[Any]] = lambda splits: splits) -> None:
        assert not record_data(tmp_path, change(opened()), resume=True, on_change="error")

    def opened() -> Splits[Any]:
        data = DataOptions(root=str(root), format=case.format, check=False)
        return open_splits(case.samples, data)

    record()
    record()
    with pytest.raises(TrainingError, match=r"\d removed \(train [^/ ]"):
        record(lambda splits: replace(splits, train=splits.train.subset([])))
    splits = opened()
    file = Path(splits.train.name(0))
    content = file.read_bytes()
    file.write_bytes(content + bytes(1))
    size = f"{len(content):,} bytes, .* -> {len(content) + 1:,} bytes"
    with pytest.raises(TrainingError, match=rf": 1 changed \(train \S*{file.name}: {size}"):
        record()
    file.write_bytes(content)
    record()
    if case.annotate is not None:
        case.annotate(root, splits)
        with pytest.raises(TrainingError, match=r": \d changed \(train [^/ ].* -> "):
            record()
