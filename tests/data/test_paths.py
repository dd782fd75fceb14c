"""Many paths in little memory are still paths."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from mobilevit.data.paths import Paths

SOME = ["data/a/1.jpg", "data/é/2.jpg", "data/b/" + os.fsdecode(b"\xff.jpg"), "other/3.jpg", "data"]


@pytest.mark.parametrize("root", ["", "data", Path("data")])
def test_paths_are_kept(root: str | Path) -> None:
    paths = Paths(SOME, root=root)
    assert list(paths) == [Path(path) for path in SOME] == paths
    assert [paths[-1], paths[1]] == [Path("data"), Path("data/é/2.jpg")]
    assert paths[1:3] == [Path(path) for path in SOME[1:3]]
    assert pickle.loads(pickle.dumps(paths)) == paths
    assert paths != Paths(SOME[:4]) and paths != Paths(reversed(SOME))
    assert "5 paths" in repr(paths)
    with pytest.raises(IndexError):
        paths[5]
    assert len(Paths([])) == 0 and Paths([]) == []


def test_a_hundred_thousand_take_little() -> None:
    paths = Paths(
        (f"/data/train/n01440764/n01440764_{n}.JPEG" for n in range(100_000)), root="/data"
    )
    assert len(pickle.dumps(paths)) < 5e6
    assert paths[99_999] == Path("/data/train/n01440764/n01440764_99999.JPEG")
