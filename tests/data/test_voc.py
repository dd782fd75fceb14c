"""Pascal VOC's XML and masks, as its makers meant them and as tools write them."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilevit.data.class_names import VOC_CLASSES
from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import ParsedDataset, ReadOptions
from mobilevit.data.formats.masks.datasets import find_voc
from mobilevit.data.formats.masks.values import voc_palette
from mobilevit.data.formats.objects.voc import looks_like_voc
from mobilevit.data.formats.registry import parse
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.segmentation.dataset import MaskSamples
from tests.data.factories import (
    image,
    mask,
    opened,
    stems,
    unused,
    voc_object,
    voc_xml,
    write,
)


def read_voc(root: Path) -> ParsedDataset:
    (dataset,) = parse(root, ReadOptions("boxes"), "voc")
    return dataset


def one(root: Path, *things: str, **options: Any) -> BoxSamples:
    """A folder with one image of 100 x 80, opened."""
    image(root / "JPEGImages" / "1.jpg")
    write(root, "Annotations/1.xml", voc_xml(things, **options))
    return opened(read_voc(root))


# coordinates


def test_pixels_are_counted_from_1_and_include_the_last(tmp_path: Path) -> None:
    samples = one(
        tmp_path,
        voc_object("dog", 1, 1, 100, 80),
        voc_object("cat", 11, 21, "40.5", 60),
        size=(100, 80),
    )
    found = samples.annotation(0)
    assert found.boxes.tolist() == [[0, 0, 100, 80], [10, 20, 40.5, 60]]
    assert samples.classes == ("cat", "dog")
    assert samples.category_ids == (1, 2)
    assert found.labels.tolist() == [1, 0]
    assert samples.recorded_size(0) == (80, 100)
    assert read_voc(tmp_path).notes == ()


def test_a_set_with_more_boxes_at_0_than_at_1_counts_from_0(tmp_path: Path) -> None:
    samples = one(tmp_path, voc_object("a", 0, 1, 9, 9), voc_object("a", 0, 20, 30, 40.5))
    assert samples.annotation(0).boxes.tolist() == [[0, 1, 9, 9], [0, 20, 30, 40.5]]
    assert "count from 0" in read_voc(tmp_path).notes[0]
    samples = one(tmp_path, voc_object("a", 0, 1, 9, 9), voc_object("a", 1, 20, 30, 40))
    assert samples.annotation(0).boxes.tolist() == [[0, 0, 9, 9], [0, 19, 30, 40]]


def test_a_click_without_a_drag_is_no_pixel(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = one(
        tmp_path, voc_object("a", 50, 40, 50, 40), voc_object("a", 5, 5, 9, 9), size=(100, 80)
    )
    assert samples.annotation(0).boxes.tolist() == [[4, 4, 9, 9]]
    assert "1 annotations are wrong" in caplog.text and "1.xml:3" in caplog.text


def test_difficult_objects_are_crowds_and_parts_are_no_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    samples = one(
        tmp_path,
        voc_object("a", 11, 21, 40, 60, difficult=1, more=part),
        voc_object(" a ", 3, 3, 9, 9, difficult="Unspecified"),
    )
    found = samples.annotation(0)
    assert found.crowd.tolist() == [True, False]
    assert found.boxes.tolist() == [[10, 20, 40, 60], [2, 2, 9, 9]]
    assert samples.classes == ("a",)


@pytest.mark.parametrize("size", [None, (0, 0), ("", "x"), (100, "1e999"), (-100, -80)])
def test_a_size_that_says_nothing_is_not_recorded(
    tmp_path: Path, size: tuple[object, object] | None
) -> None:
    samples = one(tmp_path, voc_object("a", 11, 21, 140, 60), size=size)
    assert samples.recorded_size(0) is None
    assert samples.annotation(0).boxes.tolist() == [[10, 20, 100, 60]]


def test_a_size_that_lies_changes_no_box(tmp_path: Path) -> None:
    samples = one(tmp_path, voc_object("a", 11, 21, 40, 60), size=(50, 50.0))
    assert samples.recorded_size(0) == (50, 50)
    assert samples.annotation(0).boxes.tolist() == [[10, 20, 40, 60]]


# broken files


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (voc_xml()[:-5], r"1\.xml:\d: malformed XML"),
        ("<annotation>\n<object>\n</annotation>", r"1\.xml:3: malformed XML: mismatched tag"),
        ("", r"1\.xml:1: malformed XML: no element found"),
        (voc_xml([voc_object("", 1, 1, 9, 9)]), r"1\.xml:3: object without a name"),
        (voc_xml([voc_object("a", 1, 1, 9, "wide")]), r"1\.xml:3: ymax is not a number: 'wide'"),
        (
            voc_xml(["<object><name>a</name></object>"]),
            r"1\.xml:3: object without xmin in a bndbox",
        ),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', r"1\.xml:1: not in the encoding"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_its_line(
    tmp_path: Path, text: str, reason: str
) -> None:
    image(tmp_path / "1.jpg")
    image(tmp_path / "2.jpg")
    write(tmp_path, "1.xml", text)
    write(tmp_path, "2.xml", voc_xml([voc_object("a", 1, 1, 9, 9)]))
    with pytest.raises(DataError, match=reason):
        opened(read_voc(tmp_path))
    assert stems(opened(read_voc(tmp_path), on_bad="skip")) == ["2"]


BOMB = (
    '<?xml version="1.0"?>\n<!DOCTYPE annotation [\n<!ENTITY a0 "aaaaaaaaaa">\n'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">\n' for n in range(1, 12))
    + "]>\n<annotation><filename>&a11;</filename></annotation>"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        '<!DOCTYPE x [<!ENTITY file SYSTEM "secret.txt">]>'
        "<annotation><object><name>&file;</name></object></annotation>",
        '<!DOCTYPE x [<!ENTITY % outer SYSTEM "secret.txt"> %outer;]><annotation/>',
    ],
)
def test_entities_are_refused_before_they_grow_or_read_a_file(
    tmp_path: Path, text: str, encoding: str
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    image(tmp_path / "1.jpg")
    write(tmp_path, "1.xml", text.encode(encoding))
    with pytest.raises(DataError, match=r"1\.xml:\d: declares entities, which are not read"):
        opened(read_voc(tmp_path))


def test_a_document_type_without_entities_is_harmless(tmp_path: Path) -> None:
    image(tmp_path / "1.jpg")
    write(
        tmp_path,
        "1.xml",
        '<!DOCTYPE annotation SYSTEM "voc.dtd">' + voc_xml([voc_object("a", 1, 1, 9, 9)]),
    )
    assert len(opened(read_voc(tmp_path)).annotation(0).labels) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb2312", "windows-1251"])
def test_names_in_many_encodings(tmp_path: Path, encoding: str) -> None:
    name = {"gb2312": "\u72d7", "windows-1251": "\u043f\u0451\u0441"}.get(encoding, "h\u00fcnd")
    image(tmp_path / "1.jpg")
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n' + voc_xml(
        [voc_object(name, 1, 1, 9, 9)]
    )
    write(tmp_path, "1.xml", text.encode(encoding))
    assert opened(read_voc(tmp_path)).classes == (name,)


def test_other_xml_is_no_part_of_it(tmp_path: Path) -> None:
    image(tmp_path / "1.jpg")
    image(tmp_path / "lone.jpg")
    write(tmp_path, "1.xml", voc_xml([voc_object("a", 1, 1, 9, 9)]))
    write(tmp_path, "project.xml", "<project><annotation/></project>")
    write(tmp_path, "broken.xml", "<project><annotation>")
    reading = read_voc(tmp_path)
    assert stems(opened(reading)) == ["1"]
    assert "project.xml: XML of another kind (<project>)" in "\n".join(unused(reading))
    assert looks_like_voc(tmp_path / "1.xml")
    assert looks_like_voc(write(tmp_path, "wide.xml", voc_xml().encode("utf-16")))
    assert not looks_like_voc(write(tmp_path, "b.xml", "<annotations><image/></annotations>"))
    assert not looks_like_voc(tmp_path / "absent.xml")


# files and folders


@pytest.mark.parametrize(
    ("annotation", "file", "filename"),
    [
        ("1.xml", "1.jpg", ""),
        ("Annotations/1.xml", "JPEGImages/1.JPG", "other.jpg"),
        ("Annotations/1.xml", "1.jpeg", ""),
        ("annotations/night/1.xml", "Images/night/1.png", ""),
        ("train/Annotations/1.xml", "train/JPEGImages/1.jpg", ""),
        ("Annotations/train/1.xml", "images/train/1.jpg", ""),
        ("labels/renamed.xml", "images/img 1.jpg", "C:\\photos\\img 1.jpg"),
        ("Beschriftung/1.xml", "Bilder/1.jpg", ""),
        ("xml/" + unicodedata.normalize("NFD", "\u00e9") + ".xml", "imgs/\u00e9.jpg", ""),
    ],
)
def test_the_image_of_an_xml_file_is_found(
    tmp_path: Path, annotation: str, file: str, filename: str
) -> None:
    there = image(tmp_path / file)
    write(tmp_path, annotation, voc_xml([voc_object("a", 1, 1, 9, 9)], filename=filename))
    assert opened(read_voc(tmp_path)).source(0).samefile(there)


def test_the_name_of_the_xml_file_goes_before_the_stated_one(tmp_path: Path) -> None:
    for name in "12":
        image(tmp_path / f"{name}.jpg")
        write(tmp_path, f"{name}.xml", voc_xml([voc_object("a", 1, 1, 9, 9)], filename="1.jpg"))
    assert stems(opened(read_voc(tmp_path))) == ["1", "2"]


def test_of_images_with_one_name_the_stated_one_is_taken(tmp_path: Path) -> None:
    for extension in ("jpg", "png", "webp"):
        image(tmp_path / f"1.{extension}")
    write(tmp_path, "1.xml", voc_xml([voc_object("a", 1, 1, 9, 9)], filename="1.png"))
    assert opened(read_voc(tmp_path)).source(0).name == "1.png"


def test_missing_images_are_named(tmp_path: Path) -> None:
    image(tmp_path / "train" / "1.jpg")
    image(tmp_path / "val" / "2.jpg")  # of the same name, but of another split
    for name in ("1", "2", "3"):
        write(
            tmp_path,
            f"train/{name}.xml",
            voc_xml([voc_object("a", 1, 1, 9, 9)], filename=f"{name}.gif"),
        )
    with pytest.raises(DataError, match="missing images: 2") as caught:
        opened(read_voc(tmp_path))
    assert "3.xml: image missing: none has its name, or is 3.gif" in str(caught.value)
    assert stems(opened(read_voc(tmp_path), on_bad="skip")) == ["1"]


def test_lists_state_the_splits(tmp_path: Path) -> None:
    for name in ("1", "2.5", "my photo 1", "4", "deep/5", "6"):
        image(tmp_path / "JPEGImages" / f"{name}.jpg")
        write(tmp_path, f"Annotations/{name}.xml", voc_xml([voc_object("a", 1, 1, 9, 9)]))
    write(tmp_path, "ImageSets/Main/train.txt", "1  1\n2.5 -1\r\nmy photo 1\n\n1\n")
    write(tmp_path, "ImageSets/Main/Val.TXT", "4.jpg\nJPEGImages/6.jpg\ndeep/5\n")
    write(tmp_path, "ImageSets/Main/test.txt", "4\nunheard of\n")
    write(tmp_path, "ImageSets/Main/a_train.txt", "4 1\n")
    write(tmp_path, "ImageSets/Segmentation/train.txt", "6\n")
    reading = read_voc(tmp_path)
    assert set(reading.splits) == {"train", "val", "test"}
    train = opened(reading, "train")
    assert stems(train) == ["1", "2.5", "my photo 1"]
    val = opened(reading, "val")
    assert stems(val) == ["4", "6", "5"]
    with pytest.raises(DataError, match=r"test\.txt:2: no XML file for 'unheard of'"):
        opened(reading, "test")
    assert stems(opened(reading, "test", on_bad="skip")) == ["4"]


def test_a_list_that_is_no_text_is_named(tmp_path: Path) -> None:
    image(tmp_path / "1.jpg")
    write(tmp_path, "1.xml", voc_xml([voc_object("a", 1, 1, 9, 9)]))
    write(tmp_path, "ImageSets/train.txt", "1")
    write(tmp_path, "ImageSets/val.txt", b"\xff1")
    reading = read_voc(tmp_path)
    assert stems(opened(reading, "train")) == ["1"]
    with pytest.raises(DataError, match=r"val\.txt: not a text in UTF-8"):
        opened(reading, "val")


def test_folders_state_the_splits(tmp_path: Path) -> None:
    for name in ("train/1", "Validation/2", "other/3"):
        image(tmp_path / f"{name}.jpg")
        write(tmp_path, f"{name}.xml", voc_xml([voc_object("a", 1, 1, 9, 9)]))
    reading = read_voc(tmp_path)
    assert stems(opened(reading, "train")) == ["1"]
    assert stems(opened(reading, "validation")) == ["2"]
    assert any("3.jpg: in no split" in line for line in unused(reading))


def test_years_side_by_side_each_with_their_lists(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        for name in ("1", "2"):
            image(tmp_path / year / "JPEGImages" / f"{name}.jpg")
            write(
                tmp_path, f"{year}/Annotations/{name}.xml", voc_xml([voc_object(year, 1, 1, 9, 9)])
            )
        write(tmp_path, f"{year}/ImageSets/Main/train.txt", "1\n")
    train = opened(read_voc(tmp_path), "train")
    assert [train.source(i).parts[-3] for i in range(len(train))] == ["VOC2007", "VOC2012"]
    labels = [train.annotation(index).labels.tolist() for index in range(2)]
    assert train.classes == ("VOC2007", "VOC2012") and labels == [[0], [1]]


def test_a_strange_set(tmp_path: Path) -> None:
    """Spaces, accents, capitals, nested folders, a photo turned by EXIF, a size of 0."""
    root = tmp_path / "Meine Daten (neu)"
    upright = image(root / "Images/K\u00fche & Co/Foto 1.JPG", (100, 80), orientation=6)
    image(root / "Images/K\u00fche & Co/deep/er/foto.2.Jpeg")
    write(
        root,
        "Annotations/K\u00fche & Co/Foto 1.XML",
        # The annotator saw the file as it is stored.
        voc_xml(
            [voc_object("Kuh &amp; Kalb", 11, 21, 40, 60)], filename="IMG_0001.HEIC", size=(100, 80)
        ),
    )
    write(
        root,
        "Annotations/K\u00fche & Co/deep/er/foto.2.xml",
        voc_xml([voc_object("<![CDATA[\u732b]]>", "1.5", "2.5", "9.5", "1e1")], size=(0, 0)),
    )
    samples = opened(read_voc(root))
    assert samples.source(0) == upright
    assert samples.classes == ("Kuh & Kalb", "\u732b")
    # 80 x 100 upright: x is 80 - y, y is x
    assert samples.annotation(0).boxes.tolist() == [[20, 10, 60, 40]]
    assert samples.annotation(1).boxes.tolist() == [[0.5, 1.5, 9.5, 10]]


def test_blood_cells(shared: Path) -> None:
    reading = read_voc(shared / "data" / "bccd")
    assert len(reading.images) == 364
    assert len(reading.boxes.corners) == 4888
    assert {name: len(indices) for name, indices in reading.splits.items()} == {
        "train": 205, "val": 87, "test": 72, "trainval": 292,
    }  # fmt: skip
    assert not reading.issues
    assert reading.classes == ("Platelets", "RBC", "WBC")
    everything = opened(reading)
    assert sum(len(everything.annotation(i).labels) for i in range(364)) == 4886
    first = everything.annotation(0)
    assert first.boxes[0].tolist() == [259, 176, 491, 376]
    assert everything.classes[first.labels[0]] == "WBC"


# masks


def read_masks(root: Path) -> ParsedDataset:
    (dataset,) = parse(root, ReadOptions("masks"), "voc")
    return dataset


def masks(base: Path, split: str) -> MaskSamples:
    dataset = read_masks(base)
    return MaskSamples.from_dataset(dataset, dataset.splits[split])


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("a", "b", "c", "d"):
        image(base / "JPEGImages" / f"{name}.jpg", (8, 6))
    for name in ("a", "b"):
        path = mask(base / "SegmentationClass" / f"{name}.png", 0, 20, 255)
        palette = Image.open(path).convert("P")
        palette.putdata(np.resize([0, 20, 255], 48).tolist())
        palette.putpalette([channel for colour in voc_palette() for channel in colour])
        palette.save(path)
    mask(base / "SegmentationClassAug" / "a.png", 0, 1)
    mask(base / "SegmentationClassAug" / "c.png", 0, 15)
    write(base, "ImageSets/Segmentation/train.txt", "a\n")
    write(base, "ImageSets/Segmentation/val.txt", "b\n")
    return tmp_path


def test_voc_has_21_classes_of_palette_indices(voc: Path) -> None:
    for root in (voc, voc / "VOCdevkit", voc / "VOCdevkit" / "VOC2012"):
        assert find_voc(root) == voc / "VOCdevkit" / "VOC2012"
    base = voc / "VOCdevkit" / "VOC2012"
    train, val = masks(base, "train"), masks(base, "val")
    assert [train.source(0).stem, val.source(0).stem] == ["a", "b"]
    assert train.classes == VOC_CLASSES and len(VOC_CLASSES) == 21 and train.ignore == 255
    assert np.unique(train.mask(0)).tolist() == [0, 20, 255]


@pytest.mark.parametrize("folder", ["ImageSets/Segmentation", "list"])
@pytest.mark.parametrize("name", ["train_aug", "trainaug"])
def test_the_list_of_voc_and_sbd_is_used(voc: Path, folder: str, name: str) -> None:
    base = voc / "VOCdevkit" / "VOC2012"
    paths = "/JPEGImages/a.jpg /SegmentationClassAug/a.png\n"
    write(base, f"{folder}/{name}.txt", f"c\n{paths}a\n\nd\n")
    train = masks(base, "train")
    assert [Path(train.mask_name(index)).parent.name for index in range(3)] == [
        "SegmentationClassAug", "SegmentationClassAug", "SegmentationClass",
    ]  # fmt: skip
    assert stems(train) == ["c", "a", "a"]
    (issue,) = train.dataset.issues
    assert Path(issue.where).name == "d.jpg" and "is missing" in issue.message
    assert np.unique(train.mask(0)).tolist() == [0, 15]


def test_voc_in_colours_and_with_other_classes(voc: Path) -> None:
    base = voc / "VOCdevkit" / "VOC2012"
    path = base / "SegmentationClass" / "a.png"
    Image.open(path).convert("RGB").save(path)
    assert np.unique(masks(base, "train").mask(0)).tolist() == [0, 20, 255]
    write(base, "classes.txt", "\n".join(str(name) * 2 for name in VOC_CLASSES))
    assert masks(base, "train").classes[1] == "aeroplaneaeroplane"


def test_voc_without_images_or_lists(voc: Path) -> None:
    base = voc / "VOCdevkit" / "VOC2012"
    (base / "ImageSets" / "Segmentation" / "train.txt").unlink()
    assert list(read_masks(voc).splits) == ["val"]
    (base / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"val\.txt: none of its 1 images exists with its mask"):
        opened(read_masks(voc), "val", samples_type=MaskSamples)
    (base / "ImageSets" / "Segmentation" / "val.txt").unlink()
    assert find_voc(voc) is None
