"""Long lists of paths, and files that belong together by their names."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from mobilevit.data.formats.files import Paths, match_files

NAMES = [
    "data/a/1.jpg",
    "data/é/2.jpg",
    "data/b/" + os.fsdecode(b"\xff.jpg"),
    "other/3.jpg",
    "data",
]


def test_paths_are_kept() -> None:
    paths = Paths(NAMES)
    assert list(paths) == [Path(path) for path in NAMES]
    assert [paths[-1], paths[1]] == [Path("data"), Path("data/é/2.jpg")]
    assert list(pickle.loads(pickle.dumps(paths))) == list(paths)
    with pytest.raises(IndexError):
        paths[5]
    assert len(Paths([])) == 0 and list(Paths([])) == []


def test_a_hundred_thousand_take_little() -> None:
    names = (f"/data/train/n01440764/n01440764_{n}.JPEG" for n in range(100_000))
    paths = Paths(names)
    assert len(pickle.dumps(paths)) < 5e6
    assert paths[99_999] == Path("/data/train/n01440764/n01440764_99999.JPEG")


def test_files_of_one_name_in_unrelated_folders_are_not_matched() -> None:
    labels = ["x/1.txt", "x/2.txt", "y/2.txt", "x/3.txt"]
    assert match_files(["a/1.jpg", "a/2.jpg", "a/3.jpg", "b/3.jpg"], labels) == [
        ["x/1.txt"], [], [], []
    ]  # fmt: skip
    assert match_files(["a/1.jpg", "x/2.jpg"], labels) == [[], ["x/2.txt"]]
