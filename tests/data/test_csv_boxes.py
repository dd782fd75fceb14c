"""CSV tables of boxes, as tools write them; what all formats do is tested with the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import ParsedDataset, ReadOptions
from mobilevit.data.formats.registry import parse
from tests.data.factories import image, opened, stems, unused, write

BOXES = [[10, 20, 40, 60], [0, 0, 100, 80]]


def read_csv(root: Path) -> ParsedDataset:
    (dataset,) = parse(root, ReadOptions("boxes"))
    return dataset


@pytest.mark.parametrize(
    "text",
    [
        "filename,width,height,class,xmin,ymin,xmax,ymax\n"
        "a.jpg,100,80,dog,10,20,40,60\na.jpg,100,80,cat,0,0,100,80\n",
        "a.jpg,10,20,40,60,dog\na.jpg,0,0,100,80,cat\n",
        "photos/a.jpg,10,20,40,60,dog\nphotos/a.jpg,0,0,100,80,cat\n",
        "C:\\mine\\a.jpg,10,20,40,60,dog\nC:\\mine\\a.jpg,0,0,100,80,cat\n",
        '"image","xmin","ymin","xmax","ymax","label"\n'
        '"a.jpg",10.0,20.0,40.0,60.0,"dog"\n\n"a.jpg",0,0,100,80,"cat"\n',
        "Class;X_Min;Y_Min;X_Max;Y_Max;Path\ndog;10;20;40;60;a.jpg\ncat;0;0;100;80;a.jpg\n",
    ],
    ids=["TensorFlow", "RetinaNet", "folders", "Windows", "quotes", "semicolons"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_columns_are_found_by_their_names_or_in_the_usual_order(
    tmp_path: Path, text: str, encoding: str
) -> None:
    image(tmp_path / "photos" / "a.jpg")
    write(tmp_path, "boxes.csv", text.encode(encoding))
    for root in (tmp_path, tmp_path / "boxes.csv"):
        dataset = read_csv(root)
        assert dataset.classes == ("cat", "dog") and not dataset.issues
        found = opened(dataset).annotation(0)
        assert found.boxes.tolist() == BOXES and found.labels.tolist() == [1, 0]


def test_a_row_without_a_box_is_an_image_without_boxes(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        image(tmp_path / f"{name}.jpg")
    write(tmp_path, "boxes.csv", "a.jpg,10,20,40,60,dog\nb.jpg,,,,,\n")
    dataset = read_csv(tmp_path)
    samples = opened(dataset)
    assert stems(samples) == ["a", "b"] and len(samples.annotation(1).labels) == 0
    assert unused(dataset) == [f"{tmp_path}: 1 image is not part of the data set: c.jpg"]


def test_splits_are_named_by_files_or_folders(tmp_path: Path) -> None:
    for name, file in (("a", "train.csv"), ("b", "val_labels.csv"), ("c", "test/_annotations.csv")):
        image(tmp_path / "images" / f"{name}.jpg")
        write(tmp_path, file, f"{name}.jpg,10,20,40,60,dog\n")
    write(tmp_path, "classes.csv", "dog,0\n")  # RetinaNet's numbers of classes
    dataset = read_csv(tmp_path)
    assert {split: stems(opened(dataset, split)) for split in dataset.splits} == {
        "train": ["a"], "val": ["b"], "test": ["c"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.jpg,10,twenty,40,60,dog", "corners are not numbers: 10, twenty, 40, 60"),
        ("a.jpg,10,20,40", "corners are not numbers: 10, 20, 40, "),
        ("a.jpg,10,20,40,60,", "box without a class"),
        (",10,20,40,60,dog", "row without a file name"),
        ("z.jpg,10,20,40,60,dog", "image missing: z.jpg"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: str, reason: str) -> None:
    image(tmp_path / "a.jpg")
    file = write(tmp_path, "boxes.csv", f"a.jpg,10,20,40,60,dog\n{row}\n")
    with pytest.raises(DataError) as caught:
        opened(read_csv(tmp_path))
    assert f"{file}:2: {reason}" in str(caught.value)


def test_other_tables_are_not_boxes(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    write(tmp_path, "_classes.csv", "filename,cat,dog\na.jpg,0,1\n")
    write(tmp_path, "empty.csv")
    with pytest.raises(DataError, match="no data set with boxes recognised"):
        read_csv(tmp_path)
