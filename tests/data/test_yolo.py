"""YOLO's text files in the layouts that tools write."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import ParsedDataset, ReadOptions
from mobilevit.data.formats.files import FileTree
from mobilevit.data.formats.objects.yolo import (
    looks_like_data_yaml,
    looks_like_labels,
    parse_line,
    read_boxes,
)
from mobilevit.data.formats.registry import parse
from mobilevit.data.formats.text import read_text
from mobilevit.tasks.detection.dataset import BoxSamples
from tests.data.factories import image, opened, unused, write


def pair(root: Path, file: str, label: str, line: str = "0 .5 .5 .2 .5") -> None:
    image(root / file)
    write(root, label, line + "\n")


def read_yolo(source: Path) -> ParsedDataset:
    (dataset,) = read_boxes(FileTree(source), ReadOptions("boxes"))
    return dataset


def one(root: Path, text: str) -> BoxSamples:
    pair(root, "1.jpg", "1.txt", text)
    return opened(read_yolo(root))


def found(samples: BoxSamples) -> dict[str, int]:
    """File name -> boxes."""
    return {
        Path(samples.name(index)).name: len(samples.annotation(index).labels)
        for index in range(len(samples))
    }


# lines


def test_a_line_is_a_class_and_shares_of_the_image(tmp_path: Path) -> None:
    samples = one(tmp_path, "\ufeff0 0.5 0.5 0.2 0.5\r\n\n 2.0\t.1 .125 .4 .25 \n")
    shown = samples.annotation(0)
    assert shown.boxes[0].tolist() == pytest.approx([40, 20, 60, 60])
    assert shown.boxes[1].tolist() == pytest.approx([0, 0, 30, 20])
    assert shown.labels.tolist() == [0, 2]
    assert samples.classes == ("0", "1", "2")
    assert samples.category_ids == (0, 1, 2)
    assert samples.recorded_size(0) is None
    assert shown.area.tolist() == pytest.approx([800, 600])


def test_a_polygon_becomes_its_bounding_box(tmp_path: Path) -> None:
    samples = one(tmp_path, "0 .1 .25 .5 .5 .3 .75\n1 .1 .1 .2 .1 .2 .3 .1 .4")
    assert samples.annotation(0).boxes.tolist() == [
        pytest.approx([10, 20, 50, 60]), pytest.approx([10, 8, 20, 32])
    ]  # fmt: skip


@given(
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1), st.floats(0.01, 1)),
    st.integers(0, 9),
)
def test_centre_and_sides_come_back(box: tuple[float, ...], number: int) -> None:
    label, (x1, y1, x2, y2) = parse_line([str(number), *map(repr, box)])
    assert label == number
    assert ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1) == pytest.approx(box)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 .5 .5 .2", "4 numbers, but a box has 5"),
        ("0 .5 .5 .2 .2 .9", "6 numbers, but a box has 5"),
        ("0 .5 .5 .2 .2 .9 .9 .9", "8 numbers, but a box has 5"),
        ("0", "1 numbers, but a box has 5"),
        ("cat .5 .5 .2 .2", "not numbers: 'cat .5 .5 .2 .2'"),
        ("0, .5, .5, .2, .2", "not numbers"),
        ("0.5 .5 .5 .2 .2", "starts with 0.5, which is not a class number"),
        ("-1 .5 .5 .2 .2", "starts with -1, which is not a class number"),
        ("nan .5 .5 .2 .2", "starts with nan"),
        ("1e300 .5 .5 .2 .2", "starts with 1e300"),
        ("0 320 240 20 20", "320 is not a share of an image's width or height"),
        ("0 .5 -.7 .2 .2", "-0.7 is not a share"),
        ("0 .5 .5 inf .2", "inf is not a share"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    image(tmp_path / "other.jpg")
    write(tmp_path, "other.txt", "0 .5 .5 .1 .1")
    with pytest.raises(DataError, match=reason) as caught:
        one(tmp_path, f"0 .5 .5 .1 .1\n\n{line}\n")
    assert f"{tmp_path / '1.txt'}:3: " in str(caught.value)
    assert found(opened(read_yolo(tmp_path), on_bad="skip")) == {"other.jpg": 1}


def test_boxes_without_area_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = one(
        tmp_path, "0 .5 .5 0 .2\n0 .5 .5 .2 -.2\n0 nan .5 .1 .1\n0 1.1 .5 .1 .1\n0 1 1 1 1"
    )
    assert samples.annotation(0).boxes.tolist() == [[50, 40, 100, 80]]
    assert "4 annotations are wrong" in caplog.text
    assert "1.txt:1: " in caplog.text


def test_shares_are_of_the_upright_image(tmp_path: Path) -> None:
    image(tmp_path / "1.jpg", (100, 80), orientation=8)
    write(tmp_path, "1.txt", "0 .5 .5 .5 .5")
    assert opened(read_yolo(tmp_path)).annotation(0).boxes.tolist() == [[20, 25, 60, 75]]


def test_key_points_behind_a_box_are_passed_over(tmp_path: Path) -> None:
    line = "0 .5 .5 .2 .5 .1 .1 2 .9 .9 2"
    pair(tmp_path, "images/train/1.jpg", "labels/train/1.txt", line)
    file = write(tmp_path, "data.yaml", "train: images/train\nnames: [person]\nkpt_shape: [2, 3]\n")
    shown = opened(read_yolo(file)).annotation(0)
    assert shown.boxes.tolist() == [pytest.approx([40, 20, 60, 60])]


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    pair(tmp_path, "1.jpg", "1.txt")
    pair(tmp_path, "2.jpg", "2.txt")
    (tmp_path / "1.txt").write_bytes(b"0 .5 .5 .1 .1\xff")
    with pytest.raises(DataError, match=r"1\.txt: not a text in UTF-8 \(byte 13\)"):
        opened(read_yolo(tmp_path))
    assert found(opened(read_yolo(tmp_path), on_bad="skip")) == {"2.jpg": 1}
    (tmp_path / "2.txt").write_text("0 .5 .5 .1 .1", encoding="utf-16")  # as some editors save it
    assert found(opened(read_yolo(tmp_path), on_bad="skip")) == {"2.jpg": 1}
    for name in ("classes.txt", "train.txt"):
        (tmp_path / name).write_bytes(b"\xff")
        with pytest.raises(DataError, match=rf"{name}: not a text in UTF-8 \(byte 0\)"):
            opened(read_yolo(tmp_path))
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"no\.txt: cannot be read: No such file"):
        read_text(tmp_path / "no.txt")


# class names


@pytest.mark.parametrize("file", ["classes.txt", "obj.names", "labels/classes.txt"])
def test_class_names_in_a_text_file(tmp_path: Path, file: str) -> None:
    pair(tmp_path, "images/1.jpg", "labels/1.txt", "1 .5 .5 .1 .1")
    write(tmp_path, file, "cat\n h\u00fcnd \n\n")
    samples = opened(read_yolo(tmp_path))
    assert samples.classes == ("cat", "h\u00fcnd")
    assert samples.annotation(0).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("names", "classes", "numbers"),
    [
        ("[yes, no, 7]", ("yes", "no", "7"), (0, 1, 2)),
        ("{2: c, 0: a, 1: b}", ("a", "b", "c"), (0, 1, 2)),
        ("\n  10: ten\n  2: two\n  1: one", ("one", "two", "ten"), (1, 2, 10)),
    ],
)
def test_class_names_in_yaml(
    tmp_path: Path, names: str, classes: tuple[str, ...], numbers: tuple[int, ...]
) -> None:
    pair(tmp_path, "images/1.jpg", "labels/1.txt", f"{numbers[-1]} .5 .5 .1 .1")
    samples = opened(read_yolo(write(tmp_path, "data.yaml", f"train: images\nnames: {names}\n")))
    assert (samples.classes, samples.category_ids) == (classes, numbers)
    assert samples.annotation(0).labels.tolist() == [2]


def test_empty_names_are_none(tmp_path: Path) -> None:
    pair(tmp_path, "images/1.jpg", "labels/1.txt", "1 .5 .5 .1 .1")
    for names in ("[]", "{}"):
        file = write(tmp_path, "data.yaml", f"train: images\nnames: {names}\n")
        names_file = write(tmp_path, "classes.txt", "cat\ndog")
        assert opened(read_yolo(file)).classes == ("cat", "dog")
        names_file.write_text("\n")
        assert opened(read_yolo(file)).classes == ("0", "1")


def test_a_class_number_without_a_name_is_an_error(tmp_path: Path) -> None:
    pair(tmp_path, "1.jpg", "1.txt", "0 .5 .5 .1 .1\n2 .5 .5 .1 .1")
    write(tmp_path, "classes.txt", "cat\ndog")
    with pytest.raises(DataError, match=r"1\.txt:2: class 2, but there are names for 0 to 1"):
        opened(read_yolo(tmp_path))
    file = write(tmp_path, "data.yaml", "names: {0: cat, 5: dog}")
    with pytest.raises(DataError, match=r"class 2, but there are names for 0, 5"):
        opened(read_yolo(file))


BOMB = "x0: &x0 [a, a]\n" + "".join(
    f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
BOMB += "train: images\nnames: *x29\nnc: *x29\nkpt_shape: *x29\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("train: images\nnames: [a, b, a]", r'class "a" stated more than once'),
        ("train: images\nnames: [a, '']", "a class without a name"),
        ("train: images\nnames: [a]\nnc: 3", "nc is 3, but there are 1 names"),
        ("train: images\nnames: {a: 0}", "names must be a list, or a mapping from class numbers"),
        ("train: images\nnames: cat", "names must be a list"),
        ("train: images\nnames: [a, [b]]", "names must be a list"),
        (BOMB, "names must be a list"),
        ("train: images\n names: [a]\n- x", r"data\.yaml:2: not YAML"),
        ("- images", "not a mapping with names"),
        ("train: bad.txt\nnames: [a]", r"bad\.txt: not a text in UTF-8"),
        ("train: nowhere/train\nnames: [a]", "train: nowhere/train does not exist; looked for in"),
    ],
)
def test_what_is_wrong_with_a_yaml_is_named(tmp_path: Path, text: str, reason: str) -> None:
    pair(tmp_path, "images/1.jpg", "labels/1.txt")
    (tmp_path / "bad.txt").write_bytes(b"images/1.jpg\xff")
    reading = read_yolo(write(tmp_path, "data.yaml", text))
    for on_bad in ("error", "skip"):
        with pytest.raises(DataError, match=reason):
            opened(reading, "train" if "train" in reading.splits else None, on_bad=on_bad)


def test_lists_of_names_that_differ_are_an_error(tmp_path: Path) -> None:
    pair(tmp_path, "1.jpg", "1.txt")
    write(tmp_path, "classes.txt", "cat")
    write(tmp_path, "old/classes.txt", "cat")
    assert opened(read_yolo(tmp_path)).classes == ("cat",)
    write(tmp_path, "old/obj.names", "dog")
    with pytest.raises(DataError, match=r"class names differ: .*obj\.names; keep one"):
        opened(read_yolo(tmp_path))


def test_numbers_without_names_have_a_limit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class number 123456, and no file of class names"):
        one(tmp_path, "123456 .5 .5 .1 .1")


# layouts


@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("1.jpg", "1.txt"),
        ("images/1.jpg", "labels/1.txt"),
        ("images/1.jpg", "1.txt"),
        ("1.JPG", "labels/1.TXT"),
        ("images/train/deep/1.jpg", "labels/train/deep/1.txt"),
        ("train/images/1.jpg", "train/labels/1.txt"),
        ("VOC/JPEGImages/1.jpg", "VOC/labels/1.txt"),
        ("obj_train_data/1.jpg", "obj_train_data/1.txt"),
        ("Bilder/1.jpg", "Kisten/1.txt"),
        ("Images/" + unicodedata.normalize("NFD", "\u00e9.jpg"), "Labels/\u00e9.txt"),
    ],
)
def test_labels_are_found(tmp_path: Path, file: str, label: str) -> None:
    pair(tmp_path, file, label)
    (count,) = found(opened(read_yolo(tmp_path))).values()
    assert count == 1


def test_a_folder_of_labels_goes_before_text_beside_the_image(tmp_path: Path) -> None:
    pair(tmp_path, "images/1.jpg", "labels/1.txt")
    write(tmp_path, "images/1.txt", "a caption")
    assert found(opened(read_yolo(tmp_path))) == {"1.jpg": 1}


def test_images_beside_a_folder_of_images_are_something_else(tmp_path: Path) -> None:
    pair(tmp_path, "images/1.jpg", "labels/1.txt")
    image(tmp_path / "images/2.jpg")
    image(tmp_path / "masks/1.png")
    image(tmp_path / "preview.jpg")
    (reading,) = parse(tmp_path, ReadOptions("boxes"))
    assert found(opened(reading)) == {"1.jpg": 1, "2.jpg": 0}
    (line,) = unused(reading)
    assert line.endswith("1 image is not part of the data set: preview.jpg")


def test_images_without_labels_have_no_boxes(tmp_path: Path) -> None:
    pair(tmp_path, "images/train/1.jpg", "labels/train/1.txt")
    pair(tmp_path, "images/train/2.jpg", "labels/train/2.txt", "")
    image(tmp_path / "images/train/3.jpg")
    # One of the same name in another split is not taken for it.
    pair(tmp_path, "images/val/4.jpg", "labels/val/4.txt")
    write(tmp_path, "labels/val/3.txt", "0 .5 .5 .1 .1")
    reading = read_yolo(tmp_path)
    assert found(opened(reading, "train")) == {"1.jpg": 1, "2.jpg": 0, "3.jpg": 0}
    assert found(opened(reading, "val")) == {"4.jpg": 1}
    assert any("3.txt: no image belongs to it" in line for line in unused(reading))


@pytest.mark.parametrize(
    "text",
    [
        "path: {root}\ntrain: images/train\nval: images/val\n",
        "train: images/train/\nval: ./images/val\ntest:\n",
        "path: .\ntrain: [images/train]\nval: [images/val, images/val/more]\n",
        "path: ../datasets/cells\ntrain: images/train\nval: images/val\n",
        "train: ../images/train\nval: ../images/val\ntest: ../images/test\n",  # as Roboflow has it
        "train: /content/drive/set/images/train\nval: C:\\me\\images\\val\n",
        "path: images\ntrain: train\nval: val\n",
        "train: images/train/1.jpg\nval: [images/val/2.jpg, images/val/more]\n",
        "train: train.txt\nval: lists/val.txt\n",
    ],
)
def test_a_yaml_says_where_the_splits_are(tmp_path: Path, text: str) -> None:
    root = tmp_path / "cells"
    pair(root, "images/train/1.jpg", "labels/train/1.txt", "1 .5 .5 .1 .1")
    pair(root, "images/val/2.jpg", "labels/val/2.txt")
    image(root / "images/val/more/3.jpg")
    pair(root, "images/spare/4.jpg", "labels/spare/4.txt")
    write(root, "train.txt", "./images/train/1.jpg\n")
    write(root, "lists/val.txt", "images/val/2.jpg\n\n/content/images/val/more/3.jpg\n")
    file = write(root, "data.yaml", text.format(root=root) + "names: [cat, dog]\n")
    reading = read_yolo(file)
    assert found(opened(reading, "train")) == {"1.jpg": 1}
    assert found(opened(reading, "val")) == {"2.jpg": 1, "3.jpg": 0}
    assert opened(reading, "val").classes == ("cat", "dog")
    assert set(reading.splits) - {"train", "val"} == ({"test"} if "images/test" in text else set())


def test_images_may_be_far_from_the_yaml(tmp_path: Path) -> None:
    pair(tmp_path, "far/images/train/1.jpg", "far/labels/train/1.txt")
    pair(tmp_path, "away/val/2.jpg", "away/val/2.txt")
    file = write(
        tmp_path,
        "here/data.yaml",
        f"train: {tmp_path}/far/images/train\nval: ../away/val\nnames: [a]\n",
    )
    reading = read_yolo(file)
    assert found(opened(reading, "train")) == {"1.jpg": 1}
    assert found(opened(reading, "val")) == {"2.jpg": 1}


def test_labels_in_nested_folders_are_listed_once(tmp_path: Path) -> None:
    for folder in ("a", "a/b", "a/b/c"):
        pair(tmp_path, f"{folder}/1.jpg", f"{folder}/1.txt")
        write(tmp_path, f"{folder}/stray.txt", "0 .5 .5 .1 .1")
    reading = read_yolo(write(tmp_path, "data.yaml", "train: [a/b/c, a]\nnames: [a]\n"))
    assert found(opened(reading, "train")) == {"1.jpg": 1}
    assert len(reading.images) == len(unused(reading)) == 3


def test_a_yaml_with_names_only_leaves_the_rest_to_the_folders(tmp_path: Path) -> None:
    pair(tmp_path, "train/images/1.jpg", "train/labels/1.txt")
    pair(tmp_path, "valid/images/2.jpg", "valid/labels/2.txt")
    reading = read_yolo(write(tmp_path, "data.yaml", "names: [cat]\nnc: 1\n"))
    assert set(reading.splits) == {"train", "valid"}
    assert reading.classes == ("cat",)


def test_a_folder_called_images_may_be_the_whole_set(tmp_path: Path) -> None:
    root = tmp_path / "images"
    pair(root, "train/1.jpg", "train/1.txt")
    write(tmp_path, "other/2.txt", "0 .5 .5 .1 .1")
    reading = read_yolo(write(root, "data.yaml", "train: train\nnames: [a]\n"))
    assert found(opened(reading, "train")) == {"1.jpg": 1}
    assert not unused(reading)  # what is above it was not looked at


def test_a_split_that_is_not_there_matters_only_if_it_is_wanted(tmp_path: Path) -> None:
    pair(tmp_path, "train/images/1.jpg", "train/labels/1.txt")
    text = "train: ../train/images\ntest: ../test/images\nnames: [a]\n"
    reading = read_yolo(write(tmp_path, "data.yaml", text))
    assert len(opened(reading, "train")) == 1
    with pytest.raises(DataError, match=r"test: \.\./test/images does not exist"):
        opened(reading, "test")


def test_lists_of_images_state_the_splits_of_a_folder(tmp_path: Path) -> None:
    for number in range(4):
        pair(tmp_path, f"obj_train_data/{number}.jpg", f"obj_train_data/{number}.txt")
    write(tmp_path, "train.txt", "data/obj_train_data/0.jpg\ndata/obj_train_data/1.jpg\n")
    write(tmp_path, "valid.txt", "data/obj_train_data/2.jpg\ndata/obj_train_data/gone.jpg\n")
    reading = read_yolo(tmp_path)
    assert found(opened(reading, "train")) == {"0.jpg": 1, "1.jpg": 1}
    with pytest.raises(DataError, match=r"missing images: 1(.|\n)*valid\.txt:2"):
        opened(reading, "valid")
    assert found(opened(reading, "valid", on_bad="skip")) == {"2.jpg": 1}
    assert [line.split(": ")[1] for line in unused(reading)] == ["in no split"]
    assert "3.jpg" in unused(reading)[0]


def test_a_folder_may_be_named_from_within_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair(tmp_path, "images/1.jpg", "labels/1.txt")
    write(tmp_path, "train.txt", "images/1.jpg\n")
    write(tmp_path, "data.yaml", "train: images\nval: ./train.txt\nnames: [a]")
    monkeypatch.chdir(tmp_path)
    for source in (".", "data.yaml"):
        reading = read_yolo(Path(source))
        assert len(reading.images) == 1
        assert found(opened(reading, "train")) == {"1.jpg": 1}


def test_a_strange_set(tmp_path: Path) -> None:
    """Spaces, accents, capitals, nested folders, a byte order mark, a photo turned by EXIF."""
    root = tmp_path / "d\u00e9tection \u2013 v2"
    image(root / "Train/Images/Caf\u00e9 (1).JPEG", (100, 80), orientation=6)
    write(root, "Train/Labels/Caf\u00e9 (1).TXT", "\ufeff1 .25 .5 .5 .1\r\n")
    image(root / "Train/Images/n\u00e6r/2.jpg")
    write(root, "Train/Labels/n\u00e6r/2.txt", "0 .5 .5 1 1\n")
    pair(root, "VALID/Images/3.Jpg", "VALID/Labels/3.txt", "")
    write(root, "README.txt", "exported")
    file = write(
        root,
        "Data.YAML",
        "# by hand\nnames:\n  0: \u5496\u5561\n  1: 'th\u00e9: vert'\n"
        "train: ../Train/Images\nval: ../VALID/Images\n",
    )
    reading = read_yolo(file)
    train = opened(reading, "train")
    assert train.classes == ("\u5496\u5561", "th\u00e9: vert")
    by_name = {train.source(i).name: train.annotation(i) for i in range(len(train))}
    turned = by_name["Caf\u00e9 (1).JPEG"]
    assert turned.boxes.tolist() == [pytest.approx([0, 45, 40, 55])]
    assert turned.labels.tolist() == [1]
    assert by_name["2.jpg"].boxes.tolist() == [[0, 0, 100, 80]]
    assert found(opened(reading, "val")) == {"3.Jpg": 0}
    assert not unused(reading)


# recognition


def test_what_looks_like_yolo(tmp_path: Path) -> None:
    for text in ("names: [a]", "train: x\nval: y"):
        assert looks_like_data_yaml(write(tmp_path, "x.yaml", text))
    for text in ("epochs: 3\ntrain: yes", "- names", "a: [", ""):
        assert not looks_like_data_yaml(write(tmp_path, "x.yaml", text))
    texts = {name: write(tmp_path, f"{name}.txt") for name in ("empty", "words", "numbers")}
    texts["words"].write_text("a photo of a cat with a hat")
    texts["numbers"].write_text("0 .5 .5 .1 .1")
    for name, expected in (("empty", False), ("words", False), ("numbers", True)):
        assert looks_like_labels([f"x/{name}.JPG"], [str(texts[name])]) is expected
    assert not looks_like_labels(["other.jpg"], [str(texts["numbers"])])
    many = [write(tmp_path, f"many/{number:03}.txt") for number in range(200)]
    images = [f"{number:03}.jpg" for number in range(200)]
    many[-1].write_text("3 .5 .5 .1 .1 .9 .9")
    assert looks_like_labels(images, [str(path) for path in many])
