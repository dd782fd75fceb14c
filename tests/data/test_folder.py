"""Class folders become samples by name, and splits that do not move."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilevit.data.formats.folders import (
    DataError,
    Split,
    evaluation_split,
    hold_out,
    relabel,
    scan,
    splits,
)


def fill(root: Path, *names: str) -> Path:
    """Files are never opened here, so empty ones will do."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(split: Split) -> list[str]:
    return [path.relative_to(split.root).as_posix() for path in split.paths]


# scan


def test_classes_are_folder_names_in_order(tmp_path: Path) -> None:
    root = fill(tmp_path, "dog/2.jpg", "cat/b.PNG", "cat/a.jpeg", "dog/deep/er/1.Webp")
    split = scan(root)
    assert split.classes == ("cat", "dog")
    assert names(split) == ["cat/a.jpeg", "cat/b.PNG", "dog/2.jpg", "dog/deep/er/1.Webp"]
    assert split.labels == (0, 0, 1, 1)
    assert len(split) == 4
    assert split.counts() == {"cat": 2, "dog": 2}
    assert scan(str(root)) == split


def test_leftovers_of_systems_are_passed_over_and_other_files_remembered(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg", "cat/._1.jpg", "cat/.hidden.png", "cat/Thumbs.db", "cat/notes.txt")
    fill(tmp_path, "__MACOSX/cat/1.jpg", ".git/x.jpg", ".DS_Store", "README.md", "loose.jpg")
    split = scan(tmp_path)
    assert names(split) == ["cat/1.jpg"]
    ignored = {path.relative_to(tmp_path).as_posix() for path in split.ignored}
    assert ignored == {"cat/notes.txt", "README.md", "loose.jpg"}


def test_folders_without_images_are_no_classes(tmp_path: Path) -> None:
    split = scan(fill(tmp_path, "cat/1.jpg", "labels/1.json"))
    assert split.classes == ("cat",)
    assert split.empty == ("labels",)


def test_a_class_name_is_the_same_however_it_is_encoded(tmp_path: Path) -> None:
    fill(tmp_path, "train/cafe\u0301/1.jpg", "val/caf\u00e9/2.jpg")
    assert splits(tmp_path).train.classes == ("caf\u00e9",)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "3.jpg")
    root = fill(tmp_path / "root", "cat/1.jpg", "cat/sub/2.jpg", "dog/1.jpg")
    try:
        (root / "cat" / "up").symlink_to(root)
        (root / "cat" / "sub" / "again").symlink_to(root / "cat")
        (root / "cat" / "itself").symlink_to(root / "cat" / "itself")
        (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
        (root / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    except OSError:
        pytest.skip("this system lets us make no links")
    # The dangling one stays a sample, so that reading it says what is wrong.
    assert names(scan(root)) == [
        "cat/1.jpg", "cat/gone.jpg", "cat/more/3.jpg", "cat/sub/2.jpg", "dog/1.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "no class folders"),
        (["a.jpg", "b.jpg"], "holds 2 images directly; images must lie in one folder per class"),
        (["cat/notes.txt", "dog/x"], 'no images in its folders "cat", "dog"'),
        (["notes.txt"], "no class folders"),
    ],
)
def test_a_folder_without_samples_says_what_to_do(
    tmp_path: Path, files: list[str], reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        scan(fill(tmp_path, *files))
    assert str(tmp_path) in str(caught.value)


def test_a_missing_root_and_a_file_are_named(tmp_path: Path) -> None:
    for read in (scan, splits, evaluation_split):
        with pytest.raises(DataError, match=r"nothing.*no such folder"):
            read(tmp_path / "nothing")
        with pytest.raises(DataError, match=r"a\.jpg: is a file"):
            read(fill(tmp_path, "a.jpg") / "a.jpg")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg")
    (tmp_path / "cat").chmod(0)
    with pytest.raises(DataError, match="cannot be listed"):
        scan(tmp_path)


# splits


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test", "Val"])
def test_folders_for_train_and_val_are_used(tmp_path: Path, val: str) -> None:
    fill(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", f"{val}/dog/2.jpg", f"{val}/dog/3.jpg")
    data = splits(tmp_path)
    assert data.train.classes == data.val.classes == ("cat", "dog")
    assert data.val.labels == (1, 1)  # an index into train's classes, not into val's own
    assert data.val.root == tmp_path / val
    assert f"{tmp_path / val} (2 images)" in data.note
    assert "without images in val: cat" in data.note
    assert evaluation_split(tmp_path).classes == ("dog",)


def test_the_first_of_several_held_out_folders_is_used(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.jpg", "test/cat/2.jpg", "valid/cat/3.jpg")
    assert names(splits(tmp_path).val) == ["cat/3.jpg"]
    assert names(evaluation_split(tmp_path)) == ["cat/3.jpg"]


def test_a_class_that_train_lacks_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.jpg", "val/cat/2.jpg", "val/wolf/3.jpg")  # case A23
    with pytest.raises(DataError, match="wolf") as caught:
        splits(tmp_path)
    assert str(tmp_path / "val" / "wolf") in str(caught.value)


def test_train_alone_is_not_taken_for_a_class(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.jpg", "train/cat/2.jpg", "train/dog/1.jpg")
    for read in (splits, evaluation_split):
        with pytest.raises(DataError, match="has train but none of val, valid, validation, test"):
            read(tmp_path)
    assert splits(tmp_path / "train").train.classes == ("cat", "dog")


def test_train_may_be_a_class_of_vehicles(tmp_path: Path) -> None:
    fill(tmp_path, "bus/1.jpg", "bus/2.jpg", "train/1.jpg", "train/2.jpg")
    assert splits(tmp_path).train.classes == ("bus", "train")


def test_one_folder_is_split_within_each_class(tmp_path: Path) -> None:
    fill(tmp_path, *(f"cat/{i}.jpg" for i in range(10)), "dog/1.jpg", "dog/2.jpg", "emu/1.jpg")
    data = splits(tmp_path, val_fraction=0.3)
    assert data.train.counts() == {"cat": 7, "dog": 1, "emu": 1}
    assert data.val.counts() == {"cat": 3, "dog": 1, "emu": 0}
    assert "30% held out with seed 0 (9 + 4 images)" in data.note
    assert "only one image, in train: emu" in data.note
    assert splits(tmp_path, val_fraction=0.3) == data
    assert splits(tmp_path, val_fraction=0.3, seed=1).val.paths != data.val.paths


def test_a_split_survives_a_move_and_new_classes(tmp_path: Path) -> None:
    files = [f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(20)]
    before = splits(fill(tmp_path / "a", *files))
    extra = [f"ant/{i}.jpg" for i in range(9)]
    after = splits(fill(tmp_path / "b", *extra, *reversed(files)))
    assert [n for n in names(after.val) if not n.startswith("ant")] == names(before.val)


def test_nothing_to_evaluate_by_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.jpg", "dog/1.jpg")
    with pytest.raises(DataError, match="one image only"):
        splits(tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 2.0])
def test_the_fraction_lies_between_0_and_1(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match="val_fraction"):
        splits(tmp_path, val_fraction=fraction)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=5).filter(lambda c: max(c) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_every_class_is_in_both_and_no_file_is(
    counts: list[int], fraction: float, seed: int
) -> None:
    root = Path("root")
    whole = Split(
        root=root,
        classes=tuple(f"c{label}" for label in range(len(counts))),
        paths=tuple(root / f"c{c}" / f"{i}.jpg" for c, n in enumerate(counts) for i in range(n)),
        labels=tuple(label for label, count in enumerate(counts) for _ in range(count)),
    )
    data = hold_out(whole, val_fraction=fraction, seed=seed)
    assert sorted([*data.train.paths, *data.val.paths]) == sorted(whole.paths)
    for split in (data.train, data.val):
        assert split.classes == whole.classes
        for path, label in zip(split.paths, split.labels, strict=True):
            assert path.parent.name == split.classes[label]
    for name, count in whole.counts().items():
        held_out = data.val.counts()[name]
        assert data.train.counts()[name] >= 1
        assert held_out >= (count > 1)
        if 1 <= round(count * fraction) < count:
            assert held_out == round(count * fraction)


# relabel


def test_labels_follow_the_names_of_a_model(tmp_path: Path) -> None:
    split = scan(fill(tmp_path, "cat/1.jpg", "dog/1.jpg"))
    turned = relabel(split, ["dog", "emu", "cat"])
    assert turned.classes == ("dog", "emu", "cat")
    assert turned.labels == (2, 0)
    assert turned.paths == split.paths
    assert turned.counts() == {"dog": 1, "emu": 0, "cat": 1}


def test_a_class_that_the_model_lacks_is_named_with_those_it_knows(tmp_path: Path) -> None:
    split = scan(fill(tmp_path, "cat/1.jpg", "dog/1.jpg"))
    with pytest.raises(DataError, match=r'class "dog" unknown; known are: cat, emu'):
        relabel(split, ["cat", "emu"])
    with pytest.raises(DataError, match="unique"):
        relabel(split, ["cat", "dog", "cat"])


def test_imagenette_is_found(shared: Path) -> None:
    data = splits(shared / "data" / "imagenette")
    assert (len(data.train), len(data.val), len(data.train.classes)) == (9469, 3925, 10)
