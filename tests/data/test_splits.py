"""Selecting, relabelling and holding out are the same for all tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilevit.data.errors import DataError
from mobilevit.data.formats.base import ParsedDataset
from mobilevit.data.formats.files import Paths
from mobilevit.data.open import open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import (
    LabelSamples,
    divide,
    select_evaluation_split,
    split_datasets,
)
from mobilevit.data.validate import validate
from mobilevit.tasks.detection.dataset import BoxSamples
from mobilevit.tasks.segmentation.dataset import MaskSamples
from tests.data.factories import (
    BOXES,
    image,
    labelled_images,
    mask,
    stems,
    touch,
    write,
    write_voc,
    write_yolo,
)


def labelled(root: Path, counts: list[int]) -> LabelSamples:
    """So many images of the classes c0, c1, ..., which are not there."""
    files = [root / f"c{c}" / f"{i}.jpg" for c, n in enumerate(counts) for i in range(n)]
    dataset = ParsedDataset(
        root=root,
        format="folders",
        display_name="class folders",
        images=Paths(files),
        classes=tuple(f"c{label}" for label in range(len(counts))),
        classes_by_use=True,
        labels=np.repeat(np.arange(len(counts)), counts),
    )
    return LabelSamples.from_dataset(dataset)


def names(samples: LabelSamples) -> list[str]:
    return [samples.name(index) for index in range(len(samples))]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=5).filter(lambda c: max(c) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_every_class_is_in_both_and_no_file_is(
    counts: list[int], fraction: float, seed: int
) -> None:
    samples = labelled(Path("root"), counts)
    train, val = samples.hold_out(fraction, seed)
    assert sorted(names(train) + names(val)) == sorted(names(samples))
    for part in (train, val):
        assert part.classes == samples.classes
        for index, name in enumerate(names(part)):
            assert Path(name).parent.name == part.classes[part.labels[index]]
    for label, count in enumerate(counts):
        held_out = int((val.labels == label).sum())
        assert int((train.labels == label).sum()) >= 1
        assert held_out >= (count > 1)
        if 1 <= round(count * fraction) < count:
            assert held_out == round(count * fraction)


def test_what_is_held_out_survives_a_move_and_new_classes(tmp_path: Path) -> None:
    files = [f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(20)]
    before = labelled_images(touch(tmp_path / "a", *files))
    extra = [f"ant/{i}.jpg" for i in range(9)]
    after = labelled_images(touch(tmp_path / "b", *extra, *reversed(files)))

    def held_out(samples: LabelSamples) -> list[str]:
        val = samples.hold_out(0.2, 0)[1]
        return [str(Path(name).relative_to(samples.root)) for name in names(val)]

    assert [name for name in held_out(after) if not name.startswith("ant")] == held_out(before)


def test_a_note_tells_what_was_held_out(tmp_path: Path) -> None:
    touch(tmp_path, *(f"cat/{i}.jpg" for i in range(10)), "dog/1.jpg", "dog/2.jpg", "emu/1.jpg")
    data = DataOptions(root=str(tmp_path), val_fraction=0.3, check=False)
    found = open_splits(LabelSamples, data)
    assert np.bincount(found.train.labels).tolist() == [7, 1, 1]
    assert np.bincount(found.val.labels).tolist() == [3, 1]
    assert "30% of the images of each class held out with seed 0 (9 + 4 images)" in found.note
    assert "without images in val: emu" in found.note


def test_nothing_to_evaluate_on_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg")
    with pytest.raises(DataError, match="2 images are too few to hold one out"):
        open_splits(LabelSamples, DataOptions(root=str(tmp_path), check=False))
    image(tmp_path / "m/images/1.jpg", (8, 6))
    mask(tmp_path / "m/masks/1.png", 0, 1)
    with pytest.raises(DataError, match="1 images are too few to hold one out"):
        open_splits(MaskSamples, DataOptions(root=str(tmp_path / "m")))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 2.0])
def test_the_fraction_is_between_0_and_1(fraction: float) -> None:
    with pytest.raises(ValueError, match="val_fraction"):
        DataOptions(root="photos", val_fraction=fraction)


def test_labels_follow_the_names_of_a_model() -> None:
    samples = labelled(Path("root"), [1, 2])
    turned = samples.relabel(["c1", "emu", "c0"])
    assert turned.classes == ("c1", "emu", "c0")
    assert turned.labels.tolist() == [2, 0, 0]
    assert names(turned) == names(samples)
    assert turned.relabel(["c0", "c1"]).labels.tolist() == [0, 1, 1]
    assert samples.subset([2, 0]).relabel(["c1", "c0"]).labels.tolist() == [0, 1]


def test_a_class_that_the_model_lacks_is_named_with_those_it_has() -> None:
    samples = labelled(Path("root"), [1, 1])
    with pytest.raises(DataError, match=r'root: unknown class "c1"; known are: c0, emu'):
        samples.relabel(["c0", "emu"])
    with pytest.raises(DataError, match="unique"):
        samples.relabel(["c0", "c1", "c0"])
    assert samples.subset([0]).relabel(["c0"]).labels.tolist() == [0]  # c1 does not occur


def test_the_first_of_several_held_out_splits_is_used(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 3), ("valid", 2)):
        write_yolo(tmp_path, {split: BOXES["train"][:count]})
    data = DataOptions(root=str(tmp_path))
    found = open_splits(BoxSamples, data)
    assert (len(found.train), len(found.val)) == (3, 2)
    parts = split_datasets(BoxSamples, [found.train.dataset])
    assert list(parts) == ["train", "valid", "test"]
    assert select_evaluation_split(parts)[0] == "valid"
    assert len(select_evaluation_split(parts, "test")[1]) == 3
    with pytest.raises(DataError, match=r"has no split 'nope', only .*valid"):
        select_evaluation_split(parts, "nope")


def test_trainval_is_trained_on_where_there_is_no_train(tmp_path: Path) -> None:
    one = BOXES["train"][0]
    write_voc(tmp_path, {"Annotations": [type(one)(str(n), one.boxes) for n in range(9)]})
    for name, members in (("trainval", "012345"), ("val", "345"), ("test", "678")):
        write(tmp_path, f"ImageSets/Main/{name}.txt", "\n".join(members))
    data = DataOptions(root=str(tmp_path))
    found = open_splits(BoxSamples, data)
    assert (len(found.train), len(found.val)) == (6, 3)
    assert not {*stems(found.train)} & {*stems(found.val)}
    parts = split_datasets(BoxSamples, [found.train.dataset])
    assert list(divide(parts, val_fraction=0.2, seed=0).splits) == ["trainval", "test"]
    write(tmp_path, "ImageSets/Main/train.txt", "0\n1\n2")
    found = open_splits(BoxSamples, data)
    assert (len(found.train), len(found.val)) == (3, 3)
    parts = split_datasets(BoxSamples, [found.train.dataset])
    assert list(divide(parts, val_fraction=0.2, seed=0).splits) == ["train", "val", "test"]


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"val": BOXES["train"]})
    with pytest.raises(DataError, match='has split "val" but nothing to train on'):
        open_splits(BoxSamples, DataOptions(root=str(tmp_path)))


def test_images_in_both_splits_are_counted_in_the_note(tmp_path: Path) -> None:
    write_yolo(tmp_path, {"train": BOXES["train"]})
    write(tmp_path, "data.yaml", "train: train/images\nval: train/images\nnames: [a, b]")
    note = open_splits(BoxSamples, DataOptions(root=str(tmp_path))).note
    assert "val: val (3 images), of which 3 are in train, too" in note


def test_validation_of_nothing_is_possible(tmp_path: Path) -> None:
    samples = labelled(tmp_path, [1]).subset([])
    report = validate(tmp_path, {"train": samples}, depth="annotations")
    assert report.splits["train"].images == 0
